"""Images in Arrow columns, as pandas, polars, DuckDB, Hugging Face datasets and Ray Data store them.

`B` images of a batch, `C` channels, `H` height, `W` width.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.image_stream import SeenRange, size_text
from aae_ray.errors import UserError

CHANNELS = (1, 3)  # grey and colour: what can be shown
WHAT = "pictures as bytes (PNG, JPEG), or lists of pixel values"

# Extension types whose metadata are the shape of a tensor, as JSON; Ray's are described in ray.data.extensions.
_SHAPED = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_ANY_SHAPE = "ray.data.arrow_variable_shaped_tensor"
# How pictures begin: fixed-size binaries that do not are raw pixels.
_PICTURE = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\x00", b"MM\x00*")

Fault = Callable[[int, str], UserError]  # of a row of a batch


@dataclass(frozen=True)
class Kind:
    """How a column stores images: in which family of values, and in which shape where its type says so."""

    family: str  # pictures, whole numbers, fractions, true and false: shards of one set have one of them
    shape: tuple[int, ...] = ()  # of the tensor in a row
    axes: tuple[int, ...] = ()  # of the tensor, in the order in which they are stored

    @property
    def is_pictures(self) -> bool:
        return self.family == PICTURES


PICTURES, WHOLE, FRACTIONS, BOOLEANS = "pictures", "whole numbers", "fractions", "true and false"


def kind_of(field: Any) -> Kind | None:
    """How a column of this Arrow field stores images; None where it holds something else."""
    import pyarrow as pa

    types, kind = pa.types, field.type
    name, shape, axes = _extension(field)
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if name == _ANY_SHAPE and types.is_struct(kind):
        family = _family(kind.field("data").type.value_type)
        return Kind(family) if family else None
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return Kind(PICTURES)
    if types.is_fixed_size_binary(kind):
        return Kind(PICTURES)
    depth = 0
    while is_list(kind):
        kind, depth = kind.value_type, depth + 1
    family = _family(kind)
    if family is None or not 1 <= depth <= 3:
        return None
    return Kind(family, shape, axes)


def _extension(field: Any) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Name, shape and order of axes of a field's extension type, whether a library has registered it or not."""
    import pyarrow as pa

    if isinstance(field.type, pa.FixedShapeTensorType):
        return field.type.extension_name, tuple(field.type.shape), tuple(field.type.permutation or ())
    if isinstance(field.type, pa.ExtensionType):
        name, content = field.type.extension_name, field.type.__arrow_ext_serialize__()
    else:
        metadata = field.metadata or {}
        name = metadata.get(b"ARROW:extension:name", b"").decode()
        content = metadata.get(b"ARROW:extension:metadata", b"")
    return name, tuple(json.loads(content)) if name in _SHAPED else (), ()


def is_list(kind: Any) -> bool:
    """Whether values of this Arrow type are lists, of whatever sort."""
    import pyarrow as pa

    types = pa.types
    checks = (
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_list_view,
        types.is_large_list_view,
    )
    return any(check(kind) for check in checks)


def _family(kind: Any) -> str | None:
    import pyarrow as pa

    families = ((pa.types.is_integer, WHOLE), (pa.types.is_floating, FRACTIONS), (pa.types.is_boolean, BOOLEANS))
    return next((family for holds, family in families if holds(kind)), None)


def is_number(kind: Any) -> bool:
    """Whether values of this Arrow type can be pixels."""
    return _family(kind) is not None


def read_images(column: Any, kind: Kind, fault: Fault, seen: SeenRange) -> list[NDArray[np.uint8]] | NDArray[np.uint8]:
    """A batch of rows as images (C, H, W), which may differ in shape where they are pictures."""
    import pyarrow as pa

    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    missing = _nulls(column)
    if missing.any():
        raise fault(int(np.argmax(missing)), "is null; every row must hold an image")
    if kind.is_pictures:
        pictures = _pictures(column, fault)
        for picture in pictures:
            seen.show(picture)
        return pictures
    if pa.types.is_struct(column.type):
        column, kind = _of_one_shape(column, kind, fault)
    return pixels_to_bytes(_shaped(_nested(column, fault), kind, fault), fault, seen)


# ------------------------------------------------------------------------------------------------------- pictures


def _pictures(column: Any, fault: Fault) -> list[NDArray[np.uint8]]:
    import pyarrow as pa

    values = column.to_pylist()
    raw = pa.types.is_fixed_size_binary(column.type) and not values[0].startswith(_PICTURE)
    if raw:
        return list(_shaped(np.stack([np.frombuffer(value, np.uint8) for value in values]), Kind(WHOLE), fault))
    pictures = []
    for offset, value in enumerate(values):
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None:
            raise fault(offset, "has no bytes, only a path; the images themselves must be in the file")
        pictures.append(_decoded(content, offset, fault))
    return pictures


def _decoded(content: bytes, offset: int, fault: Fault) -> NDArray[np.uint8]:
    """A PNG or JPEG as image_CHW: one channel where it is grey, else three; transparency is dropped."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        image.load()
    except Exception as error:  # damaged bytes raise struct.error, SyntaxError, OSError, ...
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise fault(offset, f"cannot be decoded as a PNG or JPEG image: {reason}") from None
    if image.mode.startswith("I"):
        raise fault(offset, "has 16 bits per pixel; convert the images to 8 bits")
    image_HWC = np.atleast_3d(np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")))
    return image_HWC.transpose(2, 0, 1)


# --------------------------------------------------------------------------------------------------------- pixels


def _nulls(values: Any) -> NDArray[np.bool_]:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def _of_one_shape(column: Any, kind: Kind, fault: Fault) -> tuple[Any, Kind]:
    """The values of tensors that say their shape row by row, which must be the same."""
    shapes = column.field("shape").to_pylist()
    other = next((offset for offset, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise fault(other, f"is {size_text(shapes[other])} and those before it are {size_text(shapes[0])}{_ONE_SHAPE}")
    return column.field("data"), Kind(kind.family, tuple(shapes[0]))


_ONE_SHAPE = "; all images must have the same shape"


def _nested(column: Any, fault: Fault) -> NDArray[Any]:
    """Lists of equal lengths as one array, with a dimension for each level of nesting."""
    import pyarrow.compute as pc

    values, shape = column, [len(column)]

    def check(good: NDArray[np.bool_], message: str) -> None:
        if not good.all():
            raise fault(int(np.argmin(good)) // math.prod(shape[1:]), message)

    while True:
        check(~_nulls(values), "holds a null; every pixel must have a value")
        if not is_list(values.type):
            return np.asarray(values.to_numpy(zero_copy_only=False).reshape(shape))
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        check(lengths > 0, "holds an empty list; every row must hold an image")
        check(
            lengths == lengths[0],
            f"has lists of another length than those before it ({', '.join(map(str, np.unique(lengths)[:9]))})"
            f"{_ONE_SHAPE}",
        )
        shape.append(int(lengths[0]))
        values = values.flatten()


def _shaped(pixels: NDArray[Any], kind: Kind, fault: Fault) -> NDArray[Any]:
    """Pixels as nested in the file, with the batch in front, as pixels_BCHW."""
    if kind.shape:
        if math.prod(kind.shape) != math.prod(pixels.shape[1:]):
            raise fault(0, f"has {math.prod(pixels.shape[1:])} values and a type of {size_text(kind.shape)}")
        pixels = pixels.reshape(-1, *kind.shape)
        if kind.axes:  # where each axis of the tensor is stored
            pixels = pixels.transpose(0, *(axis + 1 for axis in np.argsort(kind.axes)))
    shape = pixels.shape[1:]
    if len(shape) == 1:
        side = math.isqrt(shape[0])
        if side * side != shape[0]:
            raise fault(0, f"is a flat list of {shape[0]} pixels, not a square; nest it as H x W")
        return pixels.reshape(-1, 1, side, side)
    if len(shape) == 2:
        return pixels[:, np.newaxis]
    if len(shape) > 3:
        raise fault(0, f"is {size_text(shape)}; images are H x W, C x H x W or H x W x C")
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if first and last and max(shape) > 1:
        raise fault(
            0, f"is {size_text(shape)}, which may be C x H x W and H x W x C; nest images of one channel as H x W"
        )
    if last and not first:
        return np.moveaxis(pixels, 3, 1)
    if not first:
        raise fault(0, f"is {size_text(shape)}; images have 1 channel or 3, as C x H x W or H x W x C")
    return pixels


def pixels_to_bytes(pixels_BCHW: NDArray[Any], fault: Fault, seen: SeenRange) -> NDArray[np.uint8]:
    """Whole numbers from 0 to 255 as they are; fractions in [0, 1], true and false spread over 0 to 255."""
    seen.show(pixels_BCHW)
    if pixels_BCHW.dtype == np.bool_:
        return pixels_BCHW.astype(np.uint8) * np.uint8(255)
    whole = np.issubdtype(pixels_BCHW.dtype, np.integer)
    good = (pixels_BCHW >= 0) & (pixels_BCHW <= (255 if whole else 1))  # false for NaN
    if not good.all():
        offset = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
        right = "whole pixel values are 0 to 255" if whole else "pixel values with a fraction are in [0, 1]"
        raise fault(offset, f"has a pixel of {pixels_BCHW[~good][0]}; {right}")
    return pixels_BCHW.astype(np.uint8) if whole else np.rint(pixels_BCHW * 255).astype(np.uint8)


def of_one_shape(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], shape_CHW: tuple[int, ...] | None, fault: Fault
) -> NDArray[np.uint8]:
    """Images of a batch as images_BCHW; `shape_CHW` is that of the images before, if there were any."""
    expected = shape_CHW or images[0].shape
    for offset, image_CHW in enumerate(images):
        if image_CHW.shape != expected:
            raise fault(
                offset,
                f"is {size_text(image_CHW.shape)} (channels x height x width) and those before it are "
                f"{size_text(expected)}{_ONE_SHAPE}",
            )
    return np.asarray(images)
