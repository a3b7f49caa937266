"""Plans are built by TensorRT-RTX itself, which needs no GPU for that; nothing here stands in for it."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from brainseg_runtime.errors import BundleInvalid, EngineUnavailable
from brainseg_runtime.plans.building import Built, build, census, inspected
from brainseg_runtime.plans.flavour import RTX_TARGETS
from brainseg_runtime.plans.inspection import account, kernel_types, require_precision
from brainseg_runtime.plans.request import Profile, profiles_of
from onnx import TensorProto, helper, numpy_helper
from toys import toy_graph, toy_spec

trt = pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed (CI installs it)")

SPEC = toy_spec()
PROFILES = profiles_of(SPEC)


def graph(precision, layers=2):
    """Convolutions in a precision, float32 outside, as the exporter writes them."""
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    dtype = np.float16 if precision == "fp16" else np.float32
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Cast", ["image"], ["x0"], "in", to=kind)]
    weights = []
    for n in range(layers):
        weights.append(numpy_helper.from_array(rng.normal(size=(4, 4, 3, 3, 3)).astype(dtype), f"w{n}"))
        nodes.append(helper.make_node("Conv", [f"x{n}", f"w{n}"], [f"x{n + 1}"], f"conv{n}", pads=[1] * 6))
    nodes.append(helper.make_node("Cast", [f"x{layers}"], ["logits"], "out", to=TensorProto.FLOAT))
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, "i", "j", "k"])
        for name in ("image", "logits")
    ]
    proto = helper.make_graph(nodes, "convolutions", values[:1], values[1:], weights)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "Float"), ("fp16", "Half")])
def test_a_plan_computes_in_what_the_graph_says(precision, kind):
    """By TensorRT's account of the built plan, convolution by convolution."""
    built = build(trt, graph(precision), PROFILES)
    assert built.kernels == {"conv0": kind, "conv1": kind}
    require_precision(built.kernels, precision)
    assert len(built.plan) > 10_000


@pytest.mark.parametrize("capability", sorted(RTX_TARGETS))
def test_tensorrt_rtx_builds_for_each_gpu_that_it_is_chosen_for(capability):
    """From Turing to Blackwell, none of which is here; kernels are in FP16 for all of them."""
    built = build(trt, graph("fp16"), PROFILES, target=capability)
    assert built.kernels == {"conv0": "Half", "conv1": "Half"}
    assert len(built.plan) > 10_000


class Seen:
    """Another's attributes, but for one call, which may give nothing; what calls give is kept."""

    def __init__(self, real, silent=""):
        self.real, self.silent, self.given = real, silent, []

    def __getattr__(self, name):
        found = getattr(self.real, name)
        if name == self.silent:
            return lambda *_: None
        if name in ("Builder", "create_builder_config"):
            return lambda *given: self._kept(found(*given))
        return found

    def _kept(self, made):
        self.given.append(Seen(made, self.silent) if isinstance(made, trt.Builder) else made)
        return self.given[-1]


def test_a_plan_for_the_lean_library_runs_on_later_versions_and_carries_no_code_to_trust():
    """TensorRT-RTX takes the same flags; its plan computes in what the graph says."""
    for for_lean in (False, True):
        seen = Seen(trt)
        built = build(seen, graph("fp16"), PROFILES, for_lean=for_lean)
        require_precision(built.kernels, "fp16")
        assert len(built.plan) > 10_000
        (config,) = seen.given[0].given
        for flag in (trt.BuilderFlag.VERSION_COMPATIBLE, trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME):
            assert config.get_flag(flag) == for_lean


@pytest.mark.parametrize("silent", ["create_builder_config", "create_optimization_profile"])
def test_a_builder_that_makes_nothing_is_an_error(silent):
    """TensorRT gives None where others raise."""
    with pytest.raises(EngineUnavailable, match=r"E_PLAN.*it makes no"):
        build(Seen(trt, silent), graph("fp16"), PROFILES)


def test_a_plan_that_cannot_be_inspected_is_an_error():
    """Nor is one that does not load taken for one that says what it computes in."""
    engines = {"cannot be inspected": SimpleNamespace(create_engine_inspector=lambda: None), "not load": None}
    for words, engine in engines.items():
        seen = Seen(trt)
        seen.Runtime = lambda _, engine=engine: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
        with pytest.raises(EngineUnavailable, match=rf"E_PLAN.*{words}"):
            inspected(seen, Built(b"a plan", {"conv": ""}))


def test_a_plan_in_another_precision_is_refused():
    """An FP32 graph does not pass for FP16, nor the other way round, nor a plan that does not tell."""
    for precision, other in (("fp32", "fp16"), ("fp16", "fp32")):
        kernels = build(trt, graph(precision), PROFILES).kernels
        with pytest.raises(EngineUnavailable, match=rf"E_PLAN.*2 of 2 convolutions not in {other}.*conv0"):
            require_precision(kernels, other)
    with pytest.raises(EngineUnavailable, match=r"E_PLAN.*conv in unknown"):
        require_precision({"conv": ""}, "fp16")
    with pytest.raises(EngineUnavailable, match=r"E_PLAN.*no convolution"):
        require_precision({}, "fp16")


def test_one_convolution_in_another_precision_is_found():
    """A plan is refused for a single kernel."""
    mixed = {**build(trt, graph("fp16"), PROFILES).kernels, "conv1": "Float"}
    with pytest.raises(EngineUnavailable, match="1 of 2 convolutions not in fp16: conv1 in Float"):
        require_precision(mixed, "fp16")


def test_the_layers_of_a_network_are_counted():
    """As TensorRT's parser makes them."""
    assert census(trt, graph("fp16", layers=3)) == {"CAST": 2, "CONVOLUTION": 3}


def test_the_account_of_tensorrt_10_is_read_too():
    """There a convolution tells its weights' type, and a fused kernel has its constants among its inputs.

    The form is that of logs of TensorRT 10 that others published; none was made here.
    """
    cask = (
        "Name: stem + act, LayerType: CaskConvolution, Inputs: [ { Name: x, Location: Device, Dimensions: "
        "[1,4,8,8,8], Format/Datatype: Float }], Outputs: [ { Name: y, Location: Device, Dimensions: "
        "[1,8,8,8,8], Format/Datatype: Half }], ParameterType: Convolution, Kernel: [3,3,3], "
        'Weights: {"Type": "Half", "Count": 864}, Bias: {"Type": "Float", "Count": 8}, TacticName: sm80, '
        "Metadata: [ONNX Layer: stem]\x1e[ONNX Layer: act]"
    )
    fused = (
        "Name: head_myl9_4, LayerType: fusion, Inputs: [ { Name: y, Dimensions: [1,8,64,64,64], Format/"
        "Datatype: Float }, { Name: __mye595_dconst, Dimensions: [8,3,1,1,1], Format/Datatype: Half }, "
        "{ Name: bias_constantFloat, Dimensions: [3], Format/Datatype: Float }], Outputs: [ { Name: z, "
        "Dimensions: [1,3,64,64,64], Format/Datatype: Float }], StreamId: 0, Metadata: [ONNX Layer: head]"
    )
    layers = account(f"Layers:\n{cask}\n{fused}\n\nBindings:\nx\nz\n")
    assert [(layer.kind, layer.kernel) for layer in layers] == [
        ("CaskConvolution", "Half"),
        ("fusion", "Half"),
    ]
    assert layers[0].nodes == {"stem", "act"}
    assert kernel_types(layers, ["stem", "head", "gone"]) == {"stem": "Half", "head": "Half", "gone": ""}


def test_a_kernel_is_told_from_the_constants_of_its_neighbours():
    """A norm that pads the channels of a convolution names it, but its FP32 scale is not the kernel."""
    line = (
        "Name: part, LayerType: fusion, Inputs: [], Constants: [ {{ Name: w, Dimensions: [{}], Datatype: {}, "
        "Format: NDHWC }}], Outputs: [], Metadata: [ONNX Layer: norm][ONNX Layer: stem]"
    )
    kernel, scale = line.format("8,4,3,3,3", "Half"), line.format("1,8,1,1,1", "Float")
    assert kernel_types(account(f"{scale}\n{kernel}"), ["stem"]) == {"stem": "Half"}
    split = kernel_types(account(f"{kernel}\n{kernel.replace('Half', 'Float')}"), ["stem"])
    assert split == {"stem": "Float+Half"}
    with pytest.raises(EngineUnavailable, match=r"stem in Float\+Half"):
        require_precision(split, "fp16")


def test_what_is_no_graph_or_not_ours_is_refused():
    """Bytes that do not parse, and an operator that TensorRT does not have."""
    with pytest.raises(BundleInvalid, match="E_BUNDLE_DAMAGED"):
        build(trt, b"not a graph", PROFILES)
    strange = onnx.load_from_string(toy_graph(SPEC))
    strange.graph.node[0].domain = "elsewhere"
    strange.graph.node[0].op_type = "Strange"
    with pytest.raises(BundleInvalid, match=r"E_BUNDLE_DAMAGED.*TensorRT cannot take the graph"):
        census(trt, strange.SerializeToString())


def test_shapes_that_contradict_the_graph_are_an_error_with_tensorrts_own_words():
    """A builder that gives nothing is never taken for one that gave something."""
    wrong = Profile((1, 5, 8, 8, 8), (1, 5, 8, 8, 8), (1, 5, 8, 8, 8))
    with pytest.raises(EngineUnavailable, match=r"E_PLAN.*It says") as told:
        build(trt, graph("fp16"), [wrong])
    assert told.value.exit_status == 5


def test_progress_runs_from_nothing_to_all():
    """Shares never leave 0 to 1 and end at 1."""
    said = []
    build(trt, graph("fp16"), PROFILES, progress=lambda what, share: said.append((what, share)))
    shares = [share for _, share in said]
    assert len(shares) > 10
    assert shares[0] < 0.5
    assert shares[-1] == 1
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)


def test_a_build_can_be_called_off():
    """Ctrl-C within the builder ends it, and arrives as what it was."""

    class Interrupted(BaseException):
        pass

    def stop(what, share):
        raise Interrupted

    with pytest.raises(Interrupted):
        build(trt, graph("fp16"), PROFILES, progress=stop)
    assert build(trt, graph("fp16"), PROFILES).plan


def test_a_signal_ends_a_build():
    """TensorRT swallows what is raised in what it calls: Ctrl-C calls a build off and is raised after it."""
    sent = []

    def interrupt(what, share):
        if not sent:
            sent.append(signal.raise_signal(signal.SIGINT))

    # A process that was started in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(trt, graph("fp16"), PROFILES, progress=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert sent


def test_nothing_is_said_on_the_terminal():
    """TensorRT's log goes where it is asked for."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import tensorrt_rtx as trt
from brainseg_runtime.errors import BundleInvalid
from brainseg_runtime.plans.building import build
from brainseg_runtime.plans.request import profiles_of
from toys import toy_graph, toy_spec
build(trt, toy_graph(toy_spec()), profiles_of(toy_spec()))
try:
    build(trt, b"not a graph", profiles_of(toy_spec()))
except BundleInvalid:
    pass
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *(p for p in sys.path if p.endswith("tests"))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_profiles_hold_heads_tiles_and_golden_tiles():
    """Whole heads where the model takes them, tiles in batches, nothing beyond what TensorRT can index."""
    (tiles,) = profiles_of(SPEC)
    assert tiles.holds((4, 4, 16, 16, 16))
    assert tiles.holds((1, 4, 4, 64, 32))
    assert not tiles.holds((5, 4, 16, 16, 16))
    whole = toy_spec(scheme="whole", divisor=(8, 8, 8))
    head, _ = profiles_of(whole)
    assert head.holds((1, 4, 184, 224, 184))
    assert not head.holds((2, 4, 184, 224, 184))
    fine, _ = profiles_of(toy_spec(scheme="whole", spacing=(0.5, 0.5, 0.5)))
    assert np.prod(fine.largest[2:]) * 64 < 2**31
    thin, *_ = profiles_of(toy_spec(scheme="whole", divisor=(8, 8, 1), tile=(16, 16, 1), spacing=(1, 1, 6)))
    assert thin.holds((1, 4, 160, 192, 20))
