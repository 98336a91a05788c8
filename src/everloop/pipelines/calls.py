"""One call of a step, made ready: its arguments and its key."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from everloop.core.pipeline import StepKey
from everloop.pipelines.code import CodePrint, fingerprint
from everloop.pipelines.definition import Step, environment_parts
from everloop.pipelines.values import Encoder

__all__ = ["Call", "prepare"]

#: Text of a parameter up to this length is shown in the key as it is.
_SHOWN = 80

_encode = msgspec.json.Encoder().encode


class Call(NamedTuple):
    """A call of a step.

    Attributes:
        bound: Arguments by name.
        digest: The key.
        salt: Of the run and the number of the call, if the result serves this run alone.
        tables: Tables among the arguments, with the path of each.
        folder: Where relative paths lead to; empty if that folder is gone.
        environment: Variables that the key names, with their values; None is unset.
    """

    step: Step
    bound: dict[str, Any]
    digest: str
    began: datetime
    prints: list[CodePrint]
    texts: list[tuple[str, str]]
    salt: dict[str, str]
    faults: list[tuple[str, str]]
    tables: list[tuple[str, Any]]
    folder: str
    environment: tuple[tuple[str, str | None], ...]

    @property
    def is_shared(self) -> bool:
        """Whether other runs may use the result."""
        return not self.salt

    def key(self) -> StepKey:
        """The key with all its parts, to be stored."""
        parts: dict[str, str] = {}
        for code in self.prints:
            parts |= code.parts
        for name, text in self.texts:
            shown = text if len(text) <= _SHOWN else blake3(text.encode()).hexdigest()[:32]
            parts[f"input:{name}" if '{"$' in text else f"param:{name}"] = shown
        parts |= environment_parts(self.step)
        if self.step.version:
            parts["version"] = self.step.version
        parts |= self.salt
        notes = [note for code in self.prints for note in code.notes]
        notes += [f"argument {path}: {message}; not cached" for path, message in self.faults]
        return StepKey(step=self.step.name, digest=self.digest, parts=parts, notes=tuple(notes))


def prepare(step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], run: str, nth: int) -> Call:
    """Bind the arguments and compute the key.

    Args:
        step: The step.
        args: Positional arguments.
        kwargs: Arguments by name.
        run: Id of the run.
        nth: The how manieth call of the step in this run it is: a step that is not cached is still
            not executed twice by one run, for a resume finds its n-th call again.

    Raises:
        InvalidInput: If an argument is missing, unknown or of the wrong type.
    """
    bound = step.signature.bind(args, kwargs)
    began = datetime.now(UTC)
    code = fingerprint(step.function)
    encoder = Encoder(files=True)
    texts = [(name, encoder.text(value, name).decode()) for name, value in bound.items()]
    prints = [code, *(fingerprint(cls) for cls in dict.fromkeys(encoder.classes))]
    is_cached = step.cache and not encoder.faults and all(p.cacheable for p in prints)
    salt = {} if is_cached else {"run": run, "call": str(nth)}
    return Call(
        step,
        bound,
        _digest(step, prints, texts, salt),
        began,
        prints,
        texts,
        salt,
        encoder.faults,
        encoder.tables,
        _folder(),
        tuple(
            (name, os.environ.get(name))
            for name in (*step.environment, *(name for p in prints for name in p.variables))
        ),
    )


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _digest(
    step: Step,
    prints: Iterable[CodePrint],
    texts: list[tuple[str, str]],
    salt: dict[str, str],
) -> str:
    whole = ([p.digest for p in prints], texts, step.version, environment_parts(step), salt)
    return blake3(_encode(whole)).hexdigest()
