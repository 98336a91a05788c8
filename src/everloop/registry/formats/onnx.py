"""ONNX, run by onnxruntime on one thread: a graph of operators, no code.

A model may name files beside it that hold its weights; such a file could be any on the machine, so
a model that does is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from everloop.core.model import FormatTier
from everloop.errors import InvalidInput, MissingExtra
from everloop.registry.files import ABOUT, about, file_of, made_by, names_of
from everloop.registry.predictor import Floats, Predictor

__all__ = ["OnnxFlavor", "OnnxModel"]

_MODEL = "model.onnx"
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class OnnxFlavor:
    """A ``ModelProto``, its bytes, or an ``InferenceSession``."""

    name = "onnx"
    libraries = ("onnx", "onnxruntime")

    def accepts(self, model: object) -> bool:
        # The bytes of a model begin with its first field, the version of the format.
        return (
            (made_by(model, "onnx") and hasattr(model, "SerializeToString"))
            or (made_by(model, "onnxruntime") and hasattr(model, "get_modelmeta"))
            or (isinstance(model, bytes) and model[:1] == b"\x08")
        )

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        data = _bytes_of(model)
        loaded = OnnxModel(data)
        described = about(names or loaded.names, width=len(loaded.names), library="onnx")
        return {_MODEL: data, ABOUT: described}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe"

    def load(self, files: dict[str, bytes]) -> Predictor:
        return Predictor(names_of(files), OnnxModel(file_of(files, _MODEL)))


def _bytes_of(model: Any) -> bytes:
    if isinstance(model, bytes):
        return model
    if hasattr(model, "SerializeToString"):
        return bytes(model.SerializeToString())
    # A session keeps what it was made of, but has no public way to tell.
    if getattr(model, "_model_bytes", None):
        return bytes(model._model_bytes)
    if getattr(model, "_model_path", None):
        return Path(model._model_path).read_bytes()
    raise InvalidInput(
        "this InferenceSession does not tell its model", hint="give the bytes of the ONNX file"
    )


class OnnxModel:
    """A session over a matrix of numbers, called as a function that gives one score per row.

    It takes one input of shape ``(n, k)``, or a column each in several. Of its outputs the first
    counts that has two columns or is a map of two classes (the second is taken: a probability),
    else the first of one number for each row, fractions before whole numbers.

    Args:
        data: The file.

    Raises:
        InvalidInput: If it is no such model.
        MissingExtra: If onnxruntime or onnx is not installed.

    Attributes:
        names: Of the features: of the inputs where each is a column, else ``x0``, ``x1``...
    """

    def __init__(self, data: bytes) -> None:
        _check(data)
        self._session = _session(data)
        self._inputs = [(found.name, _dtype(found)) for found in self._session.get_inputs()]
        shapes = [found.shape for found in self._session.get_inputs()]
        if len(shapes) == 1 and len(shapes[0]) == 2 and isinstance(shapes[0][1], int):
            self.names = tuple(f"x{place}" for place in range(shapes[0][1]))
        elif shapes and all(shape[1:] in ([], [1]) and shape for shape in shapes):
            self.names = tuple(name for name, _ in self._inputs)
        else:
            raise InvalidInput(f"the ONNX model takes shapes {shapes}, not rows of numbers")
        self._output, self._pick = self._find_output()

    def __call__(self, matrix: Floats) -> Floats:
        """Scores of shape ``(n,)``."""
        found = self._session.run([self._output], self._feed(matrix))[0]
        return self._pick(found)

    def _feed(self, matrix: Floats) -> dict[str, Any]:
        if len(self._inputs) == 1:
            name, dtype = self._inputs[0]
            return {name: np.ascontiguousarray(matrix, dtype=dtype)}
        return {
            name: np.ascontiguousarray(matrix[:, [place]], dtype=dtype)
            for place, (name, dtype) in enumerate(self._inputs)
        }

    def _find_output(self) -> tuple[str, Callable[[Any], Floats]]:
        rows = 3  # so that no number of classes is taken for a number of rows
        try:
            found = self._session.run(None, self._feed(np.zeros((rows, len(self.names)))))
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise InvalidInput(f"the ONNX model takes no batch of {rows} rows: {error}") from error
        names = [output.name for output in self._session.get_outputs()]
        for fits, pick in _PICKS:
            for name, value in zip(names, found, strict=True):
                if fits(value, rows):
                    return name, pick
        raise InvalidInput(
            f"no output of the ONNX model ({', '.join(names)}) is one number for each row",
            hint="a model gives one score per row; of two classes, both probabilities",
        )


def _is_column(value: Any, rows: int) -> bool:
    shape = getattr(value, "shape", ())
    return shape in ((rows,), (rows, 1)) and value.dtype.kind in "fiu"


def _are_probabilities(value: Any, rows: int) -> bool:
    # Two columns that do not add up to one are two targets.
    return getattr(value, "shape", ()) == (rows, 2) and np.allclose(value.sum(axis=1), 1, atol=1e-3)


def _ravelled(value: Any) -> Floats:
    return np.asarray(value, dtype=np.float64).reshape(-1)


def _second(value: Any) -> Floats:
    return np.asarray(value[:, 1], dtype=np.float64)


def _second_of_maps(value: Any) -> Floats:
    return np.array([row[max(row)] for row in value], dtype=np.float64)


def _are_maps(value: Any, rows: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == rows
        and all(isinstance(row, dict) and len(row) == 2 for row in value)
    )


_PICKS: tuple[tuple[Callable[[Any, int], bool], Callable[[Any], Floats]], ...] = (
    (lambda value, rows: _are_probabilities(value, rows), _second),
    (_are_maps, _second_of_maps),
    (lambda value, rows: _is_column(value, rows) and value.dtype.kind == "f", _ravelled),
    (_is_column, _ravelled),
)


def _dtype(tensor: Any) -> Any:
    if tensor.type not in _DTYPES:
        raise InvalidInput(f"input {tensor.name!r} of the ONNX model is a {tensor.type}, no number")
    return _DTYPES[tensor.type]


def _session(data: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise InvalidInput(f"the file is no ONNX model that runs here: {error}") from error


def _check(data: bytes) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - both or neither, said before anything is read
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise MissingExtra.of("onnx", "an ONNX model") from error
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise InvalidInput(f"the file is no ONNX model: {error}") from error
    for message in _messages(model):
        if isinstance(message, onnx.TensorProto) and (
            message.data_location == onnx.TensorProto.EXTERNAL or message.external_data
        ):
            raise InvalidInput(
                f"the ONNX model wants tensor {message.name[:80]!r} from another file",
                hint="save it with the weights inside: onnx.save(..., save_as_external_data=False)",
            )


def _messages(message: Any) -> Iterator[Any]:
    """A message and all within it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in value if hasattr(value, "__len__") else (value,):
                yield from _messages(inner)
