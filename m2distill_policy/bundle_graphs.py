"""Check an ONNX graph without the onnx package: is it self-contained, and small enough to be loaded?

A graph can keep its weights in other files ("external data"), which ONNX Runtime looks for in the working directory. A
graph with such weights is refused before ONNX Runtime loads it. To find them, this module parses the graph's protobuf
encoding (https://protobuf.dev/programming-guides/encoding/) and visits every field that can contain a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Largest number of nodes of a graph, including its subgraphs and functions; a policy has some hundreds. The limit is
#: needed because ONNX Runtime holds the interpreter's lock while it parses the nodes.
MOST_NODES = 10_000
#: Largest number of fields in all messages of a graph, and largest depth of nested messages.
MOST_FIELDS = 200_000
DEEPEST = 24

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
#: Type of a message -> number of a field -> type of the message in that field. Only fields that can contain a tensor.
_MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
#: Numbers of a field of a node (``_OP_TYPE``) and of two fields of a tensor.
_OP_TYPE = 4
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


class GraphError(ValueError):
    """A graph is not ONNX, not self-contained or too large. The message says which, without naming the file."""


def check_graph(data: bytes) -> None:
    """Check that ``data`` is one self-contained ONNX model of bounded size. ONNX Runtime checks the nodes.

    Raises:
        GraphError: ``data`` is not such a model.
    """
    if data[4:8] == b"ORTM":  # ONNX Runtime would read it as its own format
        raise GraphError("it is in ONNX Runtime's own format; the ONNX format is needed")
    fields = nodes = 0
    waiting = [("Model", 0, len(data), 0)]
    while waiting:
        message, start, end, depth = waiting.pop()
        if depth > DEEPEST:
            raise GraphError(f"its messages are nested more than {DEEPEST} deep")
        nodes += message == "Node"
        if nodes > MOST_NODES:
            raise GraphError(f"it has more than {MOST_NODES} nodes")
        inner = _MESSAGES[message]
        for number, kind, first, last in _fields(data, start, end):
            fields += 1
            if fields > MOST_FIELDS:
                raise GraphError(f"it has more than {MOST_FIELDS} fields")
            if kind == _BYTES and number in inner:
                waiting.append((inner[number], first, last, depth + 1))
            elif message == "Node" and number == _OP_TYPE and data[first:last] == b"EPContext":
                raise GraphError("it was compiled for one device (EPContext), whose files are not part of the bundle")
            elif message == "Tensor" and number == _EXTERNAL_DATA:
                raise GraphError("its weights are in other files (external data), which are not part of the bundle")
            elif message == "Tensor" and number == _DATA_LOCATION and any(byte & 0x7F for byte in data[first:last]):
                raise GraphError("it keeps weights outside the graph (data_location)")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (number, wire type, start, end) of each field of one message; the value is ``data[start:end]``."""
    while at < end:
        tag, at = _varint(data, at, end, 5)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise GraphError(f"it is damaged: a field of number {number}")
        first = at
        if kind == _VARINT:
            _, at = _varint(data, at, end, 10)
        elif kind == _BYTES:
            size, first = _varint(data, at, end, 5)
            at = first + size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise GraphError(f"it is damaged: a field of wire type {kind}")
        if at > end:
            raise GraphError("it is damaged: a field is longer than its message")
        yield number, kind, first, at


def _varint(data: bytes, at: int, end: int, most: int) -> tuple[int, int]:
    """Read a varint of up to ``most`` bytes at position ``at``. Return the number and the position after it."""
    value = shift = 0
    for place in range(at, min(end, at + most)):
        byte = data[place]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place + 1
        shift += 7
    raise GraphError("it is damaged: a number does not end")
