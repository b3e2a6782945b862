"""Parquet files: all ways to store images give the same images; errors name file, column and row."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from aae_ray.datasets.parquet import read_parquet
from aae_ray.errors import UserError
from tests.datasets.small_sets import gather

RANDOM = np.random.default_rng(0)


def picture(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def table(images: Any, labels: Any = None, type: Any = None, **columns: Any) -> pa.Table:
    columns = {"image": images if isinstance(images, pa.Array) else pa.array(images, type=type), **columns}
    return pa.table(columns if labels is None else columns | {"label": labels})


def read(path: Path, image_column: str | None = None, label_column: str | None = None) -> Any:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    return gather(read_parquet(files, image_column, label_column))


GREY = RANDOM.integers(0, 256, (150, 6, 6), dtype=np.uint8)  # more than two batches
COLOUR = RANDOM.integers(0, 256, (150, 3, 4, 5), dtype=np.uint8)
FLAT = GREY.reshape(150, 36)
U8 = pa.uint8()

PARQUET_KINDS: dict[str, tuple[Callable[[], pa.Table], np.ndarray]] = {
    "fixed-size list": (lambda: table(FLAT.tolist(), type=pa.list_(U8, 36)), GREY[:, None]),
    "list": (lambda: table(FLAT.tolist(), type=pa.list_(U8)), GREY[:, None]),
    "large list": (lambda: table(FLAT.tolist(), type=pa.large_list(U8)), GREY[:, None]),
    "H x W": (lambda: table(GREY.tolist(), type=pa.list_(pa.list_(U8))), GREY[:, None]),
    "H x W fixed": (lambda: table(GREY.tolist(), type=pa.list_(pa.list_(U8, 6), 6)), GREY[:, None]),
    "C x H x W": (lambda: table(COLOUR.tolist(), type=pa.list_(pa.list_(pa.list_(U8)))), COLOUR),
    "C x H x W mixed": (lambda: table(COLOUR.tolist(), type=pa.list_(pa.list_(pa.list_(U8, 5)), 3)), COLOUR),
    "int64": (lambda: table(FLAT.tolist(), type=pa.list_(pa.int64())), GREY[:, None]),
    "double": (lambda: table((FLAT / 255).tolist()), GREY[:, None]),
    "float": (lambda: table((FLAT / 255).tolist(), type=pa.list_(pa.float32())), GREY[:, None]),
    "half": (lambda: table(list((FLAT / 255).astype(np.float16))), GREY[:, None]),
    "PNG": (lambda: table([picture(image) for image in GREY]), GREY[:, None]),
    "PNG in large binary": (
        lambda: table([picture(image) for image in GREY], type=pa.large_binary()),
        GREY[:, None],
    ),
    "colour PNG": (lambda: table([picture(image.transpose(1, 2, 0)) for image in COLOUR]), COLOUR),
    "Hugging Face": (
        lambda: table([{"bytes": picture(image), "path": f"{n}.png"} for n, image in enumerate(GREY)]),
        GREY[:, None],
    ),
}


@pytest.mark.parametrize("kind", PARQUET_KINDS)
def test_parquet_kinds(tmp_path: Path, kind: str) -> None:
    make, expected_NCHW = PARQUET_KINDS[kind]
    pq.write_table(make(), tmp_path / "a.parquet", row_group_size=90)
    images_NCHW, labels_N = read(tmp_path)
    assert np.array_equal(images_NCHW, expected_NCHW)
    assert labels_N is None


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3)])
def test_png_modes(tmp_path: Path, mode: str, channels: int) -> None:
    black_and_white = np.kron(np.eye(3, dtype=np.uint8), np.full((2, 2), 255, np.uint8))
    pq.write_table(table([picture(black_and_white, mode=mode)]), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path)
    assert np.array_equal(images_NCHW, np.broadcast_to(black_and_white, (1, channels, 6, 6)))


def test_jpeg_is_read_as_it_decodes(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    pq.write_table(table([picture(smooth, "JPEG")]), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path)
    assert np.abs(images_NCHW[0, 0].astype(int) - smooth).max() < 10


def test_fractions_reach_both_ends_of_the_scale(tmp_path: Path) -> None:
    pq.write_table(table([[0.0, 1.0, 0.5, 1 / 255]]), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path)
    assert images_NCHW.ravel().tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize(
    ("columns", "named", "expected"),
    [
        ({"label": [2, 0]}, None, [2, 0]),
        ({"label": [2.0, 0.0]}, None, [2, 0]),
        ({"label": [2, 0], "age": [7, 9]}, "age", [7, 9]),
        ({"age": [7, 9]}, None, None),
        ({"label": ["cat", None]}, None, ["cat", None]),
        ({"label": [2, 0]}, "none", None),
    ],
)
def test_labels(tmp_path: Path, columns: dict[str, Any], named: str | None, expected: list[int] | None) -> None:
    pq.write_table(table(FLAT[:2].tolist(), **columns), tmp_path / "a.parquet")
    _, labels_N = read(tmp_path, label_column=named)
    assert (None if labels_N is None else labels_N.tolist()) == expected


def test_files_of_a_folder_follow_their_names(tmp_path: Path) -> None:
    for name, start in (("b", 70), ("a", 0), ("empty", 150)):
        stop = {0: 70, 70: 150, 150: 150}[start]
        rows = table(FLAT[start:stop].tolist(), np.arange(start, stop), type=pa.list_(U8))
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    images_NCHW, labels_N = read(tmp_path)
    assert np.array_equal(images_NCHW[:, 0], GREY)
    assert np.array_equal(labels_N, np.arange(150))


def test_a_named_image_column_is_taken_among_several(tmp_path: Path) -> None:
    pq.write_table(table(FLAT.tolist(), mask=(FLAT[:, :4] // 2).tolist()), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path, image_column="mask")
    assert np.array_equal(images_NCHW, FLAT[:, :4].reshape(-1, 1, 2, 2) // 2)


def test_parquet_takes_memory_for_a_few_images_only(tmp_path: Path) -> None:
    pixels = pa.array(RANDOM.integers(0, 256, 4000 * 4096, dtype=np.uint8))
    pq.write_table(table(pa.FixedSizeListArray.from_arrays(pixels, 4096)), tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    stream = read_parquet([tmp_path / "a.parquet"], None, None)
    peak = max(pa.total_allocated_bytes() - before for _ in stream.blocks)
    assert peak < (tmp_path / "a.parquet").stat().st_size / 2


ONE = FLAT[:1].tolist()
THIRTY_ONE = FLAT[:31].tolist()
DEEP = pa.list_(pa.list_(pa.list_(U8)))

PARQUET_FAULTS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "no image column": (lambda: pa.table({"a": [1], "b": ["x"]}), "its columns are a (int64), b (string)"),
    "no columns": (lambda: pa.table({}), "its columns are none"),
    "several candidates": (lambda: table(ONE, mask=ONE), "several columns of images, image, mask; choose one"),
    "no rows": (lambda: table([], type=pa.list_(U8)), "holds no images"),
    "null image": (lambda: table([*THIRTY_ONE, None], type=pa.list_(U8)), "row 31 of column image is null"),
    "null in fixed list": (lambda: table([*ONE, None], type=pa.list_(U8, 36)), "(column image): Expected"),
    "null PNG": (lambda: table([picture(GREY[0]), None]), "row 1 of column image is null"),
    "null row of pixels": (
        lambda: table([[[1]], [None]], type=pa.list_(pa.list_(U8))),
        "row 1 of column image holds a null",
    ),
    "null pixel": (lambda: table([[1], [None]], type=pa.list_(U8)), "row 1 of column image holds a null"),
    "null pixel deep": (
        lambda: table([[[[1], [2]]], [[[1], [None]]]], type=DEEP),
        "row 1 of column image holds a null",
    ),
    "empty list": (lambda: table([[], []], type=pa.list_(U8)), "row 0 of column image holds an empty list"),
    "bytes null": (
        lambda: table([{"bytes": None}], type=pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "row 0 of column image has no bytes, only a path",
    ),
    "undecodable": (lambda: table([picture(GREY[0]), b"x" * 99]), "row 1 of column image cannot be decoded"),
    "no bytes": (lambda: table([b""]), "row 0 of column image cannot be decoded"),
    "truncated PNG": (lambda: table([picture(GREY[0])[:-30]]), "row 0 of column image cannot be decoded"),
    "GIF": (lambda: table([picture(GREY[0], "GIF")]), "decoded as a PNG or JPEG image: unknown format"),
    "16 bits": (lambda: table([picture(GREY[0].astype(np.uint16))]), "row 0 of column image has 16 bits"),
    "shapes of PNG": (
        lambda: table([picture(GREY[0]), picture(GREY[0, :5])]),
        "row 1 of column image is 1 x 5 x 6 (channels x height x width) and those before it are 1 x 6 x 6",
    ),
    "channels of PNG": (
        lambda: table([picture(GREY[0]), picture(GREY[0], mode="RGB")]),
        "row 1 of column image is 3 x 6 x 6",
    ),
    "shapes of lists": (lambda: table([[1, 2, 3, 4], [1]]), "row 1 of column image has lists of another"),
    "shapes of nested lists": (
        lambda: table([[[1, 2], [3, 4]], [[1, 2], [3]]]),
        "row 1 of column image has lists of another length than those before it (1, 2)",
    ),
    "shapes in later batches": (
        lambda: table([[1]] * 64 + [[1, 2, 3, 4]] * 3),
        "row 64 of column image is 1 x 2 x 2 (channels x height x width) and those before it are 1 x 1 x 1",
    ),
    "no square": (lambda: table([[1] * 12]), "is a flat list of 12 pixels, not a square"),
    "H x W x C": (lambda: table(RANDOM.integers(0, 9, (1, 8, 8, 3)).tolist()), "looks like H x W x C"),
    "four channels": (
        lambda: table(RANDOM.integers(0, 9, (1, 4, 8, 8)).tolist()),
        "row 0 of column image is 4 x 8 x 8 (channels x height x width); images have 1 channel or 3",
    ),
    "above 255": (lambda: table([[1], [2], [256]]), "row 2 of column image has a pixel of 256; whole"),
    "below 0": (lambda: table([[1], [-1]]), "row 1 of column image has a pixel of -1; whole"),
    "fraction above 1": (lambda: table([[0.5], [1.01]]), "row 1 of column image has a pixel of 1.01; pixel"),
    "fraction below 0": (lambda: table([[-0.1]]), "row 0 of column image has a pixel of -0.1; pixel values"),
    "pixel NaN": (lambda: table([[float("nan")]]), "row 0 of column image has a pixel of nan; pixel values"),
    "one-hot labels": (
        lambda: table([[1], [1]], [[0, 1], [1, 0]]),
        "column label holds list<element: int64>, like one-hot codes; labels are one whole number, text, date",
    ),
    "labels of bytes": (lambda: table([[1]], [b"cat"]), "column label holds binary; labels are one whole number"),
}


@pytest.mark.parametrize("fault", PARQUET_FAULTS)
def test_parquet_fault_is_reported(tmp_path: Path, fault: str) -> None:
    make, message = PARQUET_FAULTS[fault]
    file = tmp_path / "a.parquet"
    pq.write_table(make(), file)
    with pytest.raises(UserError) as error:
        read(file)
    assert str(file) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("image_column", "label_column", "message"),
    [
        ("imgae", None, "data.image_column: {file} has no column imgae, but image, name. Did you mean"),
        ("name", None, "{file}: column name holds string; images are PNG or JPEG bytes, or lists"),
        (None, "nmae", "data.label_column: {file} has no column nmae, but image, name. Did you mean"),
        (None, "image", "{file}: column image holds list<element: int64>, like one-hot codes; labels"),
    ],
)
def test_wrongly_named_column(tmp_path: Path, image_column: str | None, label_column: str | None, message: str) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(ONE, name=["x"]), file)
    with pytest.raises(UserError) as error:
        read(file, image_column, label_column)
    assert str(error.value).startswith(message.format(file=file))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"no Parquet" * 9, "cannot be read as"), (None, "cannot be read as")],
    ids=["empty", "other file", "truncated"],
)
def test_damaged_parquet(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(FLAT.tolist()), file)
    file.write_bytes(file.read_bytes()[:-50] if content is None else content)
    with pytest.raises(UserError, match=message) as error:
        read(file)
    assert str(file) in str(error.value)


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table([picture(image) for image in GREY]), file, use_dictionary=False, compression="zstd")
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table([[0.5]]), "b.parquet: column image holds list<element: double>; in"),
        (table([[1]], label=["cat"]), "b.parquet: column label holds string; in"),
        (pa.table({"picture": [[1]]}), "b.parquet: column image is missing; in"),
        (table([[1, 2, 3, 4]], label=[1]), "b.parquet: row 0 of column image is 1 x 2 x 2 (channels"),
    ],
    ids=["type", "label type", "missing", "shape"],
)
def test_files_of_a_folder_must_agree(tmp_path: Path, other: pa.Table, message: str) -> None:
    pq.write_table(table([[1]], label=[1]), tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "b.parquet")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert message in str(error.value)
