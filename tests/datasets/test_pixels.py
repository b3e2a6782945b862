"""Values of any type as bytes and images of any shape as the settings want them: as they were meant, or refused."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from aae_ray.datasets.pixels import PixelFault, Scale, arrange, arrange_block, stack
from aae_ray.errors import UserError
from aae_ray.settings import Data

RANDOM = np.random.default_rng(0)
LEVELS = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)


def scaled(pixels: np.ndarray, **data: Any) -> np.ndarray:
    """Two blocks of a set through one scale, as a reader does it."""
    scale = Scale(Data(**data))
    blocks = np.array_split(pixels, 2) if len(pixels) > 1 else [pixels]
    if scale.needs_observing:
        for block in blocks:
            scale.observe(block)
    levels = np.concatenate([scale.to_bytes(block) for block in blocks])
    scale.finish()
    return levels


READ: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "uint8": (LEVELS, {}),
    "int64": (LEVELS.astype(np.int64), {}),
    "big-endian int32": (LEVELS.astype(">i4"), {}),
    "0 to 1 in float16": ((LEVELS / 255).astype(np.float16), {}),
    "0 to 1 in float32": ((LEVELS / 255).astype(np.float32), {}),
    "0 to 1 in float64": (LEVELS / 255, {}),
    "0 to 1 with errors of rounding": (LEVELS / 255 * (1 + 1e-6) - 1e-7, {}),
    "-1 to 1": (LEVELS / 127.5 - 1, {"scale": "-1:1"}),
    "fractions of 0 to 255": (LEVELS.astype(np.float32), {"scale": "0:255"}),
    "16 bits": (LEVELS.astype(np.uint16) * 257, {"scale": "0:65535"}),
    "standardised": ((LEVELS / 255 - 0.1307) / 0.3081, {"scale": "observed"}),
    "int8": ((LEVELS.astype(int) - 128).astype(np.int8), {"scale": "-128:127"}),
    "inverted": (255 - LEVELS, {"scale": "255:0"}),
    "dark on purpose": (LEVELS // 8, {"scale": "0:255"}),
}


@pytest.mark.parametrize("kind", READ)
def test_values_are_read_as_they_were_meant(kind: str) -> None:
    pixels, data = READ[kind]
    expected = LEVELS // 8 if kind == "dark on purpose" else LEVELS
    assert np.array_equal(scaled(pixels, **data), expected)


@pytest.mark.parametrize(
    ("pixels", "scale", "expected"),
    [
        ([False, True], None, [0, 255]),
        ([0, 1], "0:1", [0, 255]),
        ([0, 8, 16], "0:16", [0, 128, 255]),
        ([0, 8, 16], "observed", [0, 128, 255]),
        ([0, 2048, 4095], "0:4095", [0, 128, 255]),
        ([7, 200], None, [7, 200]),
        ([0.0, 0.002, 0.5, 1.0], None, [0, 1, 128, 255]),
    ],
)
def test_scale_reaches_both_ends(pixels: list[Any], scale: str | None, expected: list[int]) -> None:
    assert scaled(np.array(pixels)[:, np.newaxis], scale=scale).ravel().tolist() == expected


REFUSED: dict[str, tuple[np.ndarray, str | None, list[str]]] = {
    "0 or 1": (LEVELS % 2, None, ["pixel values of 0 to 1", "data.scale=0:1", "data.scale=0:255"]),
    "0 to 16": (LEVELS // 15, None, ["pixel values of 0 to 17", "data.scale=0:17"]),
    "0 to 127": (LEVELS // 2, None, ["0 to 127", "data.scale=0:127"]),
    "all zero": (LEVELS * 0, None, ["pixel values of 0 to 0"]),
    "12 bits": (LEVELS.astype(int) * 16, None, ["those seen are 0 to 4080", "data.scale=0:4080 or 0:65535"]),
    "signed": (LEVELS.astype(int) - 128, None, ["those seen are -128 to 127", "data.scale=-128:127"]),
    "-1 to 1": (LEVELS / 127.5 - 1, None, ["those seen are -1 to 1", "data.scale=-1:1", "observed"]),
    "fractions of 0 to 255": (LEVELS * 1.0, None, ["those seen are 0 to 255", "data.scale=0:255"]),
    "standardised": (LEVELS / 60 - 1.5, None, ["those seen are -1.5 to 2.75", "data.scale=observed"]),
    "divided twice": (LEVELS / 255**2, None, ["pixel values of 0 to 0.003922", "fractions are read as 0 (black) to 1"]),
    "NaN": (np.where(LEVELS == 200, np.nan, LEVELS / 255), None, ["has a pixel value of NaN or infinity"]),
    "infinite": (np.where(LEVELS == 200, np.inf, LEVELS / 255), "0:1", ["has a pixel value of NaN or infinity"]),
    "outside": (LEVELS, "0:250", ["5 pixel values outside of data.scale=0:250; those seen are 0 to 255"]),
    "one value": (LEVELS * 0 + 9, "observed", ["no range of values", "every pixel is 9"]),
    "text": (LEVELS.astype(str), None, ["holds values of type <U3"]),
    "complex": (LEVELS * 1j, None, ["holds values of type complex128"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_mean_two_things_is_refused_with_what_was_seen(kind: str) -> None:
    pixels, scale, texts = REFUSED[kind]
    with pytest.raises(PixelFault) as fault:
        whole_set = Scale(Data(scale=scale))
        whole_set.observe(pixels)  # as a reader does that can go through a set twice
        whole_set.to_bytes(pixels)
        whole_set.finish()
    assert all(text in str(fault.value) for text in texts), str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_fault_says_which_image_of_the_block_it_is() -> None:
    for pixels in (np.where(LEVELS == 200, 300, LEVELS.astype(int)), np.where(LEVELS == 200, np.nan, LEVELS / 255)):
        with pytest.raises(PixelFault) as fault:
            Scale(Data()).to_bytes(pixels)
        assert fault.value.index == 3


NUMBERS = st.sampled_from([np.bool_, np.uint8, np.int8, np.uint16, np.int32, np.int64, np.float16, np.float32])


@settings(max_examples=60, deadline=None)
@given(st.data(), NUMBERS, st.sampled_from([None, "0:1", "0:255", "-1:1", "255:0", "-128:127", "observed"]))
def test_bytes_are_what_was_meant_or_there_are_none(data: st.DataObject, dtype: Any, given_scale: str | None) -> None:
    """Every byte is the value's position between black and white, to half a level, and nothing is clipped."""
    pixels = data.draw(arrays.arrays(dtype, arrays.array_shapes(min_dims=3, max_dims=3, max_side=4)))
    scale = Scale(Data(scale=given_scale))
    try:
        if scale.needs_observing:
            scale.observe(pixels)
        levels = scale.to_bytes(pixels)
    except PixelFault:
        return
    assert scale.seen is not None
    natural = (0, 1) if pixels.dtype.kind in "bf" else (0, 255)
    black, white = scale.seen if given_scale == "observed" else Data(scale=given_scale).scale_ends or natural
    assert levels.shape == pixels.shape and levels.dtype == np.uint8
    exact = (pixels.astype(np.float64) - black) / (white - black) * 255
    assert np.abs(levels - exact).max() <= 0.51


# ------------------------------------------------------------------------------------------------------------ shapes


GREY = RANDOM.integers(0, 256, (6, 9, 1), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_images_are_left_alone_where_nothing_is_set() -> None:
    assert np.array_equal(arrange(GREY, Data()), GREY)
    assert np.array_equal(arrange_block(COLOUR[np.newaxis], Data()), COLOUR.transpose(2, 0, 1)[np.newaxis])


def test_transpose() -> None:
    assert np.array_equal(arrange(GREY, Data(transpose=True)), GREY.transpose(1, 0, 2))
    block = arrange_block(COLOUR[np.newaxis], Data(transpose=True))
    assert np.array_equal(block[0], COLOUR.transpose(2, 1, 0))


def test_channels_are_those_of_opencv() -> None:
    import cv2

    assert np.array_equal(arrange(GREY, Data(channels=3)), np.repeat(GREY, 3, 2))
    grey = arrange(COLOUR, Data(channels=1))
    assert np.abs(grey[..., 0].astype(int) - cv2.cvtColor(COLOUR, cv2.COLOR_RGB2GRAY)).max() <= 1


def test_what_is_transparent_shows_the_background() -> None:
    layers = np.zeros((1, 3, 4), np.uint8)
    layers[0, :, 0], layers[0, :, 3] = 200, (255, 0, 128)  # red: opaque, not there, half
    shown = arrange(layers, Data(background="#0000ff"))
    assert shown.tolist() == [[[200, 0, 0], [0, 0, 255], [100, 0, 127]]]
    with pytest.raises(PixelFault, match=r"is transparent in 2 of 3 pixels; .*data\.background=white"):
        arrange(layers, Data())
    layers[..., 3] = 255
    assert np.array_equal(arrange(layers, Data()), layers[..., :3])


def test_size_and_crop() -> None:
    """The centre is cut to the proportions first, and all of it is kept without the cut."""
    halves = np.array([[[0], [0], [100], [100], [200], [200], [50], [50]]] * 4, np.uint8)  # 4 x 8
    cut = arrange(halves, Data(size="2", resample="area"))
    assert cut[..., 0].tolist() == [[100, 200]] * 2
    stretched = arrange(halves, Data(size="2x4", crop="none", resample="nearest"))
    assert stretched[..., 0].tolist() == [[0, 100, 200, 50]] * 2
    squeezed = arrange(halves, Data(size="4x2", crop="none", resample="area"))
    assert squeezed[..., 0].tolist() == [[50, 125]] * 4


def test_area_is_that_of_opencv_and_lanczos_that_of_pillow() -> None:
    import cv2

    image = RANDOM.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    area = arrange(image, Data(size="8x12", resample="area"))
    assert np.abs(area.astype(int) - cv2.resize(image, (12, 8), interpolation=cv2.INTER_AREA)).max() <= 1
    lanczos = arrange(image, Data(size="8x12"))
    assert np.array_equal(lanczos, np.asarray(Image.fromarray(image).resize((12, 8), Image.Resampling.LANCZOS)))


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from(["center", "none"]),
    st.sampled_from(["lanczos", "area", "bicubic", "bilinear", "nearest"]),
    st.sampled_from([None, 1, 3]),
)
def test_any_image_comes_to_the_size(
    image: np.ndarray, size: tuple[int, int], crop: Any, resample: Any, channels: int | None
) -> None:
    data = Data(size=f"{size[0]}x{size[1]}", crop=crop, resample=resample, channels=channels)
    assert arrange(image, data).shape == (*size, channels or image.shape[2])
    if size == image.shape[:2]:
        assert np.array_equal(arrange(image, data.model_copy(update={"channels": None})), image)


def test_stacked_images_come_in_blocks_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aae_ray.datasets.pixels.BLOCK_BYTES", 3 * GREY.size)
    images = [np.full_like(GREY, level) for level in range(8)]
    blocks = list(stack((f"image {level}", image) for level, image in enumerate(images)))
    assert [len(block) for block in blocks] == [3, 3, 2]
    assert np.concatenate(blocks)[:, 0, 0, 0].tolist() == list(range(8))


def test_shapes_that_differ_are_told_with_their_numbers() -> None:
    images = [GREY] * 5 + [COLOUR[:4]] + [GREY] * 3 + [GREY[:3]]
    with pytest.raises(UserError) as error:
        list(stack((f"image {index}", image) for index, image in enumerate(images)))
    assert str(error.value) == (
        "image 5 is 4 x 9 in colour (height x width), and the images before it are 6 x 9 in grey; there are 8 of 6 x 9 "
        "in grey, 1 of 4 x 9 in colour, 1 of 3 x 9 in grey. All images must have the same shape: data.size=6x9 resizes "
        "them (see data.crop and data.resample); data.channels=1 makes all of them grey, and data.channels=3 colour"
    )


def test_shapes_behind_a_faulty_image_are_not_said_to_be_counted() -> None:
    def images() -> Iterator[tuple[str, np.ndarray]]:
        yield from [("image 0", GREY), ("image 1", COLOUR)]
        raise UserError("image 2 is empty")

    with pytest.raises(UserError, match=r"^image 1 .*; there are at least 1 of 6 x 9 in grey, 1 of 6 x 9 in colour\."):
        list(stack(images()))
