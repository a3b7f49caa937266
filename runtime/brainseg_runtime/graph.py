"""What may stand in an ONNX graph, found out by a small bounded reader before any engine sees the bytes.

The runtime carries no onnx, and engines read far more than a network needs: files beside the graph,
loops without end, native code. Whatever is not named here is refused, also what a newer ONNX may bring.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from brainseg_runtime.errors import BundleInvalid

__all__ = ["OPERATORS", "check"]

# First what the exporter's own graphs are made of, then what tf2onnx writes for layers beyond those.
_OPERATORS = """
Conv ConvTranspose InstanceNormalization MaxPool AveragePool Resize Pad Concat Add Mul Relu LeakyRelu PRelu
Elu Tanh Sigmoid Softmax Cast

Abs BatchNormalization Clip Constant Div Erf Exp Flatten Gather Gemm GlobalAveragePool HardSigmoid Identity
MatMul Max Min Neg Pow Reciprocal ReduceMax ReduceMean ReduceProd ReduceSum Reshape Selu Shape Size Slice
Softplus Softsign Split Sqrt Squeeze Sub Tile Transpose Unsqueeze
"""
OPERATORS = frozenset(_OPERATORS.split())
"""Pure functions of tensors: no control flow, no state, no random numbers, no strings, no code of others."""

MAX_NODES = 10_000
MAX_PARTS = 200_000
"""Fields of the file in all, so that reading ends soon whatever it holds."""
MAX_NUMBER = 1 << 16
"""Of a kernel, a stride, a padding, an axis: more is no network."""
MAX_LOOSE = 1 << 20
"""Bytes of a tensor whose numbers are written one by one; weights are written as they lie in memory."""
MAX_DIMS = 8
IR_VERSIONS = range(8, 11)
OPSETS = range(16, 23)

# Bytes of one number, by ONNX' number for its type.
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2}
LOOSE = {1: "float_data", 7: "int64_data"}
FLOAT = 1


@dataclass(frozen=True)
class _Field:
    name: str
    kind: Literal["number", "fixed", "bytes"] = "bytes"
    many: bool = False


def _text(*names: str) -> list[_Field]:
    return [_Field(name) for name in names]


# onnx.proto, as far as a network needs it; numbers that are not here are refused.
_MODEL = {
    1: _Field("ir_version", "number"),
    **dict(zip((2, 3, 4, 6, 7), _text("producer", "version", "domain", "doc", "graph"), strict=True)),
    5: _Field("model_version", "number"),
    8: _Field("opset", many=True),
    14: _Field("metadata", many=True),
}
_OPSET = {1: _Field("domain"), 2: _Field("version", "number")}
_ENTRY = {1: _Field("key"), 2: _Field("value")}
_GRAPH = {
    1: _Field("node", many=True),
    2: _Field("name"),
    5: _Field("initializer", many=True),
    10: _Field("doc"),
    11: _Field("input", many=True),
    12: _Field("output", many=True),
    13: _Field("value_info", many=True),
}
_NODE = {
    1: _Field("input", many=True),
    2: _Field("output", many=True),
    **dict(zip((3, 4, 6, 7), _text("name", "op_type", "doc", "domain"), strict=True)),
    5: _Field("attribute", many=True),
}
_ATTRIBUTE = {
    1: _Field("name"),
    2: _Field("f", "fixed"),
    3: _Field("i", "number"),
    4: _Field("s"),
    5: _Field("t"),
    7: _Field("floats", "fixed", many=True),
    8: _Field("ints", "number", many=True),
    9: _Field("strings", many=True),
    13: _Field("doc"),
    20: _Field("type", "number"),
}
_TENSOR = {
    1: _Field("dims", "number", many=True),
    2: _Field("type", "number"),
    4: _Field("float_data", "fixed", many=True),
    5: _Field("int32_data", "number", many=True),
    7: _Field("int64_data", "number", many=True),
    8: _Field("name"),
    9: _Field("raw"),
    12: _Field("doc"),
    14: _Field("location", "number"),
}
_VALUE = {1: _Field("name"), 2: _Field("type"), 3: _Field("doc")}
_TYPE = {1: _Field("tensor"), 6: _Field("denotation")}
_TENSOR_TYPE = {1: _Field("type", "number"), 2: _Field("shape")}
_SHAPE = {1: _Field("dim", many=True)}
_DIM = {1: _Field("size", "number"), 2: _Field("name"), 3: _Field("denotation")}

# What is refused with a reason of its own: (table, number) -> (code, words).
_FORBIDDEN = {
    (id(_MODEL), 20): ("E_GRAPH_OPERATOR", "training steps"),
    (id(_MODEL), 25): ("E_GRAPH_OPERATOR", "functions of its own"),
    (id(_ATTRIBUTE), 6): ("E_GRAPH_OPERATOR", "a graph within a node"),
    (id(_ATTRIBUTE), 11): ("E_GRAPH_OPERATOR", "graphs within a node"),
    (id(_TENSOR), 6): ("E_GRAPH_OPERATOR", "weights of text"),
    (id(_TENSOR), 13): ("E_GRAPH_DATA", "data outside the graph"),
}


def check(graph: bytes) -> None:
    """Refuse the bytes of a graph that hold anything but one network of known operators and its weights.

    It bounds what the engine reads, not the memory and the time that an allowed network takes.

    Raises:
        BundleInvalid: ``E_GRAPH_FORM`` for bytes that are no whole ONNX graph or contradict themselves,
            ``E_GRAPH_OPERATOR`` for operators, functions, inner graphs or versions that are not known,
            ``E_GRAPH_DATA`` for weights outside the graph.
    """
    reader = _Reader()
    model = reader.message(memoryview(graph), _MODEL, "the model")
    if not model["graph"]:
        raise _malformed("no nodes at all")
    if (version := _one(model, "ir_version", 0)) not in IR_VERSIONS:
        raise _refused("E_GRAPH_OPERATOR", f"IR version {version}, known are {_span(IR_VERSIONS)}")
    _check_opsets([reader.message(each, _OPSET, "an opset") for each in model["opset"]])
    for each in model["metadata"]:
        reader.message(each, _ENTRY, "the metadata")
    _check_graph(reader, reader.message(model["graph"][0], _GRAPH, "the graph"))


def _check_opsets(opsets: Sequence["_Message"]) -> None:
    found = [(_text_of(_one(each, "domain", b"")), _one(each, "version", 0)) for each in opsets]
    if len(found) != 1 or found[0][0] not in ("", "ai.onnx") or found[0][1] not in OPSETS:
        raise _refused(
            "E_GRAPH_OPERATOR", f"operator sets {found}, known is ONNX's own in {_span(OPSETS)} alone"
        )


def _check_graph(reader: "_Reader", graph: "_Message") -> None:
    """One input, one output, and each tensor made once, before it is used."""
    if not 0 < len(graph["node"]) <= MAX_NODES:
        raise _malformed(f"{len(graph['node'])} nodes, it may have 1 to {MAX_NODES}")
    if (len(graph["input"]), len(graph["output"])) != (1, 1):
        counts = f"{len(graph['input'])} inputs and {len(graph['output'])} outputs"
        raise _malformed(f"{counts}, it has to have one of each")
    known: set[str] = set()
    for each in graph["input"]:
        _add(known, _check_value(reader, each, FLOAT))
    for each in graph["initializer"]:
        _add(known, _check_tensor(reader, each))
    for each in graph["node"]:
        _check_node(reader, reader.message(each, _NODE, "a node"), known)
    for each in graph["output"]:
        if _check_value(reader, each, FLOAT) not in known:
            raise _malformed("an output that no node makes")
    for each in graph["value_info"]:
        _check_value(reader, each)


def _check_node(reader: "_Reader", node: "_Message", known: set[str]) -> None:
    operator, domain = _text_of(_one(node, "op_type", b"")), _text_of(_one(node, "domain", b""))
    if operator not in OPERATORS or domain not in ("", "ai.onnx"):
        full = f"{domain}.{operator}" if domain else operator
        raise _refused("E_GRAPH_OPERATOR", f"the operator {full[:60]!r}, which is not allowed")
    for each in node["attribute"]:
        attribute = reader.message(each, _ATTRIBUTE, f"an attribute of {operator}")
        numbers = [*attribute["i"], *attribute["ints"]]
        if any(abs(number) > MAX_NUMBER for number in numbers):
            raise _malformed(f"an attribute of {operator} beyond {MAX_NUMBER}")
        for tensor in attribute["t"]:
            _check_tensor(reader, tensor)
    for each in node["input"]:
        name = _text_of(each)
        if name and name not in known:  # an input that is left out has an empty name
            raise _malformed(f"a node {operator} that reads {name[:60]!r} before it is made")
    for each in node["output"]:
        if name := _text_of(each):
            _add(known, name)


def _check_tensor(reader: "_Reader", data: memoryview) -> str:
    """A tensor whose dimensions are those of its data, which it holds itself; its name."""
    tensor = reader.message(data, _TENSOR, "a tensor")
    name = _text_of(_one(tensor, "name", b""))
    kind = _one(tensor, "type", 0)
    if _one(tensor, "location", 0) != 0:
        raise _refused("E_GRAPH_DATA", f"data of tensor {name[:60]!r} outside the graph")
    if kind not in ITEM_BYTES:
        raise _refused("E_GRAPH_OPERATOR", f"tensor {name[:60]!r} of type {kind}, which is not allowed")
    if len(tensor["dims"]) > MAX_DIMS or any(size < 0 for size in tensor["dims"]):
        raise _malformed(f"tensor {name[:60]!r} with a negative dimension, or too many")
    claimed = prod(tensor["dims"])
    loose = len(tensor[LOOSE.get(kind, "int32_data")])
    held = loose * ITEM_BYTES[kind] + len(_one(tensor, "raw", b""))
    filled = [field for field in ("float_data", "int32_data", "int64_data", "raw") if tensor[field]]
    if claimed * ITEM_BYTES[kind] != held or len(filled) > 1:
        raise _malformed(f"tensor {name[:60]!r} that claims {claimed} numbers and holds {held} bytes")
    return name


def _check_value(reader: "_Reader", data: memoryview, kind: int | None = None) -> str:
    """A tensor's name, type and shape, none of which may be more than that; its name."""
    value = reader.message(data, _VALUE, "a value")
    name = _text_of(_one(value, "name", b""))
    for each in value["type"]:
        for tensor in reader.message(each, _TYPE, f"the type of {name[:60]!r}")["tensor"]:
            described = reader.message(tensor, _TENSOR_TYPE, "a type")
            found = _one(described, "type", 0)
            if found not in ITEM_BYTES or found != (kind or found):
                raise _malformed(f"value {name[:60]!r} of type {found}")
            for shape in described["shape"]:
                for dim in reader.message(shape, _SHAPE, "a shape")["dim"]:
                    reader.message(dim, _DIM, "a dimension")
            kind = None
    if kind is not None:
        raise _malformed(f"value {name[:60]!r} without a type")
    return name


def _add(known: set[str], name: str) -> None:
    if not name or name in known:
        raise _malformed(f"two tensors called {name[:60]!r}" if name else "a tensor without a name")
    known.add(name)


class _Message(dict[str, list[Any]]):
    """Field name -> its values, in order: numbers or pieces of the file; empty where there is none."""

    def __missing__(self, name: str) -> list[Any]:
        return []


class _Reader:
    """Protobuf, field by field, as long as there are not too many."""

    def __init__(self) -> None:
        self._left = MAX_PARTS

    def message(self, data: memoryview, fields: Mapping[int, _Field], what: str) -> _Message:
        found = _Message()
        at = 0
        while at < len(data):
            self._left -= 1
            if self._left < 0:
                raise _malformed(f"more than {MAX_PARTS} parts")
            tag, at = _varint(data, at)
            if (id(fields), tag >> 3) in _FORBIDDEN:
                raise _refused(*_FORBIDDEN[id(fields), tag >> 3])
            field = fields.get(tag >> 3)
            if field is None:
                raise _malformed(f"{what} with an unknown field {tag >> 3}")
            # A second value would replace the first one for one reader and not for another.
            if field.name in found and not field.many:
                raise _malformed(f"{what} with two fields {field.name}")
            values, at = self._values(data, at, tag & 7, field)
            found.setdefault(field.name, []).extend(values)
        return found

    def _values(self, data: memoryview, at: int, wire: int, field: _Field) -> tuple[list[Any], int]:
        match field.kind, wire:
            case "number", 0:
                number, at = _varint(data, at)
                return [_signed(number)], at
            case "fixed", 5:
                return [_cut(data, at, 4)], at + 4
            case (("bytes" | "number" | "fixed"), 2):
                size, at = _varint(data, at)
                piece = _cut(data, at, size)
                if field.kind == "bytes":
                    return [piece], at + size
                if not field.many or size > MAX_LOOSE:
                    raise _malformed(f"{size} bytes in the field {field.name}")
                if field.kind == "fixed":
                    return [_cut(piece, n, 4) for n in range(0, size, 4)], at + size
                return list(self._packed(piece)), at + size
            case _:
                raise _malformed(f"a field {field.name} of wire type {wire}")

    def _packed(self, piece: memoryview) -> Iterator[int]:
        at = 0
        while at < len(piece):
            number, at = _varint(piece, at)
            yield _signed(number)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for n, byte in enumerate(data[at : at + 10]):
        number |= (byte & 127) << 7 * n
        if byte < 128:
            if number >> 64:
                break
            return number, at + n + 1
    raise _malformed("a number that does not end")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _cut(data: memoryview, at: int, size: int) -> memoryview:
    if size > len(data) - at:
        raise _malformed("a part that is longer than the file")
    return data[at : at + size]


def _one(message: _Message, name: str, default: Any) -> Any:  # noqa: ANN401  (a number or a piece)
    values = message[name]
    return values[0] if values else default


def _text_of(data: bytes | memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise _malformed("a name that is not UTF-8") from error


def _span(versions: range) -> str:
    return f"{versions.start} to {versions.stop - 1}"


def _malformed(what: str) -> BundleInvalid:
    return _refused("E_GRAPH_FORM", what)


def _refused(code: str, what: str) -> BundleInvalid:
    return BundleInvalid(
        code, f"the graph has {what}.", "Do not use the bundle; export the model again with brainseg-export."
    )
