"""Images in Arrow columns, as pandas, polars, DuckDB, Hugging Face datasets and Ray Data store them.

`B` images of a batch, `C` channels, `H` height, `W` width.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.image_stream import size_text
from aae_ray.datasets.pictures import FORMATS, Pictures, format_of
from aae_ray.datasets.pixels import PixelFault, arrange_block, located_faults, stack
from aae_ray.errors import UserError

CHANNELS = (1, 3)  # grey and colour: what can be shown
WITH_OPACITY = 4  # channels, where no other side can be those of grey or colour
WHAT = "pictures as bytes (PNG, JPEG, ...), or lists of pixel values"

# Extension types whose metadata are the shape of a tensor, as JSON; Ray's are described in ray.data.extensions.
_SHAPED = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")
_UUID_BYTES = 16
_ANY_SHAPE = "ray.data.arrow_variable_shaped_tensor"

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


def is_identifier(field: Any) -> bool:
    """Whether a column of this Arrow field holds what is as long as a UUID, and images only where somebody says so."""
    import pyarrow as pa

    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    return bool(pa.types.is_fixed_size_binary(kind)) and kind.byte_width == _UUID_BYTES


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


@dataclass(frozen=True)
class Batch:
    """Some rows of a column of images, how they are stored, and how a fault of one of them is told."""

    column: Any
    kind: Kind
    fault: Fault


def read_images(batches: Callable[[], Iterator[Batch]], pictures: Pictures, whole: str) -> Iterator[NDArray[np.uint8]]:
    """The images of all batches, arranged by the settings, as blocks images_BCHW of one shape.

    `batches` gives all of them anew at each call, as the range of values may be asked first; `whole` names them all.
    Raises UserError.
    """
    scale, raw = pictures.scale, _are_raw(next(batches(), None))

    def of_equal_shapes() -> Iterator[Batch]:
        for batch in batches():
            yield from [batch] if _of_files(batch, raw) else _of_equal_shapes(batch)

    if scale.needs_observing:
        for batch in of_equal_shapes():
            if _of_files(batch, raw):
                for offset, content in enumerate(_contents(batch)):
                    with _located_faults(batch, offset):
                        pictures.observe(content)
            else:
                with _located_faults(batch):
                    scale.observe(_pixels(batch))
    yield from stack(_of_one_kind(of_equal_shapes, raw, pictures))
    with located_faults(whole):
        scale.finish()


def _of_one_kind(
    batches: Callable[[], Iterator[Batch]], raw: bool, pictures: Pictures
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Images (H, W, C) one by one, each with its place."""
    rest = batches()
    for batch in rest:
        if _of_files(batch, raw):
            for offset, content in enumerate(_contents(batch)):
                with _located_faults(batch, offset):
                    yield _location(batch, offset), pictures.decode(content)
            continue
        pixels_BCHW = _pixels(batch)
        try:
            images_BCHW = _to_bytes(pixels_BCHW, pictures)
        except PixelFault:
            with suppress(PixelFault, UserError):  # so that the message knows the range of the whole set
                for other in rest:
                    pictures.scale.observe(_pixels(other))
            with _located_faults(batch):
                images_BCHW = _to_bytes(pixels_BCHW, pictures)
        for offset, image_CHW in enumerate(images_BCHW):
            yield _location(batch, offset), image_CHW.transpose(1, 2, 0)


def _of_equal_shapes(batch: Batch) -> Iterator[Batch]:
    """A batch of pixels, image by image where not all of them have one shape."""
    column = _stored(batch)
    if _have_one_shape(column):
        yield batch
        return
    for offset in range(len(column)):
        yield Batch(batch.column.slice(offset, 1), batch.kind, partial(_fault_behind, batch.fault, offset))


def _fault_behind(fault: Fault, start: int, offset: int, message: str) -> UserError:
    return fault(start + offset, message)


def _have_one_shape(column: Any) -> bool:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        shapes = column.field("shape").to_pylist()
        return all(shape == shapes[0] for shape in shapes)
    while is_list(column.type):
        ends = pc.min_max(pc.list_value_length(column))
        if ends["min"] != ends["max"]:
            return False
        column = column.flatten()
    return True


def _to_bytes(pixels_BCHW: NDArray[Any], pictures: Pictures) -> NDArray[np.uint8]:
    return arrange_block(pictures.scale.to_bytes(pixels_BCHW).transpose(0, 2, 3, 1), pictures.data)


def _location(batch: Batch, offset: int) -> str:
    return str(batch.fault(offset, "")).rstrip()


@contextmanager
def _located_faults(batch: Batch, offset: int = 0) -> Iterator[None]:
    """Faults of pixels as UserError that begins with the row: `offset` in the batch, or the fault's own."""
    try:
        yield
    except PixelFault as fault:
        raise batch.fault(offset + fault.index, str(fault)) from None


def _stored(batch: Batch) -> Any:
    """The column in its plain form. Raises UserError at a row without an image."""
    import pyarrow as pa

    column = batch.column
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    missing = _nulls(column)
    if missing.any():
        raise batch.fault(int(np.argmax(missing)), "is null; every row must hold an image")
    return column


# ------------------------------------------------------------------------------------------------------- pictures


def _are_raw(first: Batch | None) -> bool:
    """Whether binaries of a fixed size are pixels and no picture files: few of them begin as those do, by chance."""
    if first is None or not _of_fixed_size(first):
        return False
    contents = _stored(first).to_pylist()
    return 2 * sum(format_of(content) in FORMATS.values() for content in contents) < len(contents)


def _of_fixed_size(batch: Batch) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_fixed_size_binary(_stored(batch).type))


def _of_files(batch: Batch, raw: bool) -> bool:
    """Whether the images of a batch are picture files; `raw` says that binaries of a fixed size are none."""
    return batch.kind.is_pictures and not (raw and _of_fixed_size(batch))


def _contents(batch: Batch) -> Iterator[bytes]:
    for offset, value in enumerate(_stored(batch).to_pylist()):
        content = value["bytes"] if isinstance(value, dict) else value
        if content is None:
            raise batch.fault(offset, "has no bytes, only a path; the images themselves must be in the file")
        yield content


# --------------------------------------------------------------------------------------------------------- pixels


def _pixels(batch: Batch) -> NDArray[Any]:
    """Values of all pixels as pixels_BCHW."""
    import pyarrow as pa

    column, kind = _stored(batch), batch.kind
    if kind.is_pictures:
        values = np.stack([np.frombuffer(value, np.uint8) for value in column.to_pylist()])
        return _shaped(values, Kind(WHOLE), batch.fault)
    if pa.types.is_struct(column.type):
        column, kind = column.field("data"), Kind(kind.family, tuple(column.field("shape")[0].as_py()))
    return _shaped(_nested(column, batch.fault), kind, batch.fault)


def _nulls(values: Any) -> NDArray[np.bool_]:
    return np.asarray(values.is_null().to_numpy(zero_copy_only=False))


def _nested(column: Any, fault: Fault) -> NDArray[Any]:
    """Lists of equal lengths as one array, with a dimension for each level of nesting. Of a single image, the lists in
    it may differ in length, which is refused."""
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
            f"has lists of different lengths ({', '.join(map(str, np.unique(lengths)[:9]))}); an image is a rectangle",
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
    if not first and not last:
        first, last = shape[0] == WITH_OPACITY, shape[2] == WITH_OPACITY
    if first and last and max(shape) > 1:
        raise fault(
            0, f"is {size_text(shape)}, which may be C x H x W and H x W x C; nest images of one channel as H x W"
        )
    if last and not first:
        return np.moveaxis(pixels, 3, 1)
    if not first:
        raise fault(0, f"is {size_text(shape)}; images have 1 channel, 3 or 4, as C x H x W or H x W x C")
    return pixels
