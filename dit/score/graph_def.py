"""Constants out of a frozen TensorFlow 1 graph, without TensorFlow: just enough of the protocol buffer wire format.

    GraphDef.node = 1 · NodeDef.name = 1, op = 2, attr = 5 (map: key = 1, value = 2) · AttrValue.tensor = 8
    TensorProto.dtype = 1 (1 is float32), tensor_shape = 2, tensor_content = 4, float_val = 5
    TensorShapeProto.dim = 2 · Dim.size = 1

Field numbers: TensorFlow's `graph.proto`, `node_def.proto`, `attr_value.proto`, `tensor.proto`, `tensor_shape.proto`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dit.errors import UserError

_FLOAT32 = 1
_MOST_BYTES = 2**28
_MOST_FIELDS = 2**20
"""Of one message; the published graph has 1,016 nodes, none of many fields."""


def read_constants(path: Path) -> dict[str, np.ndarray]:
    """Node name -> array, of every float32 `Const` node.

    Raises:
        UserError: if the file is not a graph, or is cut short.
    """
    constants = {}
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} is not a file of at most {_MOST_BYTES:,} bytes: expected a frozen TensorFlow graph")
    try:
        for number, node in _fields(memoryview(path.read_bytes())):
            if number != 1:
                continue
            fields = list(_fields(_span(node)))
            if _text(fields, 2) == "Const" and (value := _constant(fields)) is not None:
                constants[_text(fields, 1)] = value
    except (ValueError, IndexError, OverflowError) as error:
        raise UserError(f"{path} is not a whole TensorFlow graph ({error}): copy or download it again") from error
    if not constants:
        raise UserError(
            f"{path} holds no float32 constants: expected a frozen TensorFlow graph (classify_image_graph_def.pb)"
        )
    return constants


def _constant(node: list[tuple[int, memoryview | int]]) -> np.ndarray | None:
    for number, attribute in node:
        if number != 5:
            continue
        entry = list(_fields(_span(attribute)))
        if _text(entry, 1) == "value":
            for kind, tensor in _fields(_span(dict(entry)[2])):
                if kind == 8:
                    return _tensor(list(_fields(_span(tensor))))
    return None


def _tensor(fields: list[tuple[int, memoryview | int]]) -> np.ndarray | None:
    if dict(fields).get(1) != _FLOAT32:
        return None
    shape: list[int] = []
    content: list[bytes] = []
    for number, value in fields:
        if number == 2:
            dims = (dict(_fields(_span(dim))) for kind, dim in _fields(_span(value)) if kind == 2)
            shape = [size for dim in dims if isinstance(size := dim.get(1, 0), int)]
        elif number in (4, 5):  # raw bytes, or values packed or one by one, of which both are little-endian float32
            content.append(bytes(_span(value)))
    values = np.frombuffer(b"".join(content), "<f4")
    if values.size == 1 and 1 < math.prod(shape) <= _MOST_FIELDS * 4:  # one value stands for all
        values = np.broadcast_to(values, shape)
    return values.reshape(shape).copy()


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Field number and value of each field: bytes for lengths and fixed widths, an integer for varints."""
    at = count = 0
    while at < len(data):
        count += 1
        if count > _MOST_FIELDS:
            raise ValueError(f"a message of more than {_MOST_FIELDS:,} fields")
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == 2:
            width, at = _varint(data, at)
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire}")
        if at + width > len(data):
            raise ValueError("it ends within a field")
        yield key >> 3, data[at : at + width]
        at += width


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _span(value: memoryview | int) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _text(fields: list[tuple[int, memoryview | int]], number: int) -> str:
    return next((bytes(_span(value)).decode("utf8") for field, value in fields if field == number), "")
