"""What every reader hands over: blocks of pixels, or of rows, on their way into the cache, and what goes with them.

`N` images or rows of a set, `B` of a block, `C` channels, `H` height, `W` width, `D` columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.classes import OTHER_LABELS

if TYPE_CHECKING:
    import pyarrow as pa

Parts = NDArray[np.int8]  # a part of the set for each image, (N,)
TRAIN, VALIDATION, TEST, TO_BE_DRAWN = 0, 1, 2, -1
PART_NAMES = ("training", "validation", "test")

ValueRange = tuple[float, float]  # the smallest and the largest value


@dataclass(frozen=True)
class Origin:
    """Where images came from: the format, how many files, and which columns or arrays were read and which were not."""

    format: str  # as people call it: Parquet, IDX, pictures in folders
    files: int = 0
    used: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    parts: str = ""  # by what it gives the parts of the set; empty where it does not
    remarks: tuple[str, ...] = ()  # phrases on what was left out, and on what was done to images


@dataclass(frozen=True)
class ImageStream:
    """Images, or rows of numbers, on their way into the cache.

    `blocks` yields images_BCHW (uint8, 0 to 255, of one shape), or where there are `columns` rows_BD (float64, in the
    source's own units, finite), `count` in all; it raises UserError at a fault.
    `labels` has a value for each image as the source has it (whole numbers, text, dates, ...; null where there is
    none), and is None where the source has no labels. `parts` says for each image to which part it belongs
    (TO_BE_DRAWN where the source does not say), and is None where the source gives no parts. `value_range` is asked
    once all blocks were read: the smallest and largest pixel value before any scaling. `label_location` says for
    messages where the label of an image stands, and where all of them do (of None). `label_names` are the names of the
    labels 0, 1, ..., where those are numbers that the source has names for, and `other_labels` what to do where labels
    are no classes. `remarks`, asked at the end too, are phrases on what was left out, and what was done to images.
    """

    count: int
    blocks: Iterator[NDArray[Any]]
    labels: "pa.Array | None"
    origin: Origin
    parts: Parts | None = None
    value_range: Callable[[], ValueRange | None] = lambda: None
    label_location: Callable[[int | None], str] = lambda image: (
        "the set of labels" if image is None else f"label {image}"
    )
    label_names: tuple[str, ...] | None = None
    remarks: Callable[[], tuple[str, ...]] = lambda: ()
    columns: tuple[str, ...] | None = None  # of rows of numbers; None of images
    other_labels: str = OTHER_LABELS


def size_text(shape: Sequence[int]) -> str:
    """A shape for people: `3 x 32 x 32`."""
    return " x ".join(map(str, shape))
