"""What one example is: the scale in which networks see it, where answers are cut, and what people call it.

Shapes: `B` examples of a batch, `X` numbers of one in its own shape, `D` numbers of a row, `C` channels, `H` height,
`W` width.
"""

from __future__ import annotations  # data sets are prepared without PyTorch, whose import takes seconds

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shape = tuple[int, ...]
Output = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class ExampleKind(ABC):
    """The examples of a set are of one kind, which goes wherever their numbers go.

    Numbers have three scales: as they are stored in the prepared set, the one in which networks see them and errors
    are measured, and the one that users of a published model give and get.
    """

    noun: ClassVar[str]  # what several of them are called
    one: ClassVar[str]
    published_dtype: ClassVar[Literal["float32", "float64"]]  # of what users of a published model give and get

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """Of one example."""

    @property
    def size(self) -> int:
        """How many numbers one example has."""
        return prod(self.shape)

    @abstractmethod
    def output(self, asked: Output) -> Output:
        """The last layer of a decoder, where `model.output` asks for this one."""

    @abstractmethod
    def scaled(self, stored_BX: Tensor, dtype: torch.dtype) -> Tensor:
        """Stored numbers, in a tensor that nobody else uses, as networks see them."""

    @abstractmethod
    def given(self, stored_BX: Tensor) -> Tensor:
        """Stored numbers as users of a published model have them."""

    @abstractmethod
    def cut(self, x_BX: Tensor) -> Tensor:
        """A decoder's answer without what no example can be."""

    @abstractmethod
    def finite(self, x_BX: Tensor) -> Tensor:
        """The same, also without what is not a finite number."""

    @abstractmethod
    def from_published(self, given_BX: Tensor) -> Tensor:
        """What a user gives, as networks see it."""

    @abstractmethod
    def to_published(self, x_BX: Tensor) -> Tensor:
        """A decoder's answer as a user gets it."""


@dataclass(frozen=True)
class ImageKind(ExampleKind):
    """Images (C, H, W): stored as bytes, in [0, 1] everywhere else."""

    shape_CHW: tuple[int, int, int]

    noun = "images"
    one = "image"
    published_dtype = "float32"

    @property
    def shape(self) -> Shape:
        return self.shape_CHW

    def output(self, asked: Output) -> Output:
        return asked

    def scaled(self, stored_BX: Tensor, dtype: torch.dtype) -> Tensor:
        return stored_BX.to(dtype).div_(255)

    def given(self, stored_BX: Tensor) -> Tensor:
        return stored_BX.float().div_(255)

    def cut(self, x_BX: Tensor) -> Tensor:
        return x_BX.clamp(0, 1)

    def finite(self, x_BX: Tensor) -> Tensor:
        return self.cut(x_BX.nan_to_num(0, 1, 0))

    def from_published(self, given_BX: Tensor) -> Tensor:
        return given_BX

    def to_published(self, x_BX: Tensor) -> Tensor:
        return self.cut(x_BX)


@dataclass(frozen=True)
class RowKind(ExampleKind):
    """Rows of numbers (D,), a column each: stored and published in the user's units, as doubles; networks see them
    standardised, by mean and standard deviation of the training rows."""

    columns: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]  # 1 where all training rows have the same number

    noun = "rows"
    one = "row"
    published_dtype = "float64"

    @property
    def shape(self) -> Shape:
        return (len(self.columns),)

    def output(self, asked: Output) -> Output:
        return "linear"

    def scaled(self, stored_BX: Tensor, dtype: torch.dtype) -> Tensor:
        mean_D, std_D = self._statistics(stored_BX)
        return ((stored_BX.double() - mean_D) / std_D).to(dtype)  # of dates in seconds little is left in float32

    def given(self, stored_BX: Tensor) -> Tensor:
        return stored_BX.double()

    def cut(self, x_BX: Tensor) -> Tensor:
        return x_BX

    def finite(self, x_BX: Tensor) -> Tensor:
        return x_BX.nan_to_num(0, 0, 0)

    def from_published(self, given_BX: Tensor) -> Tensor:
        import torch

        return self.scaled(given_BX, torch.float32)

    def to_published(self, x_BX: Tensor) -> Tensor:
        mean_D, std_D = self._statistics(x_BX)
        return x_BX.double() * std_D + mean_D

    def _statistics(self, like_BX: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        mean_D, std_D = (
            torch.tensor(some, dtype=torch.float64, device=like_BX.device) for some in (self.mean, self.std)
        )
        return mean_D, std_D

    def record(self) -> dict[str, list[Any]]:
        """As plain values, which `recorded_kind` reads."""
        return {"columns": list(self.columns), "mean": list(self.mean), "std": list(self.std)}


def recorded_kind(shape: Sequence[int], rows: Mapping[str, Sequence[Any]] | None) -> ExampleKind:
    """The kind of examples of this shape, with the record of rows where they are rows."""
    if rows is None:
        channels, height, width = map(int, shape)
        return ImageKind((channels, height, width))
    return RowKind(tuple(map(str, rows["columns"])), tuple(map(float, rows["mean"])), tuple(map(float, rows["std"])))
