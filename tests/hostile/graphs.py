"""ONNX graphs that no bundle may hold, each with the code that refuses it."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from toys import toy_graph, toy_spec

SPEC = toy_spec()
GOOD = toy_graph(SPEC)


def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[], bytes]:
    """The toy graph after a change of its message."""

    def make() -> bytes:
        model = onnx.load_from_string(GOOD)
        change(model)
        return model.SerializeToString()

    return make


def external(location: str, **entries: str) -> Callable[[], bytes]:
    """The toy graph with its weights elsewhere."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return changed(change)


def node(operator: str, inputs=(SPEC.input_name,), domain: str = "", **attributes) -> Callable[[], bytes]:
    """The toy graph with one more node, of a domain that is imported."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node.add().CopyFrom(
            helper.make_node(operator, list(inputs), ["more"], domain=domain, **attributes)
        )
        if domain:
            model.opset_import.add(domain=domain, version=1)

    return changed(change)


def weight(array: np.ndarray, name: str = "more", **changes) -> Callable[[], bytes]:
    """The toy graph with one more weight."""

    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        for key, value in changes.items():
            if key == "dims":
                tensor.dims[:] = value
            else:
                getattr(tensor, key).extend(value) if isinstance(value, list) else setattr(tensor, key, value)

    return changed(change)


def endless() -> onnx.GraphProto:
    """The body of a loop that goes on as long as it is told to."""
    condition = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    count = helper.make_tensor_value_info("n", TensorProto.INT64, [])
    after = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    return helper.make_graph([helper.make_node("Identity", ["go"], ["on"])], "b", [count, condition], [after])


def loop(model: onnx.ModelProto) -> None:
    """2^62 rounds."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(1 << 62), "rounds"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.add().CopyFrom(helper.make_node("Loop", ["rounds", "yes"], [], body=endless()))


def nested(depth: int) -> Callable[[], bytes]:
    """Graphs within graphs."""

    def change(model: onnx.ModelProto) -> None:
        graph = endless()
        for _ in range(depth):
            graph = helper.make_graph([helper.make_node("If", ["c"], ["o"], then_branch=graph)], "g", [], [])
        model.graph.node.add().CopyFrom(helper.make_node("If", ["c"], ["o"], then_branch=graph))

    return changed(change)


def functions(count: int) -> Callable[[], bytes]:
    """A chain of functions, each calling the next."""

    def change(model: onnx.ModelProto) -> None:
        for n in range(count):
            call = helper.make_node(f"f{n + 1}", ["x"], ["y"], domain="own")
            imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
            model.functions.append(helper.make_function("own", f"f{n}", ["x"], ["y"], [call], imports))

    return changed(change)


def circle(model: onnx.ModelProto) -> None:
    """Two nodes that wait for each other."""
    model.graph.node.add().CopyFrom(helper.make_node("Relu", ["b"], ["a"]))
    model.graph.node.add().CopyFrom(helper.make_node("Relu", ["a"], ["b"]))


def sequence(model: onnx.ModelProto) -> None:
    """The input is a list of tensors."""
    inner = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    value = helper.make_value_info(SPEC.input_name, helper.make_sequence_type_proto(inner))
    model.graph.input[0].CopyFrom(value)


def constant_outside(model: onnx.ModelProto) -> None:
    """The tensor within a node points outside."""
    tensor = TensorProto(data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.add().CopyFrom(helper.make_node("Constant", [], ["c"], value=tensor))


def sparse(model: onnx.ModelProto) -> None:
    """Weights as a list of places."""
    values, indices = (numpy_helper.from_array(np.ones(1, t), "s") for t in ("f4", "i8"))
    model.graph.sparse_initializer.add(values=values, indices=indices, dims=[1 << 40])


FORM, OPERATOR, DATA = "E_GRAPH_FORM", "E_GRAPH_OPERATOR", "E_GRAPH_DATA"
ONE = np.ones(4, "f4")

HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "data above the bundle": (DATA, external("../secret.bin")),
    "data by a path that climbs inside": (DATA, external("a/../../secret.bin")),
    "data at an absolute path": (DATA, external("/etc/passwd")),
    "data behind a symlink": (DATA, external("link.bin")),
    "data behind a hard link": (DATA, external("hard.bin")),
    "data of a device": (DATA, external("/dev/zero", length="99999999999")),
    "data at an address in memory": (DATA, external("*/_ORT_MEM_ADDR_/*", offset="4096", length="64")),
    "data at a negative offset": (DATA, external("weights.bin", offset="-1")),
    "data of a node outside": (DATA, changed(constant_outside)),
    "data said to be outside": (DATA, weight(ONE, data_location=TensorProto.EXTERNAL)),
    "an operator of another domain": (OPERATOR, node("Evil", domain="com.evil")),
    "an operator of ONNX Runtime's own": (OPERATOR, node("FusedConv", domain="com.microsoft")),
    "an operator that ONNX does not have": (OPERATOR, node("NoSuchOperator")),
    "an endless loop": (OPERATOR, changed(loop)),
    "a random number": (OPERATOR, node("RandomNormal", [], shape=[1 << 16, 1 << 16])),
    "a tensor of any size": (OPERATOR, node("ConstantOfShape")),
    "a regular expression": (OPERATOR, node("RegexFullMatch", pattern="(a+)+$")),
    "a graph within a node": (OPERATOR, nested(0)),
    "a thousand graphs within each other": (OPERATOR, nested(30)),
    "functions that call each other": (OPERATOR, functions(500)),
    "training steps": (OPERATOR, changed(lambda model: model.training_info.add())),
    "a domain that nothing uses": (OPERATOR, changed(lambda m: m.opset_import.add(domain="x", version=1))),
    "an operator set of the future": (
        OPERATOR,
        changed(lambda model: setattr(model.opset_import[0], "version", 99)),
    ),
    "a format of the future": (OPERATOR, changed(lambda model: setattr(model, "ir_version", 99))),
    "weights of text": (OPERATOR, weight(np.array([b"a", b"b"], object))),
    "no bytes": (FORM, lambda: b""),
    "text": (FORM, lambda: b"this is no graph at all"),
    "zeros": (FORM, lambda: bytes(1000)),
    "half a graph": (FORM, lambda: GOOD[: len(GOOD) // 2]),
    "a graph twice": (FORM, lambda: GOOD + GOOD),
    "bytes behind the graph": (FORM, lambda: GOOD + b"\xff" * 30),
    "a field that nobody knows": (FORM, lambda: GOOD + b"\x98\x06\x01"),
    "a group": (FORM, lambda: GOOD + b"\x0b\x0c"),
    "a number without an end": (FORM, lambda: GOOD + b"\xff" * 9),
    "a part longer than the file": (FORM, lambda: GOOD + b"\x72\xff\xff\xff\xff\x7f"),
    "a million parts": (FORM, lambda: GOOD + b"\x72\x00" * 1_000_000),
    "no nodes": (FORM, changed(lambda model: model.graph.ClearField("node"))),
    "a circle": (FORM, changed(circle)),
    "a tensor made twice": (FORM, changed(lambda model: model.graph.node.append(model.graph.node[0]))),
    "an output that nobody makes": (
        FORM,
        changed(lambda model: setattr(model.graph.output[0], "name", "nothing")),
    ),
    "two inputs": (FORM, changed(lambda model: model.graph.input.append(model.graph.output[0]))),
    "an input of lists": (FORM, changed(sequence)),
    "an input of text": (
        FORM,
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING)),
    ),
    "dimensions beyond the data": (FORM, weight(ONE, dims=[5])),
    "dimensions short of the data": (FORM, weight(ONE, dims=[3])),
    "a negative dimension": (FORM, weight(ONE, dims=[-2, -2])),
    "dimensions that overflow": (FORM, weight(ONE, dims=[1 << 32, 1 << 32, 4])),
    "a hundred dimensions": (FORM, weight(ONE, dims=[1] * 99 + [4])),
    "numbers written twice": (FORM, weight(ONE, raw_data=b"\0" * 16, int64_data=[1])),
    "weights in a list of places": (FORM, changed(sparse)),
    "a stride of a terabyte": (FORM, node("MaxPool", strides=[1 << 40] * 3, kernel_shape=[1] * 3)),
    "a name that is no text": (FORM, lambda: GOOD.replace(b"\x22\x04Conv", b"\x22\x04\xff\xfe\xfd\xfc")),
}
