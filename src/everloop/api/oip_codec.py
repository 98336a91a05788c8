"""Open Inference Protocol v2: the bytes of infer requests and answers, JSON and binary.

Knows tensors and nothing of models. Source: the protocol's REST specification and the binary
tensor data extension of Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from everloop.api.oip_body import parse_json
from everloop.core.interchange import OIP_DATATYPES
from everloop.core.schema import Field
from everloop.errors import Fault, InvalidInput
from everloop.serving.fields import FieldRules, Wrong
from everloop.serving.signature import checked_column

__all__ = ["InferRequest", "OutputTensor", "decode_infer", "encode_infer"]

Values = list[Any] | npt.NDArray[Any]

_WIRE: dict[str, str] = {
    "BOOL": "u1", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2",
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip

_JSON_RULES = {
    datatype: FieldRules(Field("value", kind))  # type: ignore[arg-type]
    for kind, datatype in OIP_DATATYPES.items()
    if kind not in ("binary", "timestamp", "date")
}

_LONGEST_ID = 250


@dataclass(slots=True)
class InferRequest:
    """A decoded request.

    Attributes:
        id: What the client called it, or empty.
        columns: Values of each input by name.
        rows: Entries of the inputs; 0 with no input.
        outputs: Names asked for and whether in binary; None means all.
        binary: Whether outputs that say nothing of it are answered in binary.
    """

    id: str
    columns: dict[str, Values]
    rows: int
    outputs: list[tuple[str, bool]] | None
    binary: bool


@dataclass(slots=True)
class OutputTensor:
    """One output of shape ``[n]``; BYTES are given as texts."""

    name: str
    datatype: str
    values: Sequence[Any] | npt.NDArray[Any]


def decode_infer(
    body: bytes, head_length: bytes | None, raw: frozenset[str] = frozenset()
) -> InferRequest:
    """Decode the body of an infer request.

    Args:
        body: Inflated.
        head_length: The header ``Inference-Header-Content-Length``, if any.
        raw: Inputs whose bytes are no text.

    Raises:
        InvalidInput: With every fault that can be told; paths are ``inputs.<name>[<row>]``.
    """
    if head_length is None:
        plain = _decode_plain(body)
        if plain is not None:
            return plain
    head, rest = _split(body, head_length)
    document = parse_json(head)
    faults: list[Fault] = []
    request_id = document.get("id", "")
    if not isinstance(request_id, str) or len(request_id) > _LONGEST_ID:
        faults.append(Fault("id", f"expected text of at most {_LONGEST_ID} characters"))
    parameters = _parameters(document, "parameters", faults)
    columns, rows = _inputs(document.get("inputs"), rest, raw, faults)
    binary = bool(parameters.get("binary_data_output", False))
    outputs = _outputs(document.get("outputs"), binary, faults)
    if faults:
        raise InvalidInput("the infer request is wrong", faults)
    return InferRequest(request_id, columns, rows, outputs, binary)


# The plain form, by far the commonest: JSON tensors, no parameters of their own, all outputs. It is
# decoded by types, and left to the careful reader below when anything is not as expected, so only
# that one has to find the words for what is wrong.


class _PlainTensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    shape: list[int]
    datatype: str
    data: list[float | int | bool | str | None]


class _PlainRequest(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_PlainTensor]
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, int | float | bool] | msgspec.UnsetType = msgspec.UNSET


_plain_decoder = msgspec.json.Decoder(_PlainRequest)


def _decode_plain(body: bytes) -> InferRequest | None:
    try:
        request = _plain_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    inputs = request.inputs
    columns: dict[str, Values] = {}
    rows = len(inputs[0].data) if inputs else 0
    # Two for each text: "inputs" and, per tensor, four keys, a name and a datatype.
    quotes = 2 + 12 * len(inputs)
    shapes = ([rows], [rows, 1])
    for tensor in inputs:
        rule = _JSON_RULES.get(tensor.datatype)
        data = tensor.data
        if rule is None or tensor.shape not in shapes or len(data) != rows:
            return None
        if tensor.datatype == "BYTES":
            quotes += 2 * rows
        try:
            column = [rule.item(data[0])] if rows == 1 else rule.vector(data)
        except Wrong:
            return None
        if column is None:
            return None
        columns[tensor.name] = column
    binary = False
    request_id = ""
    if request.id is not msgspec.UNSET:
        request_id = request.id
        quotes += 4
    if request.parameters is not msgspec.UNSET:
        quotes += 2 + 2 * len(request.parameters)
        binary = bool(request.parameters.get("binary_data_output", False))
    # A key that stands twice brings quotes of its own; so does an escaped one, which is no fault
    # but is for the careful reader to tell.
    if body.count(b'"') != quotes or len(columns) != len(inputs) or len(request_id) > _LONGEST_ID:
        return None
    return InferRequest(request_id, columns, rows, None, binary)


def _split(body: bytes, head_length: bytes | None) -> tuple[bytes, bytes]:
    if head_length is None:
        return body, b""
    if not head_length.isdigit() or len(head_length) > 12 or int(head_length) > len(body):
        message = "must be the length of the JSON head, at most that of the body"
        raise InvalidInput("the request is wrong", [("Inference-Header-Content-Length", message)])
    size = int(head_length)
    return body[:size], body[size:]


def _parameters(holder: dict[str, Any], path: str, faults: list[Fault]) -> dict[str, Any]:
    found = holder.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        faults.append(Fault(path, "expected an object"))
        return {}
    for name, value in found.items():
        if not isinstance(value, str | int | float):
            faults.append(Fault(f"{path}.{name[:64]}", "expected text, a number or true or false"))
    return found


def _inputs(
    tensors: Any, rest: bytes, raw: frozenset[str], faults: list[Fault]
) -> tuple[dict[str, Values], int]:
    if not isinstance(tensors, list):
        faults.append(Fault("inputs", "expected a list of tensors"))
        return {}, 0
    columns: dict[str, Values] = {}
    rows, offset, first = 0, 0, ""
    for position, tensor in enumerate(tensors):
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if not isinstance(name, str) or not name:
            faults.append(Fault(f"inputs[{position}]", "expected a tensor with a name"))
            continue
        path = f"inputs.{name[:64]}"
        if name in columns:
            faults.append(Fault(path, "given more than once"))
        count = _count(tensor, path, faults)
        size = _parameters(tensor, f"{path}.parameters", faults).get("binary_data_size")
        if size is None:
            columns[name] = _from_json(tensor, count, path, faults)
        else:
            columns[name], used = _from_binary(
                tensor, count, size, rest[offset:], path, name in raw, faults
            )
            offset += used
        if count is not None and not first:
            rows, first = count, name
        elif count is not None and count != rows:
            message = f"has {count} rows where {first[:64]} has {rows}"
            faults.append(Fault(f"{path}.shape", message))
    if not faults and offset != len(rest):
        faults.append(Fault("inputs", f"the binary sizes sum to {offset}, there are {len(rest)}"))
    return columns, rows


def _count(tensor: dict[str, Any], path: str, faults: list[Fault]) -> int | None:
    """Rows of a tensor of shape [n] or [n, 1]; None if it is wrong."""
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not shape
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        faults.append(Fault(f"{path}.shape", "expected a list of whole numbers from 0 up"))
        return None
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        faults.append(Fault(f"{path}.shape", "expected [n] or [n, 1]: one tensor for each field"))
        return None
    return int(shape[0])


def _from_json(tensor: dict[str, Any], count: int | None, path: str, faults: list[Fault]) -> Values:
    datatype, data = tensor.get("datatype"), tensor.get("data")
    rule = _JSON_RULES.get(datatype) if isinstance(datatype, str) else None
    if rule is None:
        what = "has no JSON form, send it in binary" if datatype in _WIRE else "is unknown"
        faults.append(Fault(f"{path}.datatype", f"this datatype {what}"))
        return []
    if not isinstance(data, list):
        faults.append(Fault(f"{path}.data", "expected a list"))
        return []
    if data and isinstance(data[0], list):
        if len(tensor.get("shape") or ()) != 2 or not all(
            isinstance(row, list) and len(row) == 1 for row in data
        ):
            faults.append(Fault(f"{path}.data", "is not nested as its shape says"))
            return []
        data = [row[0] for row in data]
    if count is not None and len(data) != count:
        faults.append(Fault(f"{path}.data", f"has {len(data)} elements, its shape says {count}"))
        return []
    if datatype == "BOOL":
        data = [bool(one) if type(one) is int and one in (0, 1) else one for one in data]
    return checked_column(rule, data, lambda _, row: f"{path}[{row}]", faults)


def _from_binary(
    tensor: dict[str, Any],
    count: int | None,
    size: Any,
    rest: bytes,
    path: str,
    raw: bool,
    faults: list[Fault],
) -> tuple[Values, int]:
    """The values and how many bytes of `rest` they took."""
    datatype = tensor.get("datatype")
    if "data" in tensor:
        faults.append(Fault(path, "has data and binary_data_size, expected one of them"))
    elif type(size) is not int or not 0 <= size <= len(rest):
        message = f"must be from 0 to the {len(rest)} bytes that are left"
        faults.append(Fault(f"{path}.parameters.binary_data_size", message))
    elif datatype == "BYTES":
        return _texts(rest[:size], count, path, raw, faults), size
    elif datatype not in _WIRE:
        faults.append(Fault(f"{path}.datatype", "this datatype is unknown"))
    elif count is not None:
        dtype = np.dtype(_WIRE[datatype])
        if count * dtype.itemsize == size:
            values = np.frombuffer(rest, dtype=dtype, count=count)
            return _widened(values, datatype, path, faults), size
        message = f"is {size}, its shape and datatype make {count * dtype.itemsize}"
        faults.append(Fault(f"{path}.parameters.binary_data_size", message))
    return [], size if type(size) is int and size > 0 else 0


def _widened(
    values: npt.NDArray[Any], datatype: str, path: str, faults: list[Fault]
) -> npt.NDArray[Any]:
    if datatype == "BOOL":
        if (values > 1).any():
            faults.append(Fault(path, "a BOOL is a byte of 0 or 1"))
        return values.astype(bool)
    if datatype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _texts(data: bytes, count: int | None, path: str, raw: bool, faults: list[Fault]) -> list[Any]:
    found: list[Any] = []
    offset = 0
    while offset + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if size > len(data) - offset:
            break
        found.append(data[offset : offset + size])
        offset += size
    if offset != len(data) or (count is not None and len(found) != count):
        faults.append(Fault(path, "its bytes are not as many elements as its shape says"))
        return []
    if raw:
        return found
    try:
        return [one.decode() for one in found]
    except UnicodeDecodeError:
        faults.append(Fault(path, "is no UTF-8 text"))
        return []


def _outputs(wanted: Any, binary: bool, faults: list[Fault]) -> list[tuple[str, bool]] | None:
    if wanted is None:
        return None
    if not isinstance(wanted, list):
        faults.append(Fault("outputs", "expected a list"))
        return None
    found: list[tuple[str, bool]] = []
    for position, one in enumerate(wanted):
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str):
            faults.append(Fault(f"outputs[{position}]", "expected an object with a name"))
            continue
        own = _parameters(one, f"outputs.{name[:64]}.parameters", faults)
        found.append((name, bool(own.get("binary_data", binary))))
    return found


def encode_infer(
    head: dict[str, Any], tensors: Sequence[tuple[OutputTensor, bool]]
) -> tuple[bytes, int | None]:
    """Encode an answer.

    Args:
        head: Everything but the outputs.
        tensors: Each with whether it travels in binary.

    Returns:
        The body, and the length of its JSON head if any tensor is binary.
    """
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, binary in tensors:
        rows = len(tensor.values)
        one: dict[str, Any] = {"name": tensor.name, "shape": [rows], "datatype": tensor.datatype}
        if binary:
            parts.append(_to_binary(tensor))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = tensor.values
        outputs.append(one)
    head["outputs"] = outputs
    encoded = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((encoded, *parts)), len(encoded)) if parts else (encoded, None)


def _to_binary(tensor: OutputTensor) -> bytes:
    if tensor.datatype != "BYTES":
        return np.ascontiguousarray(tensor.values, dtype=_WIRE[tensor.datatype]).tobytes()
    pack: Callable[[int], bytes] = struct.Struct("<I").pack
    texts = [text.encode() for text in tensor.values]
    return b"".join(pack(len(text)) + text for text in texts)
