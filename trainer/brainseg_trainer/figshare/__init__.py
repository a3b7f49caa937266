"""The brain tumour slices of figshare 1512427 (Cheng 2017) as scans that the trainer can read."""

from brainseg_trainer.figshare.importing import import_slices, is_import
from brainseg_trainer.figshare.stacks import read_planes
from brainseg_trainer.figshare.task import figshare_spec

__all__ = ["figshare_spec", "import_slices", "is_import", "read_planes"]
