"""Predictor: a loaded model behind one method, whatever library made it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from everloop.errors import InvalidInput

__all__ = ["Floats", "Predictor"]

Floats = npt.NDArray[np.float64]


class Predictor:
    """One score per row: the probability of the positive class, or a regression value.

    Uses one thread for each call where the library lets us choose: workers share the cores.

    Args:
        names: The features in the order of the columns; empty when the model does not know them.
        function: ``(n, k)`` float64 to ``(n,)`` scores.
    """

    __slots__ = ("_function", "names")

    def __init__(self, names: tuple[str, ...], function: Callable[[Floats], Floats]) -> None:
        self.names = names
        self._function = function

    def predict(self, matrix: Floats) -> Floats:
        """Score rows.

        Args:
            matrix: Shape ``(n, k)``, float64, columns in the order of ``names``; NaN is missing.

        Returns:
            Shape ``(n,)``, float64.

        Raises:
            InvalidInput: If the shape is not that, or the model gave another number of scores.
        """
        if matrix.ndim != 2 or (self.names and matrix.shape[1] != len(self.names)):
            wanted = f"(n, {len(self.names)})" if self.names else "(n, k)"
            raise InvalidInput(f"the model takes a matrix {wanted}, got {matrix.shape}")
        if matrix.shape[0] == 0:
            return np.empty(0)
        scores = np.asarray(self._function(matrix), dtype=np.float64)
        if scores.shape != (matrix.shape[0],):
            raise InvalidInput(
                f"the model gave scores of shape {scores.shape} for {matrix.shape[0]} rows",
                hint="a model gives one number per row",
            )
        return scores
