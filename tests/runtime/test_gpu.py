"""A GPU that is not there is an error with a remedy, never a crash and never another device."""

import subprocess
import sys
import weakref

import numpy as np
import pytest
from brainseg_runtime import doctor
from brainseg_runtime.engines.choice import choose, covered, default_device, make_engine, open_engine
from brainseg_runtime.engines.ort import Buffers, OrtEngine
from brainseg_runtime.errors import BudgetExceeded, BundleInvalid, EngineUnavailable, UsageRefused
from brainseg_runtime.gpu import Gpu, NoDriver, find, gpus
from toys import toy_bundle, toy_engine, toy_graph, toy_spec, toy_volume, write_scan

SPEC = toy_spec()


@pytest.fixture
def no_driver():
    """Only where there is none."""
    try:
        gpus()
    except NoDriver:
        return
    pytest.skip("this machine has a GPU")


def brainseg(*arguments):
    """Run a command in a process of its own: a crash of TensorRT would end it with a signal."""
    code = "import sys; from brainseg_runtime.cli import main; sys.argv[0] = 'brainseg'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "options",
    [["--engine", "trt"], ["--engine", "ort", "--device", "cuda:0"], ["--device", "cuda:0"]],
    ids=str,
)
def test_without_a_driver_a_gpu_is_refused_with_what_installs_it(no_driver, tmp_path, options):
    """Exit status 5 and a line to type; no crash, and nothing written."""
    bundle = toy_bundle(tmp_path / "toy").folder
    write_scan(tmp_path / "scans" / "p1", toy_volume())
    status, out, err = brainseg("infer", tmp_path / "scans", "-m", bundle, "-o", tmp_path / "out", *options)
    assert (status, out) == (5, "")
    assert err.startswith(("E_ENGINE_DEVICE: device cuda:0 is not here", "E_ENGINE_MISSING"))
    assert "Install the NVIDIA driver" in err or "pip install" in err
    assert not (tmp_path / "out").exists()


def test_without_tensorrt_its_engine_is_refused_with_what_installs_it(tmp_path, monkeypatch):
    """Before the driver is even asked."""
    for name in ("tensorrt_rtx", "tensorrt", "tensorrt_lean_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_MISSING.*brainseg-runtime\[rtx\]") as told:
        make_engine("trt", toy_graph(SPEC), SPEC, device="cuda:0")
    assert told.value.exit_status == 5


def test_a_precision_that_tensorrt_has_no_plans_in_is_a_usage_error_before_one_is_built(tmp_path):
    """With a GPU or without: not after minutes of building the FP32 graph."""
    bundle = toy_bundle(tmp_path / "toy").folder
    write_scan(tmp_path / "scans" / "p1", toy_volume())
    status, out, err = brainseg(
        "infer",
        tmp_path / "scans",
        "-m",
        bundle,
        "-o",
        tmp_path / "out",
        "--engine",
        "trt",
        "--precision",
        "bf16",
    )
    assert (status, out) == (2, "")
    assert err.startswith("E_USAGE: engine trt does not compute in bf16. It has fp16, fp32.")
    assert not (tmp_path / "out").exists()


def test_without_a_driver_no_plan_is_built(no_driver, tmp_path):
    """One line says why, and the status is 5."""
    status, out, err = brainseg("plans", "build", toy_bundle(tmp_path / "toy").folder)
    assert (status, out, err.count("\n")) == (5, "", 1)


def test_the_doctor_says_that_there_is_no_gpu(no_driver):
    """An engine that is installed for nothing is not one that runs."""
    status, out, _ = brainseg("doctor")
    assert status == 0
    (line,) = (line for line in out.splitlines() if "cuda:0" in line)
    assert line.startswith("absent")
    assert "no NVIDIA driver" in line
    assert next(line for line in out.splitlines() if "engine trt" in line).startswith("absent")


def test_the_doctor_says_whether_the_tensorrt_that_is_installed_runs_on_the_gpu_that_is_here(monkeypatch):
    """TensorRT-RTX alone is none for an H200, and the line to type is that for the card."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed (CI installs it)")
    for name in ("tensorrt", "tensorrt_lean_libs"):
        monkeypatch.setitem(sys.modules, name, None)
    found = {}
    for name, capability in (("NVIDIA RTX 4000 Ada", (8, 9)), ("NVIDIA H200", (9, 0))):
        gpu = Gpu(0, name, capability, 10**11, "580.65.06")
        monkeypatch.setattr(doctor, "gpus", lambda gpu=gpu: (gpu,))
        found[name] = next(one for one in doctor.examine() if one.what == "engine trt")
    assert found["NVIDIA RTX 4000 Ada"].state == "ok"
    assert found["NVIDIA H200"].state == "absent"
    assert "tensorrt_rtx does not run on NVIDIA H200" in found["NVIDIA H200"].detail
    assert "brainseg-runtime[trt]" in found["NVIDIA H200"].detail
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert next(one for one in doctor.examine() if one.what == "engine trt").detail.count("[trt]") == 1


@pytest.mark.parametrize("word", ["gpu", "cuda:x", "cuda0", "cuda:-1", "cuda:²", ""])
def test_a_word_that_names_no_gpu_is_a_usage_error(word):
    """Whatever is installed."""
    with pytest.raises(UsageRefused, match=r"E_USAGE.*cuda:0"):
        find(word)


def test_a_gpu_that_does_not_exist_is_refused():
    """With or without a driver."""
    with pytest.raises(EngineUnavailable, match="E_ENGINE_DEVICE"):
        find("cuda:99")


def test_a_named_device_is_a_demand(no_driver, tmp_path):
    """Neither a named engine nor auto goes to the CPU when a GPU was asked for."""
    bundle = toy_bundle(tmp_path / "toy")
    with pytest.raises(EngineUnavailable, match="E_ENGINE_DEVICE"):
        choose(bundle, device="cuda:0")
    with pytest.raises(EngineUnavailable, match="E_ENGINE_DEVICE"):
        open_engine(bundle, "ort", device="cuda:0")
    assert (default_device("trt"), default_device("ort"), default_device("auto")) == ("cuda:0", "cpu", "cpu")


def test_on_a_gpu_a_certified_graph_may_run_on_the_strength_of_its_self_test(tmp_path):
    """The certificate must show that the graph is right; on a CPU it must name the engine as well."""
    bundle = toy_bundle(tmp_path / "toy")
    assert covered(bundle, "trt", "fp32", "cuda:0")
    assert covered(bundle, "ort", "fp32", "cuda:0")
    assert not covered(bundle, "trt", "fp16", "cuda:0")
    assert not covered(bundle, "trt", "fp32", "cpu")


def test_onnx_runtime_without_cuda_is_refused_with_what_installs_it():
    """It would compute on the CPU and say nothing."""
    import onnxruntime
    from brainseg_runtime.engines.ort import _require_cuda

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_MISSING.*brainseg-runtime\[gpu\]"):
        _require_cuda()


@pytest.fixture
def another_provider(monkeypatch):
    """In CUDA's place one that this ONNX Runtime has, and that takes none of a network's nodes."""
    import onnxruntime
    from brainseg_runtime.engines import ort

    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes no nodes")
    monkeypatch.setitem(ort.PROVIDERS, "cuda", "AzureExecutionProvider")
    monkeypatch.setattr(ort, "find", lambda device: Gpu(0, "stand-in", (9, 0), 10**12, "1"))
    monkeypatch.setattr(ort, "_require_cuda", lambda: "libcudnn.so.9 is not found")
    monkeypatch.setattr(ort, "free_memory", lambda gpu: 10**11)
    return ort


def test_onnx_runtime_never_goes_on_with_the_cpu_where_a_gpu_was_asked_for(another_provider, capfd):
    """Its own refusal arrives as what it is, with what it said of the libraries; stdout stays clean."""
    with pytest.raises(EngineUnavailable, match=r"E_ENGINE_DEVICE.*default CPU EP.*libcudnn") as told:
        OrtEngine(toy_graph(SPEC), SPEC, "fp32", "cuda:0")
    assert told.value.exit_status == 5
    assert capfd.readouterr().out == ""
    with pytest.raises(BundleInvalid, match="E_BUNDLE_DAMAGED"):
        OrtEngine(b"not a graph", SPEC, "fp32", "cuda:0")


@pytest.mark.parametrize(
    ("said", "free", "expected"),
    [
        (
            "CUDA failure 2: out of memory ; GPU=0",
            10**11,
            (BudgetExceeded, "E_MEMORY.*does not fit on cuda:0"),
        ),
        (
            "CUBLAS failure 1: NOT_INITIALIZED",
            6 * 10**8,
            (BudgetExceeded, "E_MEMORY.*does not fit on cuda:0"),
        ),
        (
            "CUBLAS failure 1: NOT_INITIALIZED",
            10**11,
            (EngineUnavailable, "E_ENGINE_DEVICE.*NOT_INITIALIZED"),
        ),
    ],
)
def test_a_gpu_without_memory_for_the_model_is_told_from_one_that_is_not_there(
    another_provider, monkeypatch, said, free, expected
):
    """And not tried again on the CPU, where it would fit."""
    tried = []
    monkeypatch.setattr(another_provider, "free_memory", lambda gpu: free)

    class Full(another_provider.onnxruntime.InferenceSession):
        def _create_inference_session(self, providers, *_):
            tried.append(providers)
            raise RuntimeError(said)

    monkeypatch.setattr(another_provider.onnxruntime, "InferenceSession", Full)
    kind, words = expected
    with pytest.raises(kind, match=words):
        OrtEngine(toy_graph(SPEC), SPEC, "fp32", "cuda:0")
    assert len(tried) == 1


def test_old_buffers_are_gone_before_new_ones_are_asked_for(monkeypatch):
    """A device that holds one size of tiles need not hold two."""
    engine = OrtEngine(toy_graph(SPEC), SPEC, "fp32")
    buffers = Buffers(engine._session, SPEC, "cpu", 0)
    alive = weakref.WeakSet()
    plain = Buffers._empty

    def empty(self, shape):
        sizes.append(len(alive))
        made = plain(self, shape)
        alive.add(made)
        return made

    sizes = []
    monkeypatch.setattr(Buffers, "_empty", empty)
    for side in (8, 4, 8):
        buffers.run(np.zeros((1, 4, side, 8, 8), np.float32))
    assert sizes == [0, 1] * 3


def test_kept_buffers_give_what_a_plain_run_gives():
    """The way through bound memory, here that of the CPU: sizes may change, and no answer is overwritten."""
    engine = OrtEngine(toy_graph(SPEC), SPEC, "fp32")
    buffers = Buffers(engine._session, SPEC, "cpu", 0)
    rng = np.random.default_rng(0)
    answers = []
    for shape in ((8, 8, 8), (8, 8, 8), (16, 4, 8), (8, 8, 8)):
        tiles = rng.normal(size=(2, *shape, 4)).astype(np.float32)
        logits = buffers.run(np.ascontiguousarray(np.moveaxis(tiles, -1, 1)))
        answers.append((logits, toy_engine(SPEC).infer(tiles)))
    for logits, expected in answers:
        np.testing.assert_allclose(np.moveaxis(logits, 1, -1), expected, atol=1e-5)


def test_every_return_code_of_cuda_is_read(no_driver):
    """A real call that fails, and the code for memory that lacks."""
    pytest.importorskip("cuda.bindings.runtime", reason="the extra rtx is not installed (CI installs it)")
    from brainseg_runtime.engines.cuda import DeviceBuffer, checked, free_bytes
    from cuda.bindings import runtime

    for call in (free_bytes, lambda: DeviceBuffer().reserve(1)):
        with pytest.raises(EngineUnavailable, match=r"E_ENGINE_FAILED.*cudaErrorInsufficientDriver"):
            call()
    with pytest.raises(BudgetExceeded, match="E_MEMORY") as told:
        checked((runtime.cudaError_t.cudaErrorMemoryAllocation, None))
    assert told.value.exit_status == 8
    assert checked((runtime.cudaError_t.cudaSuccess, 7)) == 7
    assert checked((runtime.cudaError_t.cudaSuccess,)) == ()


def test_a_batch_goes_to_the_gpu_in_parts_that_cover_it_in_order():
    """Two in flight where there are two tiles, and never more at once than the plan takes."""
    pytest.importorskip("cuda.bindings.runtime", reason="the extra rtx is not installed (CI installs it)")
    from brainseg_runtime.engines.trt import parts

    for count in range(1, 12):
        for most in range(1, 5):
            cut = list(parts(count, most))
            assert [n for part in cut for n in range(count)[part]] == list(range(count))
            assert max(part.stop - part.start for part in cut) <= most
            assert len(cut) > 1 or count == 1
