"""Every name of TensorRT and CUDA that the code uses is there, in each version that it is meant for."""

import ast
import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from brainseg_runtime import gpu
from brainseg_runtime.plans import api

UV = Path(sys.executable).parent / "uv"

FULL = ("12-bindings==10.13.0.35", "13-bindings==10.16.1.11", "13-bindings==11.4.0.106")
"""The oldest that the code is meant for, and the newest of each major version."""

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRIES = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion "
    "getBuilderPluginRegistry getPluginRegistry initLibNvInferPlugins"
)
"""What the bindings look for in NVIDIA's libraries when they are imported, and never call in this test."""

LEAN = ("10.16.1.11", "11.4.0.106")
"""Of each major version the newest whose lean library is a wheel on PyPI."""

NAMES = """
import ctypes, json, sys
from importlib import import_module
while sys.argv[2].startswith("/"):
    ctypes.CDLL(sys.argv.pop(2), mode=ctypes.RTLD_GLOBAL)
trt = [import_module(name) for name in sys.argv[2:]][-1]
lacks = []
for owner, members in json.loads(sys.argv[1]).items():
    kind = getattr(trt, owner, None) if owner else trt
    lacks += [f"{owner}.{member}" for member in members if kind is None or not hasattr(kind, member)]
print(json.dumps([trt.__version__, lacks]))
"""


def used(rtx=False):
    """Class of TensorRT -> its members that the code uses, as mypy lets it use no others."""
    kinds = vars(api).items()
    classes = {name: kind for name, kind in kinds if getattr(kind, "__module__", "") == api.__name__}
    members = {name: set(get_type_hints(kind)) | _own(kind) for name, kind in classes.items()}
    module = members.pop("TensorRT")
    assert module <= set(members) | {"__version__"}
    more = {name: members.pop(name) for name in api.RTX_ONLY}
    if rtx:
        members["IBuilderConfig"] |= more.pop("RtxBuilderConfig")
        members["ICudaEngine"] |= more.pop("RtxCudaEngine")
        members["IRuntimeConfig"] = more.pop("RtxRuntimeConfig")
        members |= more
    else:
        module -= set(more)
    return {**{name: sorted(of) for name, of in members.items()}, "": sorted(module)}


def _own(kind):
    return {
        name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")
    }


def lacking(python, names, *modules):
    command = [python, "-c", NAMES, json.dumps(names), *modules]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_names_that_are_looked_for_are_those_of_the_code():
    """The test itself sees classes, methods, properties and enumerations."""
    names = used()
    assert "build_serialized_network" in names["Builder"]
    assert "num_layers" in names["INetworkDefinition"]
    assert "STRONGLY_TYPED" in names["NetworkDefinitionCreationFlag"]
    assert "EngineInspector" in names
    assert {"Builder", "Runtime", "__version__"} <= set(names[""])


def test_tensorrt_rtx_has_every_name():
    """Of the version that is installed here."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed (CI installs it)")
    assert lacking(sys.executable, used(rtx=True), "tensorrt_rtx")[1] == []


@pytest.mark.parametrize("version", LEAN)
def test_the_lean_library_has_every_name_that_runs_a_plan(tmp_path, version):
    """Of TensorRT 10 and 11, whose lean library is on PyPI whole."""
    python = environment(
        tmp_path, *(f"tensorrt-lean-cu13-{part}=={version}" for part in ("libs", "bindings"))
    )
    names = {name: members for name, members in used().items() if name in api.RUNNER}
    assert set(names) == set(api.RUNNER)
    found, lacks = lacking(python, names, "tensorrt_lean_libs", "tensorrt_lean_bindings")
    assert (found, lacks) == (version, [])


@pytest.mark.parametrize("package", FULL)
def test_tensorrt_has_every_name(tmp_path, package):
    """Its bindings are on PyPI, its libraries are not: empty ones let the bindings be imported, no more."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler, with which to make libraries that the bindings can be linked to")
    python = environment(tmp_path, f"tensorrt-cu{package}")
    major = package.partition("==")[2].partition(".")[0]
    source = tmp_path / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRIES.split()))
    made = [tmp_path / f"lib{library}.so.{major}" for library in LIBRARIES]
    for library in made:
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, soname], check=True)
    found, lacks = lacking(python, used(), *map(str, made), "tensorrt_bindings")
    assert package.endswith(found)
    assert lacks == []


def environment(folder, *packages):
    """The Python of a fresh environment with these packages and nothing that they depend on."""
    python = folder / "bin" / "python"
    subprocess.run([UV, "venv", "-q", "--python", sys.executable, "--allow-existing", folder], check=True)
    subprocess.run([UV, "pip", "install", "-q", "--no-deps", "--python", python, *packages], check=True)
    return python


def test_every_call_of_cuda_is_one_that_nvidia_documents():
    """Of the runtime in the bindings that are installed, of the driver by the names that these give it."""
    driver = pytest.importorskip(
        "cuda.bindings.driver", reason="the extra rtx is not installed (CI installs it)"
    )
    from brainseg_runtime.engines import cuda
    from brainseg_runtime.kernels import cuda_card
    from cuda.bindings import runtime

    calls = _attributes(Path(cuda.__file__), "runtime")
    assert "cudaMemcpyAsync" in calls
    assert [name for name in calls if not hasattr(runtime, name)] == []
    calls = _attributes(Path(cuda_card.__file__), "driver")
    assert {"cuLaunchKernel", "cuModuleLoadData"} <= calls
    assert [name for name in calls if not hasattr(driver, name)] == []
    calls = {name.removesuffix("_v2") for name in _attributes(Path(gpu.__file__), "cuda")}
    assert "cuInit" in calls
    assert [name for name in calls if not hasattr(driver, name)] == []


def _attributes(path, of):
    """What is asked of a name in a file: ``of.this``."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {n.attr for n in nodes if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == of}
