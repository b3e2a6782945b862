"""Picture files are read as an image viewer shows them, pixel for pixel, or refused with what they are."""

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageCms

from aae_ray.datasets.pictures import FORMATS, Pictures, decode
from aae_ray.datasets.pixels import PixelFault
from aae_ray.settings import Data

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (7, 9), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (7, 9, 3), dtype=np.uint8)
DEEP = RANDOM.integers(0, 2**16, (7, 9), dtype=np.uint16)
SMOOTH = np.dstack([*np.meshgrid(np.linspace(0, 200, 32), np.linspace(50, 250, 24)), np.full((24, 32), 90)])
SMOOTH = SMOOTH.astype(np.uint8)


def picture(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def by_opencv(pixels: np.ndarray, ending: str, *options: int) -> bytes:
    done, content = cv2.imencode(ending, pixels[..., ::-1] if pixels.ndim == 3 else pixels, options)
    assert done
    return content.tobytes()


def from_opencv(content: bytes, flags: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert pixels is not None
    return np.atleast_3d(pixels)


def read(content: bytes, **data: Any) -> np.ndarray:
    return decode(content, Data(**data))


LOSSLESS: dict[str, tuple[Callable[[np.ndarray], bytes], bool]] = {  # and whether grey stays grey
    "PNG": (picture, True),
    "interlaced by nobody, BMP": (lambda pixels: picture(pixels, "BMP"), True),
    "TIFF": (lambda pixels: picture(pixels, "TIFF"), True),
    "TIFF with LZW": (lambda pixels: picture(pixels, "TIFF", compression="tiff_lzw"), True),
    "WebP": (lambda pixels: picture(pixels, "WEBP", lossless=True), False),
    "Netpbm": (lambda pixels: picture(pixels, "PPM"), True),
    "OpenCV's PNG": (lambda pixels: by_opencv(pixels, ".png"), True),
    "OpenCV's BMP": (lambda pixels: by_opencv(pixels, ".bmp"), True),
    "OpenCV's TIFF": (lambda pixels: by_opencv(pixels, ".tiff"), True),
    "OpenCV's WebP": (lambda pixels: by_opencv(pixels, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), False),
    "OpenCV's PGM and PPM": (lambda pixels: by_opencv(pixels, ".pgm" if pixels.ndim == 2 else ".ppm"), True),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_pixel_for_pixel(kind: str) -> None:
    write, keeps_grey = LOSSLESS[kind]
    assert np.array_equal(read(write(COLOUR)), COLOUR)
    grey = read(write(GREY))
    assert np.array_equal(grey, GREY[..., np.newaxis] if keeps_grey else np.repeat(GREY[..., np.newaxis], 3, 2))


@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]))),
    st.sampled_from(["PNG", "BMP", "TIFF", "PPM"]),
)
def test_any_image_comes_back(pixels: np.ndarray, kind: str) -> None:
    assert np.array_equal(read(picture(pixels[..., 0] if pixels.shape[2] == 1 else pixels, kind)), pixels)


@pytest.mark.parametrize("pixels", [SMOOTH, SMOOTH[..., 0]], ids=["colour", "grey"])
def test_jpeg_is_what_opencv_reads(pixels: np.ndarray) -> None:
    for content in (picture(pixels, "JPEG"), by_opencv(pixels, ".jpg"), picture(pixels, "JPEG", progressive=True)):
        flag = cv2.IMREAD_COLOR_RGB if pixels.ndim == 3 else cv2.IMREAD_GRAYSCALE
        expected = from_opencv(content, flag)
        shown = read(content)
        assert shown.shape == expected.shape
        assert np.abs(shown.astype(int) - expected).max() <= 2


GREEN = np.full((4, 4, 3), [10, 200, 30], np.uint8)
MODES: dict[str, tuple[bytes, np.ndarray]] = {
    "1 bit": (picture(np.eye(5, dtype=np.uint8) * 255, mode="1"), np.eye(5)[..., np.newaxis] * 255),
    "grey and opaque": (picture(GREY, mode="LA"), GREY[..., np.newaxis]),
    "colour and opaque": (picture(COLOUR, mode="RGBA"), COLOUR),
    "palette of colours": (picture(COLOUR // 128 * 255, mode="P"), COLOUR // 128 * 255),
    "palette of greys": (picture(GREY // 64 * 64, "GIF"), (GREY // 64 * 64)[..., np.newaxis]),
    "GIF of one colour": (
        picture(np.full((4, 4, 3), [10, 200, 30], np.uint8), "GIF"),
        np.full((4, 4, 3), [10, 200, 30]),
    ),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    content, expected = MODES[mode]
    assert np.array_equal(read(content), expected)


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by the tag, EXIF 2.32, section 4.6.4
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_tags_are_applied(orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        pictures = Pictures(Data())
        assert np.array_equal(pictures.decode(picture(COLOUR, kind, exif=tags)), UPRIGHT[orientation](COLOUR))
        assert pictures.notes.total() == (orientation != 1)
    jpeg = picture(SMOOTH, "JPEG", exif=tags)
    assert np.abs(read(jpeg).astype(int) - from_opencv(jpeg, cv2.IMREAD_COLOR_RGB)).max() <= 2


def test_cmyk_is_read_as_colour() -> None:
    """Adobe's programs store the inks of a JPEG inverted, and say so; TIFF has them as they are."""
    for kind in ("JPEG", "TIFF"):
        shown = read(picture(SMOOTH, kind, mode="CMYK"))
        assert np.abs(shown.astype(int) - SMOOTH).max() <= 12


def profile_with_gamma(gamma: float, space: bytes) -> bytes:
    """A minimal ICC profile (version 2) of primaries like sRGB's, or of grey, and a tone curve of this power."""

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags: dict[bytes, bytes] = {b"wtpt": b"XYZ \0\0\0\0" + b"".join(map(number, (0.9642, 1, 0.8249)))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        primaries = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
        for name, xyz in primaries.items():
            tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + b"".join(map(number, xyz))
            tags[name + b"TRC"] = curve
    start, table, body = 132 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    header = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"\0" * 4, 0x02100000, b"mntr", space, b"XYZ ", b"", b"acsp"
    )
    header += b"\0" * 28 + b"".join(map(number, (0.9642, 1, 0.8249)))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def linear_to_srgb(levels: np.ndarray) -> np.ndarray:
    share = levels / 255
    return 255 * np.where(share <= 0.0031308, 12.92 * share, 1.055 * share ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize(
    ("crop", "told"), [("none", "resized to 6 x 6"), ("center", "cut to its proportions and resized to 6 x 6")]
)
def test_how_many_pictures_were_resized_and_how_is_told(crop: Any, told: str) -> None:
    pictures = Pictures(Data(size="6x6", crop=crop))
    for shape in ((6, 6), (12, 9), (6, 7)):
        pictures.decode(picture(RANDOM.integers(0, 256, shape).astype(np.uint8), "PNG"))
    (remark,) = pictures.remarks()
    assert remark.startswith(f"pictures of another size, {told} by ") and remark.endswith(": 2")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize(("pixels", "space"), [(COLOUR, b"RGB "), (GREY, b"GRAY")], ids=["colour", "grey"])
def test_colour_profiles_are_applied(pixels: np.ndarray, space: bytes, kind: str) -> None:
    linear = profile_with_gamma(1.0, b"RGB " if kind == "WEBP" else space)  # WebP has no grey
    lossless: dict[str, Any] = {"WEBP": {"lossless": True}}.get(kind, {})
    set_of_pictures = Pictures(Data())
    plain = set_of_pictures.decode(picture(pixels, kind, **lossless))
    shown = set_of_pictures.decode(picture(pixels, kind, icc_profile=linear, **lossless))
    assert shown.shape == plain.shape
    assert np.abs(shown - linear_to_srgb(plain)).max() <= 2
    assert set_of_pictures.remarks() == ("pictures converted to sRGB from their colour profile: 1",)


@pytest.mark.parametrize(("kind", "white"), [("PNG", 65535), ("TIFF", 65535), ("TIFF", 1.0)])
def test_colour_profiles_are_applied_to_grey_of_more_than_8_bits(kind: str, white: float) -> None:
    pixels = DEEP if white > 1 else (DEEP / 65535).astype(np.float32)
    told = Pictures(Data())
    shown = told.decode(picture(pixels, kind, icc_profile=profile_with_gamma(1.0, b"GRAY")))[..., 0]
    assert np.abs(shown - linear_to_srgb(pixels / white * 255)).max() <= 2
    assert told.remarks() == ("pictures converted to sRGB from their colour profile: 1",)
    dark = DEEP // 256 + 1  # between the first levels of 8 bits, where a profile is steepest
    shown = read(picture(dark, kind, icc_profile=profile_with_gamma(1.0, b"GRAY")), scale=None)[..., 0]
    assert np.abs(shown - linear_to_srgb(dark / 257)).max() <= 2 and len(np.unique(shown)) > 5
    with pytest.raises(PixelFault, match="and a colour profile; a profile holds from .* ImageMagick's `-depth 8`"):
        read(picture(pixels, kind, icc_profile=profile_with_gamma(1.0, b"GRAY")), scale="0:4095")


def test_a_profile_that_changes_nothing_leaves_all_16_bits_as_they_are() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # of other channels: told, as of 8 bits
    told = Pictures(Data())
    assert np.array_equal(told.decode(picture(DEEP, icc_profile=srgb))[..., 0], np.rint(DEEP / 257))
    assert "for other channels, and was not applied: 1" in told.remarks()[0]


def test_a_profile_of_srgb_changes_nothing_and_a_broken_one_is_told() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    broken = Pictures(Data())
    assert np.array_equal(read(picture(COLOUR, icc_profile=srgb)), COLOUR)
    for content in (picture(COLOUR, icc_profile=b"nonsense"), picture(GREY, icc_profile=srgb)):
        assert np.array_equal(broken.decode(content).squeeze(), COLOUR if broken.notes.total() == 1 else GREY)
    assert broken.remarks() == (
        "pictures whose colour profile is damaged or for other channels, and was not applied: 2",
    )


# ------------------------------------------------------------------------------------------------------ transparency


def with_transparent_level(kind: str) -> bytes:
    """White where the grey level 7 was, and 100 elsewhere."""
    pixels = np.where(np.eye(3, dtype=bool), 7, 100).astype(np.uint8)
    if kind == "palette":
        image = Image.fromarray(pixels).convert("P")
        stream = io.BytesIO()
        image.save(stream, "PNG", transparency=7)
        return stream.getvalue()
    if kind == "GIF":
        return picture(pixels, "GIF", transparency=7)
    if kind == "alpha":
        return picture(np.dstack([pixels, np.where(pixels == 7, 0, 255).astype(np.uint8)]))
    return picture(pixels, "PNG", transparency=7)


@pytest.mark.parametrize("kind", ["palette", "GIF", "alpha", "grey level"])
def test_what_is_transparent_is_laid_over_the_background_or_refused(kind: str) -> None:
    content = with_transparent_level(kind)
    with pytest.raises(PixelFault, match=r"is transparent in 3 of 9 pixels; .*data\.background=white"):
        read(content)
    shown = read(content, background="white", channels=1)
    assert shown[..., 0].tolist() == np.where(np.eye(3), 255, 100).tolist()
    over_red = Pictures(Data(background="red"))
    red = over_red.decode(content)
    assert over_red.remarks() == ("pictures with transparency, laid over red: 1",)
    assert red[0, 0].tolist() == [255, 0, 0] and red[0, 1].tolist() == [100, 100, 100]


def test_half_transparent_colours() -> None:
    layers = np.dstack([COLOUR, RANDOM.integers(0, 256, (7, 9), dtype=np.uint8)])
    alpha = layers[..., 3:] / 255
    for content in (picture(layers), picture(layers, "TIFF"), picture(layers, "WEBP", lossless=True, exact=True)):
        shown = read(content, background="#00ff80")
        assert np.abs(shown - (COLOUR * alpha + np.array([0, 255, 128]) * (1 - alpha))).max() <= 1


def test_the_first_frame_of_an_animation_is_read_and_told() -> None:
    frames = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (255, 128, 0)]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        stream = io.BytesIO()
        frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
        animations = Pictures(Data())
        assert (animations.decode(stream.getvalue()) == 255).all(), kind
        assert animations.remarks() == ("pictures of several frames or pages, of which the first was read: 1",)


# -------------------------------------------------------------------------------------------------- more than 8 bits


@pytest.mark.parametrize(
    "content",
    [picture(DEEP), picture(DEEP, "TIFF"), by_opencv(DEEP, ".png"), by_opencv(DEEP, ".tiff"), by_opencv(DEEP, ".pgm")],
    ids=["PNG", "TIFF", "OpenCV's PNG", "OpenCV's TIFF", "OpenCV's PGM"],
)
def test_16_bits(content: bytes) -> None:
    assert np.array_equal(read(content)[..., 0], np.rint(DEEP / 257))
    assert np.array_equal(read(content, scale="65535:0")[..., 0], 255 - np.rint(DEEP / 257))


def test_12_bits_stored_as_16_are_refused_until_the_scale_is_given() -> None:
    twelve = picture(DEEP // 16)
    dark = Pictures(Data())
    dark.decode(twelve)
    with pytest.raises(
        PixelFault, match=r"of 16 bits are read as 0 \(black\) to 65535 .*such as data\.scale=0:\d{4}, "
    ):
        dark.scale.finish()
    assert np.array_equal(read(twelve, scale="0:4095")[..., 0], np.rint(DEEP // 16 / 4095 * 255))


def test_fractions_in_tiff() -> None:
    fractions = (DEEP / 65535).astype(np.float32)
    for content in (picture(fractions, "TIFF"), by_opencv(fractions, ".tiff")):
        assert np.array_equal(read(content)[..., 0], np.rint(fractions * 255))
    with pytest.raises(PixelFault, match=r"outside of 0 to 1, as which fractions are read; .*data\.scale=-1:1"):
        read(picture(fractions * 2 - 1, "TIFF"))
    signed = read(picture(fractions * 2 - 1, "TIFF"), scale="-1:1")[..., 0]
    assert np.abs(signed - fractions * 255).max() <= 0.51


@pytest.mark.parametrize("pixels", [GREY, DEEP, (DEEP / 65535).astype(np.float32)], ids=["8", "16", "fractions"])
def test_tiff_that_counts_from_white(pixels: np.ndarray) -> None:
    """PhotometricInterpretation 0: the value 0 is white, which Pillow heeds up to 8 bits."""
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    image.save(stream, "TIFF")
    content = bytearray(stream.getvalue())
    at = content.index(struct.pack("<HHI", 262, 3, 1))
    content[at + 8] = 0
    assert np.abs(read(bytes(content)).astype(int) + read(picture(pixels, "TIFF")) - 255).max() <= 1


def test_colour_of_16_bits_is_shown_with_8_and_has_no_scale() -> None:
    deep = RANDOM.integers(0, 2**16, (7, 9, 3), dtype=np.uint16)
    for content in (by_opencv(deep, ".png"), by_opencv(deep, ".ppm"), by_opencv(deep, ".tiff")):
        told = Pictures(Data())
        assert np.abs(told.decode(content) - deep / 257).max() <= 1
        assert told.remarks() == ("pictures in colour with 16 bits per channel, of which a viewer shows 8: 1",)
        with pytest.raises(PixelFault, match=r"in colour with 16 bits .* too few for data\.scale=0:4095\. Store the"):
            read(content, scale="0:4095")


@pytest.mark.parametrize("bits", [12, 14])
def test_colour_of_fewer_bits_in_16_is_refused_with_advice_that_helps(bits: int) -> None:
    deep = RANDOM.integers(0, 2**bits, (7, 9, 3), dtype=np.uint16)
    for content in (by_opencv(deep, ".png"), by_opencv(deep, ".ppm"), by_opencv(deep, ".tiff")):
        dark = Pictures(Data())
        as_they_are = dark.decode(content)
        with pytest.raises(
            PixelFault, match=r"values of about 0 to \d+, and would be dark: samples of 16 .*multiply 4"
        ):
            dark.scale.finish()
        taken = Pictures(Data(scale="0:65535"))
        assert np.array_equal(taken.decode(content), as_they_are)
        taken.scale.finish()
    spread = Pictures(Data())  # as the advice has it
    assert np.abs(spread.decode(by_opencv(deep * 2 ** (16 - bits), ".png")) / 255 - deep / 2**bits).max() < 1 / 100
    spread.scale.finish()


@pytest.mark.parametrize(("high", "told"), [(16, True), (63, True), (64, False), (255, False)])
def test_pictures_of_8_bits_that_use_little_of_them_are_told(high: int, told: bool) -> None:
    pictures = Pictures(Data())
    pictures.decode(picture(np.array([[0, high]], np.uint8)))
    pictures.scale.finish()
    text = f"pixel values are 0 to {high} of 0 to 255, and images are dark: data.scale=0:{high} would make the highest"
    assert [remark.startswith(text) for remark in pictures.remarks()] == [True] * told
    assert Pictures(Data(scale="0:16")).remarks() == ()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("pixels", [SMOOTH, SMOOTH[..., 0]], ids=["colour", "grey"])
def test_pictures_of_8_bits_are_scaled_in_every_format(kind: str, pixels: np.ndarray) -> None:
    content = picture(pixels, kind)
    as_they_are = read(content)
    assert np.array_equal(read(content, scale="0:255"), as_they_are)
    assert np.array_equal(read(content, scale="255:0"), 255 - as_they_are)


def test_what_was_done_to_a_picture_is_counted_once_where_the_range_is_asked_first() -> None:
    tags = Image.Exif()
    tags[0x0112] = 3
    content = picture(COLOUR, exif=tags, icc_profile=profile_with_gamma(1.0, b"RGB "))
    pictures = Pictures(Data(scale="observed"))
    pictures.observe(content)
    pictures.decode(content)
    assert set(pictures.notes.values()) == {1} and len(pictures.notes) == 2


def test_pictures_that_are_all_but_black_are_refused() -> None:
    """Masks of the numbers of classes, say; photographs at night have brighter pixels."""
    for levels, refused in ((10, True), (40, False)):
        masks = Pictures(Data())
        masks.decode(picture(GREY % levels))
        if refused:
            with pytest.raises(PixelFault, match=r"pixel values of 0 to 9, and would be dark: .*data\.scale=0:9"):
                masks.scale.finish()
        else:
            masks.scale.finish()
    assert read(picture(GREY % 10), scale="0:9").max() == 255


# ------------------------------------------------------------------------------------------------------------ faults


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


BOMB = (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)) + chunk(b"IEND", b"")
)
LARGE = picture(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))

FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; write or fetch it again, or leave it out"),
    "cut PNG": (LARGE[:3000], "is a PNG image that is cut short, after 3000 bytes; write or fetch it"),
    "head of a PNG": (LARGE[:20], "is a PNG image that is cut short, after 20 bytes"),
    "cut JPEG": (picture(SMOOTH, "JPEG")[:-300], "is a JPEG image that is cut short"),
    "cut GIF": (picture(SMOOTH, "GIF")[:200], "is a GIF image that is cut short"),
    "cut WebP": (picture(SMOOTH, "WEBP")[:-40], "is a WebP image that is cut short"),
    "cut BMP": (picture(SMOOTH, "BMP")[:-40], "is a BMP image that is cut short"),
    "cut TIFF": (picture(SMOOTH, "TIFF")[:400], "is a TIFF image that is damaged"),
    "damaged PNG": (LARGE[:100] + b"\0" * 20 + LARGE[120:], "is a PNG image that is damaged"),
    "bomb": (BOMB, "declares more than 89,478,485 pixels"),
    "HEIC": (b"\0\0\0\x18ftypheic" + b"\0" * 90, "is HEIC; convert it to PNG or JPEG"),
    "AVIF": (b"\0\0\0\x1cftypavif" + b"\0" * 90, "is AVIF; convert it to PNG or JPEG"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG, which has no pixels"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "is PDF or PostScript"),
    "NumPy": (b"\x93NUMPY\x01\0", "is a NumPy array"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of Git LFS"),
    "base64": (base64.b64encode(LARGE), "is base64 text; decode it"),
    "text": (b"0.1 0.2 0.3 0.4 0.5", "0.4 0.5'; convert it to PNG, or leave it out"),
    "raw bytes": (bytes(range(200, 232)), "it begins with the bytes c8 c9 ca"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_what_is_no_picture_is_told_by_what_it_is(kind: str) -> None:
    content, text = FAULTS[kind]
    with pytest.raises(PixelFault) as fault:
        read(content)
    assert text in str(fault.value)
    assert "\n" not in str(fault.value)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.integers(0, 400), st.binary(max_size=8))
def test_damage_is_a_fault_and_never_another_error(kind: str, at: int, damage: bytes) -> None:
    content = picture(SMOOTH, kind)
    try:
        read(content[:at] + damage + content[at + len(damage) :], background="white")
    except PixelFault as fault:
        assert "\n" not in str(fault)


def test_files_are_read_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(COLOUR))
    assert np.array_equal(decode(tmp_path / "a.png", Data()), COLOUR)
