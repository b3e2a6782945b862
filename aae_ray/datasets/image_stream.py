"""What every reader of image files hands over: blocks of images and labels, on their way into the cache.

`B` images of a block, `C` channels, `H` height, `W` width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Block = tuple[NDArray[np.uint8], NDArray[np.int64] | None]


@dataclass(frozen=True)
class ImageStream:
    """Images on their way into the cache.

    `blocks` yields images_BCHW (uint8, 0 to 255, of one shape) and labels_B (or None throughout): `count`
    images in all, of which the last `test_count` are the set's own test part. It raises UserError at a fault.
    """

    count: int
    test_count: int
    blocks: Iterator[Block]


def size_text(shape: Sequence[int]) -> str:
    """A shape for people: `3 x 32 x 32`."""
    return " x ".join(map(str, shape))
