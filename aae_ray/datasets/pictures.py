"""Picture files as an image viewer shows them: PNG, JPEG, WebP, GIF, TIFF, BMP and Netpbm, decoded by Pillow.

`C` channels, `H` height, `W` width.
"""

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from aae_ray.datasets.damage import ANEW
from aae_ray.datasets.pixels import FRACTIONS, WHOLE_NUMBERS, PixelFault, Scale, ValueKind, arrange, picture_samples
from aae_ray.settings import Data

FORMATS = {
    "PNG": "PNG",
    "JPEG": "JPEG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "TIFF": "TIFF",
    "BMP": "BMP",
    "PPM": "Netpbm",
}  # Pillow's names, and people's
ENDINGS = frozenset(  # of the files' names, in lower case
    (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".dib", ".pgm", ".ppm", ".pbm")
)

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF 6.0, section 8
_ORIENTATION = 0x0112  # tag of EXIF
_HEADER_BYTES = 1 << 16  # in which that of a Netpbm file stands, with its comments
_NETPBM_WITH_WHITE = (b"P2", b"P3", b"P5", b"P6")  # bitmaps have no level of white
_EIGHT_BITS = picture_samples(8)


def decode(content: bytes | Path, data: Data) -> NDArray[np.uint8]:
    """A picture (H, W, C) as a viewer shows it, 1 channel where it is grey and else 3, arranged by the settings.

    Raises PixelFault where it cannot be decoded or may mean two things; OSError where a file cannot be read.
    """
    return Pictures(data).decode(content)


class Pictures:
    """The pictures of one set, decoded alike, with a note of what was done to how many of them.

    Orientation tags and colour profiles are applied, what is transparent is laid over `data.background`, and of an
    animation the first frame is read. A picture is grey by its mode, or when it has a palette and shows only greys.
    """

    def __init__(self, data: Data) -> None:
        self.data = data
        self.scale = Scale(data)
        self.notes: Counter[str] = Counter()

    def decode(self, content: bytes | Path) -> NDArray[np.uint8]:
        """A picture (H, W, C) of 1 channel or 3. Raises PixelFault, or OSError where a file cannot be read."""
        samples_HWC, kind = self._samples(content, self.notes)
        if samples_HWC.shape[2] == 4 and self.data.background:
            self.notes[f"pictures with transparency, laid over {self.data.background}"] += 1
        image_HWC = self.scale.to_bytes(samples_HWC[np.newaxis], kind)[0]
        arranged_HWC = arrange(image_HWC, self.data)
        if self.data.size_HW and self.data.size_HW != image_HWC.shape[:2][:: -1 if self.data.transpose else 1]:
            height, width = self.data.size_HW
            how = "cut to its proportions and resized" if self.data.crop == "center" else "resized"
            self.notes[f"pictures of another size, {how} to {height} x {width} by {self.data.resample}"] += 1
        return arranged_HWC

    def observe(self, content: bytes | Path) -> None:
        """Take note of the range of a picture's values, where the scale needs all of them first."""
        samples_HWC, kind = self._samples(content, Counter())  # it is noted when it is decoded
        self.scale.observe(samples_HWC[np.newaxis], kind)

    def remarks(self) -> tuple[str, ...]:
        """What was done to pictures beside decoding them, with their number."""
        return tuple(f"{text}: {count}" for text, count in self.notes.items()) + self.scale.remarks()

    def _samples(self, content: bytes | Path, notes: Counter[str]) -> tuple[NDArray[Any], ValueKind]:
        """What a picture shows, (H, W, C) of 1, 3 or, with opacity, 4 channels, and of what kind its values are.

        More than 8 bits of grey are handed over as they are stored, as there may be more in them than a viewer shows.
        """
        opened = _open(content if isinstance(content, bytes) else content.read_bytes())
        if opened.frames:
            notes["pictures of several frames or pages, of which the first was read"] += 1
        if opened.turned:
            notes["pictures turned upright by their orientation tag"] += 1
        if opened.picture.mode == "F" or opened.picture.mode.startswith("I"):
            return self._deep_samples(opened, notes)
        if opened.bits <= 8:
            return self._shown(opened.picture, notes), _EIGHT_BITS
        kind = replace(picture_samples(opened.bits), mend=_SPREAD.format(white=2**opened.bits - 1))
        if self.data.scale and self.data.scale_ends != (kind.black, kind.white):
            raise PixelFault(
                f"is in colour with {opened.bits} bits per channel, of which the highest 8 are read, too few for "
                f"data.scale={self.data.scale}. {kind.mend}"
            )
        notes[f"pictures in colour with {opened.bits} bits per channel, of which a viewer shows 8"] += 1
        return self._shown(opened.picture, notes) * (kind.white / 255), kind

    def _deep_samples(self, opened: "_Opened", notes: Counter[str]) -> tuple[NDArray[Any], ValueKind]:
        """Grey samples (H, W, 1) of more than 8 bits, or fractions."""
        picture = opened.picture
        if "transparency" in picture.info:
            raise PixelFault(f"has more than 8 bits per pixel, and a level that is transparent; {_CONVERT}")
        kind = FRACTIONS if picture.mode == "F" else WHOLE_NUMBERS
        if picture.mode.startswith("I;16") or (picture.mode == "I" and opened.format in ("PNG", "PPM")):
            kind = picture_samples(opened.bits)
        samples_HW: NDArray[Any] = np.asarray(picture)
        if opened.white_is_zero and self.data.scale is None:
            samples_HW = np.subtract(kind.white, samples_HW, dtype=np.float32)
        if profile := picture.info.get("icc_profile"):
            if kind is WHOLE_NUMBERS or self.data.scale:
                why = "a profile holds from the black to the white of a format, and not for values on another scale"
                raise PixelFault(f"has more than 8 bits per pixel, and a colour profile; {why}; {_CONVERT}")
            samples_HW = self._deep_in_srgb(samples_HW, kind.white, profile, notes)
        return samples_HW[..., np.newaxis], kind

    def _deep_in_srgb(
        self, samples_HW: NDArray[Any], white: float, profile: bytes, notes: Counter[str]
    ) -> NDArray[np.float32]:
        """Grey samples from 0 to white in the greys of sRGB, along the curve of the profile at 256 levels."""
        levels = np.arange(256, dtype=np.uint8)
        shown = self._in_srgb(Image.fromarray(levels[np.newaxis]), profile, notes)
        curve = np.asarray(shown.convert("L"))[0]
        if np.array_equal(curve, levels):
            return samples_HW
        seen_HW: NDArray[np.float64] = np.interp(samples_HW * (255 / white), levels, curve) * (white / 255)
        return seen_HW.astype(np.float32)

    def _shown(self, picture: Image.Image, notes: Counter[str]) -> NDArray[np.uint8]:
        """The levels of a picture of 8 bits: grey (H, W, 1), colour (H, W, 3), or colour with opacity (H, W, 4)."""
        profile = picture.info.get("icc_profile")
        grey = picture.mode in ("1", "L", "LA")
        opacity_HW = None
        if picture.has_transparency_data or picture.mode in ("P", "PA"):
            layers_HWC = np.asarray(picture.convert("RGBA"))
            if picture.mode in ("P", "PA"):  # so GIF, and small PNG files, store a grey picture
                seen_K3 = layers_HWC[layers_HWC[..., 3] > 0][:, :3]
                grey = bool((seen_K3 == seen_K3[:, :1]).all())
            if layers_HWC[..., 3].min() < 255:
                opacity_HW = layers_HWC[..., 3]
            picture = Image.fromarray(np.ascontiguousarray(layers_HWC[..., :3])).convert("L" if grey else "RGB")
        if profile:
            picture = self._in_srgb(picture, profile, notes)
        if opacity_HW is not None:
            return np.dstack([np.asarray(picture.convert("RGB")), opacity_HW])
        return np.atleast_3d(np.asarray(picture.convert("L" if grey else "RGB")))

    def _in_srgb(self, picture: Image.Image, profile: bytes, notes: Counter[str]) -> Image.Image:
        """A picture in the colours of sRGB; as it is where its profile is damaged or of other channels."""
        mode = {"1": "L", "L": "L", "CMYK": "CMYK"}.get(picture.mode, "RGB")
        transform = _to_srgb(profile, mode)
        if transform is None:
            notes["pictures whose colour profile is damaged or for other channels, and was not applied"] += 1
            return picture
        if not transform.changes:
            return picture
        notes["pictures converted to sRGB from their colour profile"] += 1
        return transform.apply(picture.convert(mode))


_SPREAD = (
    "Store the images as a .npy array, of which all bits are read, or spread them over the range, with ImageMagick's "
    "`-evaluate multiply 16 -depth 8` where 12 bits of 16 are used and `multiply 4` where 14 are; data.scale=0:{white} "
    "reads them as they are"
)
_CONVERT = "convert it to 8 bits, with ImageMagick's `-depth 8` for instance"


# ------------------------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class _Opened:
    """A decoded picture, upright, and what only its file says."""

    picture: Image.Image
    format: str
    frames: bool  # more than one
    turned: bool
    bits: int  # of a sample
    white_is_zero: bool


def _open(content: bytes) -> _Opened:
    if not content:
        raise PixelFault(f"is empty; {ANEW}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata, which change no pixel
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(content), formats=list(FORMATS))
            frames = picture.format not in ("JPEG", "MPO") and getattr(picture, "is_animated", False)
            tags = dict(getattr(picture, "tag_v2", {}))
            picture.load()
            turned = tags.get(_ORIENTATION, picture.getexif().get(_ORIENTATION, 1)) not in (0, 1)
            upright = ImageOps.exif_transpose(picture)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            limit = f"{Image.MAX_IMAGE_PIXELS:,} pixels"
            raise PixelFault(f"declares more than {limit}; make it smaller, if it is what it should be") from None
        except Exception as error:  # damaged bytes raise struct.error, SyntaxError, OSError, ...
            raise PixelFault(_undecodable(content, error)) from None
    if upright.mode in ("LAB", "HSV"):
        raise PixelFault(f"has colours in {upright.mode}; convert it to RGB")
    bits = _netpbm_bits(content) if picture.format == "PPM" else max(tags.get(_BITS_PER_SAMPLE, (8,)))
    bits = content[24] if picture.format == "PNG" else bits
    # Pillow turns these upside down itself where they have up to 8 bits.
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return _Opened(upright, str(picture.format), bool(frames), turned, bits, white_is_zero)


def _netpbm_bits(content: bytes) -> int:
    """Bits of a sample of a Netpbm file, by its header: kind, width, height and, but of bitmaps, what is white."""
    fields = re.sub(rb"#[^\r\n]*", b"", content[:_HEADER_BYTES]).split(maxsplit=4)
    has_white = len(fields) > 3 and fields[0] in _NETPBM_WITH_WHITE and fields[3].isdigit()
    return 16 if has_white and int(fields[3]) > 255 else 8


# How files begin that people take for pictures, and what is to be done about them.
_BEGINNINGS = {
    rb"\x89PNG": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"GIF8": "GIF",
    rb"RIFF....WEBP": "WebP",
    rb"BM": "BMP",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
    rb"P[1-6]\s": "Netpbm",
    rb"....ftyp(?:heic|heix|heim|heis|hevc|mif1|msf1)": "HEIC; convert it to PNG or JPEG",
    rb"....ftypavi[fs]": "AVIF; convert it to PNG or JPEG",
    rb"....ftyp": "a video; store the pictures in it as PNG",
    rb"\0\0\0\x0c(?:jP  |JXL )|\xff\x0a|\xff\x4f\xff\x51": "JPEG 2000 or JPEG XL; convert it to PNG or JPEG",
    rb"8BPS": "a Photoshop document; export it as PNG",
    rb"\x00\x00\x01\x00": "an icon; convert it to PNG",
    rb"%PDF|%!PS": "PDF or PostScript; export its pages as PNG",
    rb"(?s:.{128})DICM": "DICOM; export it as PNG or TIFF, or as a .npy array",
    rb"\x93NUMPY": "a NumPy array; call it .npy and give it as data.path",
    rb"\x89HDF": "HDF5; store the images as .npy, .npz or Parquet",
    rb"PAR1": "Parquet; call it .parquet and give it as data.path",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc|Rar!|BZh|\xfd7zXZ": "an archive; unpack it",
    rb"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch it with `git lfs pull`",
    rb"(?:data:image/|iVBORw0KGgo|/9j/|R0lGOD|UklGR)": "base64 text; decode it to the bytes that it stands for",
    rb"(?si:\s*(?:<\?xml.{,1000})?<svg)": "SVG, which has no pixels; export it as PNG",
    rb"(?i:\s*<(?:!doctype html|html|head|body))": "a web page, perhaps the error page of a download; fetch it again",
}
_AT_THE_END = 2048  # bytes of it in which a file's own end may stand, before what other programs append


def format_of(content: bytes) -> str | None:
    """The format that the first bytes show, of pictures and of what is taken for them; None for all others."""
    return next((name for start, name in _BEGINNINGS.items() if re.match(start, content, re.DOTALL)), None)


def _undecodable(content: bytes, error: Exception) -> str:
    name = format_of(content)
    formats = ", ".join(FORMATS.values())
    if name is not None and name in FORMATS.values():
        if _is_cut(name, content):
            return f"is a {name} image that is cut short, after {len(content)} bytes; {ANEW}"
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({str(error).strip().rstrip('.')})"
        mend = "; write it anew, or convert it to PNG, with ImageMagick or GIMP for instance"
        return f"is a {name} image that is damaged, or of a kind that Pillow does not read{why}{mend}"
    if name:
        return f"is {name}; pictures are {formats}"
    with_text = re.match(rb"[\t\n\r\x20-\x7e]{8,}", content[:40])
    begins = repr(with_text[0].decode()) if with_text else f"the bytes {content[:8].hex(' ')}"
    return (
        f"is not a picture in a known format ({formats}): it begins with {begins}; convert it to PNG, or leave it out"
    )


def _is_cut(name: str, content: bytes) -> bool:
    """Whether a file ends before its own format says so; False where that is not known."""
    tail = content[-_AT_THE_END:]
    if name == "PNG":
        return b"IEND" not in tail
    if name == "JPEG":
        return b"\xff\xd9" not in tail
    if name == "GIF":
        return not tail.rstrip(b"\0").endswith(b";")
    if name == "WebP":
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    return name == "BMP" and len(content) < int.from_bytes(content[2:6], "little")


# ----------------------------------------------------------------------------------------------------------- colours


@dataclass(frozen=True)
class _ToSrgb:
    """A transform from the colours of a profile to sRGB, and whether it does more than rounding."""

    apply: Callable[[Image.Image], Image.Image]
    changes: bool


@lru_cache(maxsize=16)  # pictures of a set mostly have the same profile
def _to_srgb(profile: bytes, mode: str) -> _ToSrgb | None:
    """The transform of pictures of a mode; None where the profile is damaged, or for other channels."""
    try:
        # What browsers do: black becomes black, and colours that sRGB has stay as they are.
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            # Optimised for 8 bits, dark greys are several levels off.
            ImageCms.Flags.BLACKPOINTCOMPENSATION | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    colours = [steps] * (1 if mode == "L" else 3)
    probe = np.stack(np.meshgrid(*colours), -1).reshape(1, -1, len(colours))
    shown = transform.apply(Image.fromarray(probe[..., 0] if mode == "L" else probe)) if mode != "CMYK" else None
    changes = shown is None or bool(np.abs(np.asarray(shown).astype(int) - probe).max() > 1)
    return _ToSrgb(transform.apply, changes)
