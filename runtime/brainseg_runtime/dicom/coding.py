"""What brainseg's words are called in coded terminologies, and identifiers that follow from content."""

import hashlib
import json
from collections.abc import Mapping

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID

__all__ = ["BRAIN", "MILLILITRE", "MILLIMETRE", "MR_BRAIN", "finding", "uid_of"]

BRAIN = codes.SCT.Brain
MILLILITRE = Code("mL", "UCUM", "milliliter")
MR_BRAIN = Code("24590-2", "LN", "MR Brain")
MILLIMETRE = codes.UCUM.Millimeter
_ABNORMAL = codes.SCT.MorphologicallyAbnormalStructure
_NEOPLASM = codes.SCT.Neoplasm
_FINDINGS: Mapping[str, Code] = {
    "NCR": codes.SCT.Necrosis,
    "ED": codes.SCT.Edema,
    "ET": Code("C113842", "NCIt", "Enhancing Lesion"),
    "TC": _NEOPLASM,
    "WT": _NEOPLASM,
}


def finding(name: str) -> tuple[Code, Code]:
    """Category and type of a label or a region; what is not known by name is a neoplasm."""
    return _ABNORMAL, _FINDINGS.get(name.upper(), _NEOPLASM)


def uid_of(*parts: object) -> UID:
    """A UID under 2.25 that is a function of some values, made as UUIDs of version 5 are, with SHA-256."""
    digest = bytearray(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")
