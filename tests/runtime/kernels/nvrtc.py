"""The kernels' source as PTX, by NVIDIA's compiler from PyPI, which needs no GPU: ``make ptx``."""

import ctypes
import importlib.util
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[3] / "runtime" / "brainseg_runtime" / "kernels"

OPTIONS = (
    "--gpu-architecture=compute_75",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
)
"""Turing, and with it every later GPU; arithmetic as IEEE 754 and numpy have it."""


def compiled(source: str) -> str:
    """PTX of CUDA C.

    ``FileNotFoundError`` without the compiler, ``ValueError`` with its words for what it does not accept.
    """
    nvrtc = ctypes.CDLL(str(_library()))
    program = ctypes.c_void_p()
    _done(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"scan.cu", 0, None, None))
    options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    if nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options):
        raise ValueError(_text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program))
    return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)


def _library() -> Path:
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        for path in sorted(Path(folder).glob("cuda_nvrtc/lib/libnvrtc.so.*")):
            return path
    raise FileNotFoundError("nvidia-cuda-nvrtc-cu12 is not installed")


def _text(size: object, get: object, program: ctypes.c_void_p) -> str:
    length = ctypes.c_size_t()
    _done(size(program, ctypes.byref(length)))
    text = ctypes.create_string_buffer(length.value)
    _done(get(program, text))
    return text.value.decode()


def _done(code: int) -> None:
    if code:
        raise ValueError(f"NVRTC says {code}")


if __name__ == "__main__":
    (KERNELS / "scan.ptx").write_text(compiled((KERNELS / "scan.cu").read_text()))
