"""Which classes a classifier takes for which others.

Shapes: N images, C classes, P pairs of a class and the label that images of it got.
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

    pairs_P2: NDArray[np.int64]  # in their order
    counts_P: NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, answers_N: Tensor, labels_N: Tensor, names: tuple[str, ...]) -> "Confusion":
        """Of labels below the number of names."""
        pairs_P2, counts_P = torch.stack([labels_N, answers_N], 1).unique(dim=0, return_counts=True)
        return cls(pairs_P2.numpy(), counts_P.numpy(), names)

    @property
    def counts_CC(self) -> NDArray[np.int64]:
        """The whole matrix, which is for a picture: of 10,000 classes it takes 800 MB."""
        counts_CC = np.zeros((len(self.names), len(self.names)), np.int64)
        counts_CC[tuple(self.pairs_P2.T)] = self.counts_P
        return counts_CC

    @property
    def sizes_C(self) -> NDArray[np.int64]:
        """The images of each class."""
        return self._sums(np.ones(len(self.counts_P), bool))

    @property
    def errors_C(self) -> NDArray[np.float64]:
        """The share of each class's images with another label; NaN for a class without images."""
        sizes_C = self.sizes_C
        errors_C = np.full(len(sizes_C), np.nan)
        np.divide(self._sums(self._wrong_P), sizes_C, out=errors_C, where=sizes_C > 0)
        return errors_C

    @property
    def error(self) -> float:
        """The share of all images with another label than their own."""
        return float(self.counts_P[self._wrong_P].sum() / self.counts_P.sum())

    @property
    def _wrong_P(self) -> NDArray[np.bool_]:
        wrong_P: NDArray[np.bool_] = self.pairs_P2[:, 0] != self.pairs_P2[:, 1]
        return wrong_P

    def _sums(self, some_P: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The images of these pairs by class, (C,)."""
        sums_C = np.zeros(len(self.names), np.int64)
        np.add.at(sums_C, self.pairs_P2[some_P, 0], self.counts_P[some_P])
        return sums_C

    def lines(self) -> list[str]:
        """The classes with errors, the worst first, each with what it is most often taken for."""
        errors_C = np.nan_to_num(self.errors_C)
        worst = [int(label) for label in np.argsort(-errors_C, kind="stable") if errors_C[label] > 0]
        lines = [self._line(label) for label in worst[:SHOWN]]
        return lines + ([f"and {len(worst) - SHOWN} more classes"] if len(worst) > SHOWN else [])

    def _line(self, label: int) -> str:
        own_P = self.pairs_P2[:, 0] == label
        size, taken_P = self.counts_P[own_P].sum(), own_P & self._wrong_P
        answers, counts = self.pairs_P2[taken_P, 1], self.counts_P[taken_P]
        order = np.argsort(-counts, kind="stable")[:MISTAKEN]
        taken = ", ".join(f"{counts[index]} for {self.names[answers[index]]}" for index in order)
        return f"{self.names[label]}: {self.errors_C[label]:.1%} of {size}, taken {taken}"
