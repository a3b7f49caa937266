"""Where the kernels run in these tests."""

import shutil

import pytest
from brainseg_runtime.errors import BrainsegError
from brainseg_runtime.gpu import NoDriver, find, gpus
from brainseg_runtime.scans import find_scans, read
from toys import toy_spec

from .machines import Cpu, compile_kernels


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The kernels' source, compiled for this CPU."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    return compile_kernels(compiler, tmp_path_factory.mktemp("kernels") / "kernels.so", "-O2")


@pytest.fixture(params=["cpu", "gpu"])
def card(request):
    """The kernels on a CPU, and as they ship on a GPU where there is one."""
    if request.param == "cpu":
        opened = Cpu(request.getfixturevalue("library"))
    else:
        pytest.importorskip("cuda.bindings.driver", reason="the extra rtx is not installed (CI installs it)")
        try:
            gpus()
        except NoDriver as error:
            pytest.skip(str(error))
        from brainseg_runtime.kernels.cuda_card import CudaCard

        opened = CudaCard(find("cuda:0"))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def real_scans(data_root):
    """Two scans of four modalities."""
    found = [scan for folder in sorted(data_root.iterdir()) if folder.is_dir() for scan in _scans_in(folder)]
    if not found:
        pytest.skip(f"no scan of four modalities directly in a folder of {data_root}")
    return [read(scan) for scan in found[:2]]


def _scans_in(folder):
    """Whole scans; none where the folder holds something else."""
    try:
        return list(find_scans(folder, toy_spec()).scans)
    except BrainsegError:
        return []
