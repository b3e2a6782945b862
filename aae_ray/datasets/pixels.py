"""Pixels as they were meant: values of any type as bytes, images of any shape as the settings want them.

Nothing is guessed and nothing is clipped: what can mean two things is refused, with what was seen and the setting that
decides. `B` images of a block, `C` channels, `H` height, `W` width.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from aae_ray.datasets.damage import unreadable
from aae_ray.datasets.image_stream import ValueRange, size_text
from aae_ray.errors import UserError
from aae_ray.settings import Data

BLOCK_BYTES = 1 << 20  # of images that are handed over together: progress is told from one to the next

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


class PixelFault(Exception):
    """What is wrong with an image, as the rest of a sentence that begins with its place.

    `index` says which image of a block it is.
    """

    def __init__(self, text: str, index: int = 0) -> None:
        super().__init__(text)
        self.index = index


# ------------------------------------------------------------------------------------------------------------ values


@dataclass(frozen=True)
class ValueKind:
    """How a kind of values is read where `data.scale` is not given.

    A set whose highest value is below `doubtful_below` was probably counted to another white.
    """

    name: str
    black: float
    white: float
    doubtful_below: float
    mend: str = ""  # what to do where values are dark and data.scale cannot help


BOOLEANS = ValueKind("true and false", 0, 1, 0)
WHOLE_NUMBERS = ValueKind("whole numbers", 0, 255, 128)  # fewer than 8 bits would do: 0 to 1, 0 to 16, 0 to 100
FRACTIONS = ValueKind("fractions", 0, 1, 1 / 16)


def picture_samples(bits: int) -> ValueKind:
    """The samples of a picture file, whose format says what is white.

    8 bits may be dark, as photographs are, if anything can be seen at all; of more, as instruments write them, one
    value at least needs the highest bit.
    """
    return ValueKind(f"samples of {bits} bits", 0, 2**bits - 1, 16 if bits <= 8 else 2 ** (bits - 1))


# Ranges that are usual beside those of the kinds, of whole numbers and of fractions: what a message offers.
_USUAL_RANGES = (((-1, 1), (-128, 127), (0, 65535)), ((-1, 1), (0, 255)))


class Scale:
    """Pixel values of a set as bytes, by `data.scale`, or else by their kind.

    Booleans become black and white. Whole numbers are taken as they are, 0 to 255, if one of the set at least is above
    127. Fractions are 0 to 1. All else is refused, with the range seen. What rounds to 0 or 255 is within the range.
    """

    def __init__(self, data: Data) -> None:
        self.given, self.ends = data.scale, data.scale_ends
        self.ranges: dict[ValueKind, ValueRange] = {}

    @property
    def needs_observing(self) -> bool:
        """Whether all values must be shown to `observe` before any is scaled."""
        return self.given == "observed"

    @property
    def seen(self) -> ValueRange | None:
        """The lowest and the highest value before scaling; None before there was any."""
        if not self.ranges:
            return None
        lows, highs = zip(*self.ranges.values(), strict=True)
        return min(lows), max(highs)

    def observe(self, pixels: NDArray[Any], kind: ValueKind | None = None) -> ValueKind:
        """Take note of the range of values, images in front, and say of what kind they are.

        Raises PixelFault for values that are no numbers, and for NaN and infinities.
        """
        kind = kind or _kind_of(pixels.dtype)
        low, high = float(pixels.min()), float(pixels.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            index, count = _first_image(~np.isfinite(pixels))
            raise PixelFault(f"has {_values(count)} of NaN or infinity; give each pixel a finite value", index)
        before = self.ranges.get(kind, (low, high))
        self.ranges[kind] = min(low, before[0]), max(high, before[1])
        return kind

    def to_bytes(self, pixels: NDArray[Any], kind: ValueKind | None = None) -> NDArray[np.uint8]:
        """Values as 0 to 255, in the shape that they have, images in front. Raises PixelFault."""
        kind = self.observe(pixels, kind)
        black, white = self._ends(kind)
        if pixels.dtype == np.uint8 and (black, white) == (0, 255):
            return pixels
        narrow = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
        levels: NDArray[np.floating] = pixels.astype(np.float32 if narrow else np.float64)
        levels = (levels - black) * (255 / (white - black))
        outside = (levels < -0.5) | (levels > 255.5)
        if outside.any():
            index, count = _first_image(outside)
            raise PixelFault(self._outside(kind, count), index)
        as_bytes: NDArray[np.uint8] = np.clip(np.rint(levels), 0, 255).astype(np.uint8)  # 255.5 is rounded to 256
        return as_bytes

    def finish(self) -> None:
        """When all values were seen: raises PixelFault where they never came near to white."""
        for kind, (low, high) in self.ranges.items():
            if self.given is None and high < kind.doubtful_below:
                if kind.mend:
                    raise PixelFault(
                        f"has pixel values of about {number_text(low)} to {number_text(high)}, and would be dark: "
                        f"{kind.name} are read as 0 (black) to {kind.white:g} (white). {kind.mend}"
                    )
                as_it_is, seen = f"{kind.black:g}:{kind.white:g}", f"{number_text(low)} to {number_text(high)}"
                raise PixelFault(
                    f"has pixel values of {seen}, and would be dark: {kind.name} are read as {kind.black:g} (black) to "
                    f"{kind.white:g} (white). Give the values that are black and white, such as "
                    f"data.scale=0:{number_text(high or 1)}, or data.scale={as_it_is} to take them as they are"
                )

    def remarks(self) -> tuple[str, ...]:
        """When all values were seen: on those that use less than a quarter of the range as which they are read."""
        return tuple(
            f"pixel values are {number_text(low)} to {number_text(high)} of {kind.black:g} to {kind.white:g}, and "
            f"images are dark: data.scale=0:{number_text(high)} would make the highest white"
            for kind, (low, high) in self.ranges.items()
            if self.given is None and high < kind.white / 4
        )

    def _ends(self, kind: ValueKind) -> tuple[float, float]:
        if not self.needs_observing:
            return self.ends or (kind.black, kind.white)
        black, white = self.seen or (0, 0)
        if black == white:
            raise PixelFault(f"has no range of values for data.scale=observed: every pixel is {number_text(black)}")
        return black, white

    def _outside(self, kind: ValueKind, count: int) -> str:
        low, high = self.seen or (0, 0)
        if self.given:
            return (
                f"has {_values(count)} outside of data.scale={self.given}; those seen are {number_text(low)} to "
                f"{number_text(high)}, and the scale must take in all of them"
            )
        usual = [
            f"{black}:{white}"
            for black, white in _USUAL_RANGES[kind is FRACTIONS]
            if black <= low and high <= white and (black >= 0 or low < 0)
        ]
        if kind is not FRACTIONS and low >= 0:
            usual.insert(0, f"0:{number_text(high)}")
        such_as = f", such as data.scale={' or '.join(dict.fromkeys(usual))}" if usual else ""
        return (
            f"has {_values(count)} outside of {kind.black:g} to {kind.white:g}, as which {kind.name} are read; those "
            f"seen are {number_text(low)} to {number_text(high)}. Give the values that are black and white, "
            f"data.scale=LOW:HIGH{such_as}, or data.scale=observed for the lowest and the highest of the set"
        )


def _kind_of(dtype: np.dtype[Any]) -> ValueKind:
    kinds = {"b": BOOLEANS, "u": WHOLE_NUMBERS, "i": WHOLE_NUMBERS, "f": FRACTIONS}
    if dtype.kind not in kinds:
        raise PixelFault(f"holds values of type {dtype}; pixels are whole numbers, fractions or booleans")
    return kinds[dtype.kind]


def _first_image(bad: NDArray[np.bool_]) -> tuple[int, int]:
    """The first image of a block that has bad values, and how many it has."""
    counts = np.count_nonzero(bad.reshape(len(bad), -1), axis=1)
    index = int(np.argmax(counts > 0))
    return index, int(counts[index])


def _values(count: int) -> str:
    return "a pixel value" if count == 1 else f"{count} pixel values"


def number_text(value: float) -> str:
    """A value of a pixel for people, whole where it is whole."""
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else f"{value:.4g}"


# ------------------------------------------------------------------------------------------------------------ shapes


def arrange(image_HWC: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    """An image as the settings want it: rows and columns exchanged, laid over the background, grey or colour, resized.

    It has 1 channel, 3, or 4 of which the last is opacity; the result has 1 or 3. Raises PixelFault.
    """
    if data.transpose:
        image_HWC = image_HWC.swapaxes(0, 1)
    if image_HWC.shape[2] == 4:
        image_HWC = _lay_over(image_HWC, data)
    if data.channels and image_HWC.shape[2] != data.channels:
        image_HWC = _as_array(_as_picture(image_HWC).convert("L" if data.channels == 1 else "RGB"))
    if data.size_HW and data.size_HW != image_HWC.shape[:2]:
        image_HWC = _resized(image_HWC, data, data.size_HW)
    return image_HWC


def arrange_block(images_BHWC: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    """The same with a block of images, as images_BCHW."""
    if images_BHWC.shape[3] == 4 or data.channels or data.size_HW:
        images_BHWC = np.stack([_arranged(image, index, data) for index, image in enumerate(images_BHWC)])
    elif data.transpose:
        images_BHWC = images_BHWC.swapaxes(1, 2)
    return np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2))


def _arranged(image_HWC: NDArray[np.uint8], index: int, data: Data) -> NDArray[np.uint8]:
    try:
        return arrange(image_HWC, data)
    except PixelFault as fault:
        raise PixelFault(str(fault), index) from None


def _lay_over(image_HWC: NDArray[np.uint8], data: Data) -> NDArray[np.uint8]:
    """Colours (H, W, 3) of an image with opacity, over the background where it lets through."""
    opacity_HW = image_HWC[..., 3]
    if opacity_HW.min() == 255:
        return image_HWC[..., :3]
    if data.background is None:
        raise PixelFault(
            f"is transparent in {np.count_nonzero(opacity_HW < 255)} of {opacity_HW.size} pixels; say what shows "
            f"through, such as data.background=white"
        )
    picture = Image.fromarray(image_HWC, "RGBA")
    background = Image.new("RGBA", picture.size, (*ImageColor.getrgb(data.background)[:3], 255))
    return _as_array(Image.alpha_composite(background, picture).convert("RGB"))


def _resized(image_HWC: NDArray[np.uint8], data: Data, size_HW: tuple[int, int]) -> NDArray[np.uint8]:
    picture, size, resample = _as_picture(image_HWC), size_HW[::-1], _FILTERS[data.resample]
    if data.crop == "center":
        return _as_array(ImageOps.fit(picture, size, resample, centering=(0.5, 0.5)))
    return _as_array(picture.resize(size, resample))


def _as_picture(image_HWC: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC))


def _as_array(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels (H, W, C) of a picture of mode L or RGB."""
    return np.atleast_3d(np.asarray(picture))


def stack(images: Iterable[tuple[str, NDArray[np.uint8]]]) -> Iterator[NDArray[np.uint8]]:
    """Images (H, W, C), each with its place, as blocks images_BCHW of one shape.

    Where shapes differ it goes through all that are left, to raise UserError with how many there are of each.
    """
    block: list[NDArray[np.uint8]] = []
    shapes: Counter[tuple[int, ...]] = Counter()
    images = iter(images)
    for location, image_HWC in images:
        shapes[image_HWC.shape] += 1
        if len(shapes) > 1:
            first = next(iter(shapes))
            least = ""
            try:
                for _, image in images:
                    shapes[image.shape] += 1
            except UserError:  # at a fault of another image, behind which none is counted
                least = "at least "
            raise UserError(f"{location} {_differing_shapes(image_HWC.shape, first, shapes, least)}")
        block.append(image_HWC)
        if (len(block) + 1) * image_HWC.size > BLOCK_BYTES:
            yield np.stack(block).transpose(0, 3, 1, 2)
            block = []
    if block:
        yield np.stack(block).transpose(0, 3, 1, 2)


_SHAPES_SHOWN = 4


def _differing_shapes(
    shape: tuple[int, ...], first: tuple[int, ...], shapes: Counter[tuple[int, ...]], least: str
) -> str:
    mends = []
    if len({sides[:2] for sides in shapes}) > 1:
        height, width, _ = shapes.most_common(1)[0][0]
        mends.append(f"data.size={height}x{width} resizes them (see data.crop and data.resample)")
    if len({channels for _, _, channels in shapes}) > 1:
        mends.append("data.channels=1 makes all of them grey, and data.channels=3 colour")
    seen = ", ".join(f"{count} of {_shape_text(kind)}" for kind, count in shapes.most_common(_SHAPES_SHOWN))
    more = f" and {len(shapes) - _SHAPES_SHOWN} more shapes" if len(shapes) > _SHAPES_SHOWN else ""
    return (
        f"is {_shape_text(shape)} (height x width), and the images before it are {_shape_text(first)}; there are "
        f"{least}{seen}{more}. All images must have the same shape: {'; '.join(mends)}"
    )


def _shape_text(shape_HWC: tuple[int, ...]) -> str:
    return f"{size_text(shape_HWC[:2])} {'in grey' if shape_HWC[2] == 1 else 'in colour'}"


@contextmanager
def located_faults(location: str) -> Iterator[None]:
    """Faults of pixels, and files that cannot be read, as UserError that begins with the place."""
    try:
        yield
    except PixelFault as fault:
        raise UserError(f"{location} {fault}") from None
    except OSError as error:
        raise unreadable(location, error) from None
