"""Which classes a classifier takes for which others.

Shapes: N images, C classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHOWN = 10  # classes that are told of, the worst first
MISTAKEN = 2  # classes that each of them is most often taken for


@dataclass(frozen=True, eq=False)
class Confusion:
    """How many images of each class, a row, got the label of each class, a column."""

    counts_CC: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, answers_N: Tensor, labels_N: Tensor, names: tuple[str, ...]) -> "Confusion":
        """Of labels below the number of names."""
        classes = len(names)
        counts_N = torch.bincount(labels_N * classes + answers_N, minlength=classes**2)
        return cls(counts_N.view(classes, classes).numpy(), names)

    @property
    def errors_C(self) -> NDArray[np.float64]:
        """The share of each class's images with another label; NaN for a class without images."""
        sizes_C = self.counts_CC.sum(1)
        errors_C = np.full(len(sizes_C), np.nan)
        np.divide(sizes_C - self.counts_CC.diagonal(), sizes_C, out=errors_C, where=sizes_C > 0)
        return errors_C

    @property
    def error(self) -> float:
        """The share of all images with another label than their own."""
        return float(1 - self.counts_CC.trace() / self.counts_CC.sum())

    def lines(self) -> list[str]:
        """The classes with errors, the worst first, each with what it is most often taken for."""
        errors_C = np.nan_to_num(self.errors_C)
        worst = [int(label) for label in np.argsort(-errors_C, kind="stable") if errors_C[label] > 0]
        lines = [self._line(label) for label in worst[:SHOWN]]
        return lines + ([f"and {len(worst) - SHOWN} more classes"] if len(worst) > SHOWN else [])

    def _line(self, label: int) -> str:
        answers_C = self.counts_CC[label].copy()
        size, answers_C[label] = answers_C.sum(), 0
        order = [int(answer) for answer in np.argsort(-answers_C, kind="stable")[:MISTAKEN] if answers_C[answer]]
        taken = ", ".join(f"{answers_C[answer]} for {self.names[answer]}" for answer in order)
        return f"{self.names[label]}: {self.errors_C[label]:.1%} of {size}, taken {taken}"
