"""PyTorch: stacks of plain layers as safetensors, any other module as an exported program.

Of PyTorch's own formats none is safe to load from anybody: ``torch.export.load`` unpickles and
hands expressions of the file to SymPy, which evaluates them (PyTorch's documentation says never to
load an untrusted program), and a class that a file names would have to be imported. So ``safe`` is
only what needs neither: layers of ``torch.nn`` from a list, built here, and numbers for them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from everloop.core.model import FormatTier
from everloop.errors import InvalidInput, MissingExtra
from everloop.registry.files import (
    ABOUT,
    about,
    check_scores,
    file_of,
    made_by,
    names_of,
    options_of,
)
from everloop.registry.predictor import Floats, Predictor

__all__ = ["TorchFlavor"]

_WEIGHTS, _PROGRAM = "model.safetensors", "model.pt2"
_MOST_LAYERS, _DEEPEST = 10_000, 16

#: Layers of ``torch.nn`` that hold numbers only, and the arguments that make another like one.
_LAYERS: dict[str, tuple[str, ...]] = {
    "BatchNorm1d": ("num_features", "eps", "momentum", "affine", "track_running_stats"),
    "Dropout": ("p",),
    "ELU": ("alpha",),
    "Flatten": ("start_dim", "end_dim"),
    "GELU": ("approximate",),
    "Hardtanh": ("min_val", "max_val"),
    "Identity": (),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "LeakyReLU": ("negative_slope",),
    "Linear": ("in_features", "out_features"),
    "LogSigmoid": (),
    "ReLU": (),
    "SELU": (),
    "SiLU": (),
    "Sigmoid": (),
    "Softmax": ("dim",),
    "Softplus": ("beta", "threshold"),
    "Tanh": (),
}


class TorchFlavor:
    """A ``torch.nn.Module`` in evaluation mode, or an ``ExportedProgram``."""

    name = "torch"
    libraries = ("torch", "safetensors")

    def accepts(self, model: object) -> bool:
        kinds = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__}
        return made_by(model, "torch") and not kinds.isdisjoint(
            {"torch.nn.modules.module.Module", "torch.export.exported_program.ExportedProgram"}
        )

    def pack(self, model: Any, names: Sequence[str]) -> dict[str, bytes]:
        torch = _torch()
        layers = _layers_of(model)
        width = len(names) or _width_of(model)
        if layers is not None:
            import safetensors.torch

            tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
            files = {_WEIGHTS: safetensors.torch.save(tensors)}
            function = _scores(_from_layers(layers, files[_WEIGHTS]))
        else:
            files = {_PROGRAM: _exported(model, width)}
            function = _scores(torch.export.load(io.BytesIO(files[_PROGRAM])).module())
        if width:
            check_scores(function, width, "PyTorch")
        own = tuple(names) or tuple(f"x{place}" for place in range(width))
        options = {} if layers is None else {"layers": layers}
        return {**files, ABOUT: about(own, width=width, library="torch", options=options)}

    def tier(self, files: dict[str, bytes]) -> FormatTier:
        return "safe" if _WEIGHTS in files and _PROGRAM not in files else "needs-trust"

    def load(self, files: dict[str, bytes]) -> Predictor:
        torch = _torch()
        if _PROGRAM not in files:
            module = _from_layers(options_of(files).get("layers"), file_of(files, _WEIGHTS))
            return Predictor(names_of(files), _scores(module))
        try:
            program = torch.export.load(io.BytesIO(files[_PROGRAM]))
        except Exception as error:  # it runs what the file says, which may raise anything
            raise InvalidInput(f"the file is no exported program: {error}") from error
        return Predictor(names_of(files), _scores(program.module()))


def _torch() -> Any:
    try:
        import safetensors  # noqa: F401 - both or neither, said before anything is read
        import torch
        import torch.export
    except ModuleNotFoundError as error:
        raise MissingExtra.of("torch", "a PyTorch model") from error
    return torch


def _scores(module: Any) -> Callable[[Floats], Floats]:
    torch = _torch()
    dtype = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), None)
    kind = np.float64 if dtype == torch.float64 else np.float32

    def scores(matrix: Floats) -> Floats:
        with torch.inference_mode():
            found = module(torch.from_numpy(np.ascontiguousarray(matrix, dtype=kind)))
        values = np.asarray(found.detach().cpu().numpy(), dtype=np.float64)
        return values.reshape(-1) if values.shape[1:] == (1,) else values

    return scores


# --- any module -----------------------------------------------------------------------------------


def _width_of(model: Any) -> int:
    modules = model.modules() if hasattr(model, "modules") else ()
    return next((int(m.in_features) for m in modules if hasattr(m, "in_features")), 0)


def _exported(model: Any, width: int) -> bytes:
    torch = _torch()
    program = model
    if not isinstance(model, torch.export.ExportedProgram):
        if not width:
            raise InvalidInput(
                f"{type(model).__name__} does not say how many features it takes",
                hint="give names=[...] or a signature",
            )
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        rows = torch.zeros(2, width, dtype=dtype)
        was_training = model.training
        try:
            program = torch.export.export(
                model.eval(), (rows,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
            )
        except Exception as error:  # it traces the user's own code, which may raise anything
            raise InvalidInput(
                f"{type(model).__name__} cannot be exported: {error}",
                hint="export it yourself (torch.export), or give a function that calls it",
            ) from error
        finally:
            model.train(was_training)
    made = io.BytesIO()
    torch.export.save(program, made)
    return made.getvalue()


# --- plain layers ---------------------------------------------------------------------------------


def _layers_of(model: Any) -> Any:
    """A layer as its name and arguments, a stack as a list; None if one of them is not plain."""
    torch = _torch()
    name = type(model).__name__
    if _has_hooks(model) or type(model) is not getattr(torch.nn, name, None):
        return None
    if name == "Sequential":
        found = [_layers_of(layer) for layer in model]
        numbered = [str(place) for place in range(len(found))]
        plain = None not in found and [key for key, _ in model.named_children()] == numbered
        return found if plain else None
    if name not in _LAYERS:
        return None
    arguments = {key: getattr(model, key) for key in _LAYERS[name]}
    if name in ("Linear", "LayerNorm"):
        arguments["bias"] = getattr(model, "bias", None) is not None
    return {"layer": name, **arguments}


def _has_hooks(model: Any) -> bool:
    """Whether functions of the user's run as the module does."""
    return any(getattr(model, name, None) for name in ("_forward_hooks", "_forward_pre_hooks"))


def _from_layers(layers: Any, data: bytes) -> Any:
    """The module of plain layers with the numbers of a safetensors file."""
    torch = _torch()
    import safetensors
    import safetensors.torch

    try:
        # Without memory at first: what the layers claim to hold must be in the file.
        with torch.device("meta"):
            module = _built(torch, layers, 0)
        module.load_state_dict(safetensors.torch.load(data), strict=True, assign=True)
    except (safetensors.SafetensorError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise InvalidInput(f"the file is no PyTorch model of plain layers: {error}") from error
    return module.eval()


def _built(torch: Any, layers: Any, depth: int) -> Any:
    if isinstance(layers, list) and depth < _DEEPEST and len(layers) <= _MOST_LAYERS:
        return torch.nn.Sequential(*(_built(torch, layer, depth + 1) for layer in layers))
    name = layers.get("layer") if isinstance(layers, dict) else None
    if name not in _LAYERS:
        raise ValueError(f"{str(name)[:40]!r} is no plain layer")
    arguments = {key: value for key, value in layers.items() if key != "layer"}
    if not arguments.keys() <= {*_LAYERS[name], "bias"}:
        raise ValueError(f"{name} with other arguments")
    return getattr(torch.nn, name)(**arguments)
