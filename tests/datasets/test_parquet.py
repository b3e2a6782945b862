"""Parquet files: all ways to store images give the same images; errors name file, column and row."""

import io
import json
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
from aae_ray.settings import Data
from tests.datasets.small_sets import gather

RANDOM = np.random.default_rng(0)


def picture(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    stream, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def table(images: Any, labels: Any = None, type: Any = None, **columns: Any) -> pa.Table:
    columns = {"image": images if isinstance(images, pa.Array) else pa.array(images, type=type), **columns}
    return pa.table(columns if labels is None else columns | {"label": labels})


def read(path: Path, **data: Any) -> Any:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return gather(read_parquet(path, files, Data(**data)))


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


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 1), ("RGB", 3), ("RGBA", 3)])
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
    pq.write_table(table(FLAT.tolist(), mask=(255 - FLAT[:, :4]).tolist()), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path, image_column="mask")
    assert np.array_equal(images_NCHW, 255 - FLAT[:, :4].reshape(-1, 1, 2, 2))


def test_parquet_takes_memory_for_a_few_images_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aae_ray.datasets.pixels.BLOCK_BYTES", 1 << 20)
    pixels = pa.array(RANDOM.integers(0, 256, 4000 * 4096, dtype=np.uint8))
    pq.write_table(table(pa.FixedSizeListArray.from_arrays(pixels, 4096)), tmp_path / "a.parquet")
    before = pa.total_allocated_bytes()
    stream = read_parquet(tmp_path, [tmp_path / "a.parquet"], Data())
    peak = max(pa.total_allocated_bytes() - before for _ in stream.blocks)
    assert peak < (tmp_path / "a.parquet").stat().st_size / 2


ONE = FLAT[:1].tolist()
THIRTY_ONE = FLAT[:31].tolist()
DEEP = pa.list_(pa.list_(pa.list_(U8)))

PARQUET_FAULTS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "no image column": (lambda: pa.table({"a": [1], "b": ["x"]}), "its columns are a (int64), b (string)"),
    "no columns": (lambda: pa.table({}), "holds no images and no numbers: it has no rows"),
    "hundreds of columns": (
        lambda: pa.table({f"f{n}": [0.5] for n in range(300)} | {"x": ["a"]}),
        "its columns are f0 (double), f1 (double), f2 (double), f3 (double), f4 (double), f5 (double), f6 (double), "
        "f7 (double), ... (301 in all)",
    ),
    "base64": (
        lambda: pa.table({"image": ["iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAAAAAA6mKC9AAAAdklEQVR4nGNgGGSA"]}),
        "its columns are image (string), base64 by its look, which must be decoded to bytes",
    ),
    "paths": (
        lambda: pa.table({"image": ["img/0.png"]}),
        "its columns are image (string), paths of pictures such as img/0.png, which must be in the file themselves",
    ),
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
    "undecodable": (lambda: table([picture(GREY[0]), b"x" * 99]), "row 1 of column image is not a picture in a known"),
    "no bytes": (lambda: table([b""]), "row 0 of column image is empty"),
    "truncated PNG": (lambda: table([picture(GREY[0])[:-30]]), "row 0 of column image is a PNG image that is cut"),
    "GIF": (lambda: table([picture(GREY[0], "GIF")[:40]]), "row 0 of column image is a GIF image that is cut short"),
    "16 bits": (lambda: table([picture(GREY[0].astype(np.uint16))]), "such as data.scale=0:248"),
    "shapes of PNG": (
        lambda: table([picture(GREY[0]), picture(GREY[0, :5])]),
        "row 1 of column image is 5 x 6 in grey (height x width), and the images before it are 6 x 6 in grey",
    ),
    "channels of PNG": (
        lambda: table([picture(GREY[0]), picture(GREY[0], mode="RGB")]),
        "row 1 of column image is 6 x 6 in colour (height x width), and the images before it are 6 x 6 in grey",
    ),
    "shapes of lists": (
        lambda: table([[1, 2, 3, 4]] * 70 + [[1], [2]]),
        "row 70 of column image is 1 x 1 in grey (height x width), and the images before it are 2 x 2 in grey; there "
        "are 70 of 2 x 2 in grey, 2 of 1 x 1 in grey. All images must have the same shape: data.size=2x2 resizes them",
    ),
    "shapes of nested lists in one batch": (
        lambda: table([[[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]], [[1, 2], [3, 4]]]),
        "row 1 of column image is 2 x 3 in grey (height x width), and the images before it are 2 x 2 in grey; there "
        "are 2 of 2 x 2 in grey, 1 of 2 x 3 in grey.",
    ),
    "shapes of nested lists": (
        lambda: table([[[1, 2], [3, 4]], [[1, 2], [3]]]),
        "row 1 of column image has lists of different lengths (1, 2); an image is a rectangle",
    ),
    "shapes in later batches": (
        lambda: table([[1]] * 64 + [[1, 2, 3, 4]] * 3),
        "row 64 of column image is 2 x 2 in grey (height x width), and the images before it are 1 x 1 in grey",
    ),
    "no square": (lambda: table([[1] * 12]), "is a flat list of 12 pixels, not a square"),
    "C x H x W or H x W x C": (
        lambda: table(RANDOM.integers(0, 9, (1, 3, 8, 3)).tolist()),
        "row 0 of column image is 3 x 8 x 3, which may be C x H x W and H x W x C",
    ),
    "four channels": (
        lambda: table(RANDOM.integers(0, 9, (1, 4, 8, 8)).tolist()),
        "row 0 of column image is transparent in 64 of 64 pixels",
    ),
    "five channels": (
        lambda: table(RANDOM.integers(0, 9, (1, 5, 8, 8)).tolist()),
        "row 0 of column image is 5 x 8 x 8; images have 1 channel, 3 or 4",
    ),
    "two columns of one name": (
        lambda: table([[1]], [1]).append_column("label", pa.array([2])),
        "has several columns of the name label; give each a name of its own",
    ),
    "a part of another name": (
        lambda: table([[1], [2]], split=["train", "extra"]),
        "row 1 of column split is extra, which names no part (train, training, val, valid, validation, test",
    ),
    "above 255": (lambda: table([[1], [2], [256]]), "row 2 of column image has a pixel value outside of 0 to 255"),
    "below 0": (lambda: table([[1], [-1]]), "row 1 of column image has a pixel value outside of 0 to 255"),
    "fraction above 1": (lambda: table([[0.5], [1.01]]), "row 1 of column image has a pixel value outside of 0"),
    "fraction below 0": (lambda: table([[-0.1]]), "row 0 of column image has a pixel value outside of 0 to 1"),
    "pixel NaN": (lambda: table([[float("nan")]]), "row 0 of column image has a pixel value of NaN or"),
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
        ("name", None, "{file}: column name holds string; images are pictures as bytes"),
        (None, "nmae", "data.label_column: {file} has no column nmae, but image, name. Did you mean"),
        (None, "image", "{file}: column image holds list<element: int64>, like one-hot codes; labels"),
    ],
)
def test_wrongly_named_column(tmp_path: Path, image_column: str | None, label_column: str | None, message: str) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(table(ONE, name=["x"]), file)
    with pytest.raises(UserError) as error:
        read(file, image_column=image_column, label_column=label_column)
    assert str(error.value).startswith(message.format(file=file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; copy or download it again"),
        (b"no Parquet" * 9, "is not a Parquet file: it begins with b'no P"),
        (None, "is cut: its end is"),
        (b"PAR1", "is cut: its end is missing after 4 bytes; copy or download it again"),
    ],
    ids=["empty", "other file", "truncated", "its first bytes"],
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
    assert str(error.value).endswith("; copy or download it again, or take it out of the folder")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (table([[0.5]]), "b.parquet: column image holds list<element: double>; in"),
        (table([[1]], label=["cat"]), "b.parquet: column label holds string; in"),
        (pa.table({"picture": [[1]]}), "it holds list<element: int64>. Write it into all files"),
        (table([[1, 2, 3, 4]], label=[1]), "b.parquet: row 0 of column image is 2 x 2 in grey"),
    ],
    ids=["type", "label type", "missing", "shape"],
)
def test_files_of_a_folder_must_agree(tmp_path: Path, other: pa.Table, message: str) -> None:
    pq.write_table(table([[1]], label=[1]), tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "b.parquet")
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert message in str(error.value)


def test_a_column_of_parts_that_some_files_lack_is_not_left_out_in_silence(tmp_path: Path) -> None:
    files = {"a": table([[1], [200]]), "b": table([[1], [200]], split=["train", "test"])}
    for with_it, without in (("a", "b"), ("b", "a")):
        pq.write_table(files["b"], tmp_path / f"{with_it}.parquet")
        pq.write_table(files["a"], tmp_path / f"{without}.parquet")
        told = rf"{without}\.parquet: column split is missing, .* in \S*{with_it}\.parquet .*data\.split_column=none"
        with pytest.raises(UserError, match=told):
            read(tmp_path)
    assert len(read(tmp_path, split_column="none")[0]) == 4
    pq.write_table(table([[1], [200]], split=[3, 4]), tmp_path / "b.parquet")  # which names no parts
    assert len(read(tmp_path)[0]) == 4


def test_columns_of_images_that_later_files_alone_have_are_told(tmp_path: Path) -> None:
    pixels = {f"pixel{index}": [1, 200] for index in range(9)}
    pq.write_table(pa.table(dict(list(pixels.items())[:4])), tmp_path / "a.parquet")
    pq.write_table(pa.table(pixels), tmp_path / "b.parquet")
    told = r"b\.parquet has more columns of pixels than \S*a\.parquet: pixel4, pixel5, .*pixel8; all images"
    with pytest.raises(UserError, match=told):
        read(tmp_path)
    pq.write_table(table([[1], [200]]), tmp_path / "a.parquet")
    pq.write_table(table([[1], [200]], mask=[[0], [1]], note=["x", "y"]), tmp_path / "b.parquet")
    told = r"b\.parquet has a column of images that \S*a\.parquet has not, mask, beside image; .*data\.image_column"
    with pytest.raises(UserError, match=told):
        read(tmp_path)
    stream = read_parquet(tmp_path, sorted(tmp_path.glob("*.parquet")), Data(image_column="image"))
    assert stream.origin.unused == ("mask", "note")  # of any of the files


@pytest.mark.parametrize("scale", [None, "observed"])
def test_lists_of_mixed_sizes_are_resized_as_pictures_are(tmp_path: Path, scale: str | None) -> None:
    """Within a batch too: what each row holds decides, not what stands beside it."""
    small, large = GREY[:70, :4, :4], GREY[:70]
    mixed = [image.tolist() for pair in zip(small, large, strict=True) for image in pair]
    pq.write_table(table(mixed), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path / "a.parquet", size="4", resample="nearest", scale=scale)
    assert images_NCHW.shape == (140, 1, 4, 4)
    if scale is None:
        assert np.array_equal(images_NCHW[::2, 0], small)
    pictures = [picture(image) for pair in zip(small, large, strict=True) for image in pair]
    pq.write_table(table(pictures), tmp_path / "b.parquet")
    assert np.array_equal(read(tmp_path / "b.parquet", size="4", resample="nearest", scale=scale)[0], images_NCHW)


def with_class_names(rows: pa.Table, *names: str) -> pa.Table:
    notes = {"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}}
    return rows.replace_schema_metadata({"huggingface": json.dumps(notes)})


def test_files_of_a_folder_must_name_their_classes_alike(tmp_path: Path) -> None:
    def write(name: str, *names: str) -> None:
        pq.write_table(with_class_names(table([[1], [2]], label=[0, 1]), *names), tmp_path / f"{name}.parquet")

    write("a", "cat", "dog")
    write("b", "cat", "dog")
    files = sorted(tmp_path.glob("*.parquet"))
    assert read_parquet(tmp_path, files, Data()).label_names == ("cat", "dog")
    write("b", "dog", "cat")
    with pytest.raises(UserError, match=r"b\.parquet: the classes .* names dog, cat, and in .*a\.parquet .* cat"):
        read(tmp_path)
    pq.write_table(table([[1], [2]], label=[0, 1]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: the classes of column label have no names, and in .*cat, dog"):
        read(tmp_path)


def test_labels_that_the_first_file_lacks_are_told(tmp_path: Path) -> None:
    pq.write_table(table([[1]]), tmp_path / "a.parquet")
    pq.write_table(table([[1]], label=[1]), tmp_path / "b.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: column label is missing, which is in .*b\.parquet; .*=none"):
        read(tmp_path)
    pq.write_table(table([[200]], label=[1]), tmp_path / "b.parquet")
    assert read(tmp_path, label_column="none")[1] is None


@pytest.mark.parametrize("kind", [pa.binary(16), pa.uuid()], ids=["16 bytes", "UUID"])
def test_identifiers_are_no_images_unless_they_are_named(tmp_path: Path, kind: pa.DataType) -> None:
    identifiers = pa.array([bytes([row] * 16) for row in range(150)], pa.binary(16)).cast(kind)
    pixels = {f"pixel{n}": column for n, column in enumerate(FLAT.T)}
    for name, columns in (("pixels", pixels), ("lists", {"image": FLAT.tolist()})):
        pq.write_table(pa.table({"id": identifiers, **columns}), tmp_path / f"{name}.parquet")
        assert np.array_equal(read(tmp_path / f"{name}.parquet")[0][:, 0], GREY)
    named, _ = read(tmp_path / "lists.parquet", image_column="id", scale="0:255")
    assert named.shape == (150, 1, 4, 4)


@pytest.mark.parametrize("scale", [None, "observed"])
def test_pixels_that_begin_like_a_picture_file_are_pixels(tmp_path: Path, scale: str | None) -> None:
    images = GREY.copy()
    images[[0, 70], 0, :2] = tuple(b"BM")
    images[0, 1, :2] = 0, 255
    pq.write_table(table([image.tobytes() for image in images], type=pa.binary(36)), tmp_path / "a.parquet")
    assert np.array_equal(read(tmp_path, scale=scale)[0][:, 0], images)


def test_picture_files_of_one_size_are_pictures_though_one_is_damaged(tmp_path: Path) -> None:
    pictures = [picture(image, "BMP") for image in GREY[:20]]
    kind = pa.binary(len(pictures[0]))
    pq.write_table(table(pictures, type=kind), tmp_path / "a.parquet")
    assert np.array_equal(read(tmp_path)[0][:, 0], GREY[:20])
    pq.write_table(table([b"x" * len(pictures[0]), *pictures], type=kind), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 0 of column image is .* known format"):
        read(tmp_path)


# ------------------------------------------------------------------------------------------- pixels as they were meant


def test_settings_of_pixels_reach_lists_and_pictures(tmp_path: Path) -> None:
    few = GREY[:70] % 17
    for name, images in (("lists", few.tolist()), ("pictures", [picture(image) for image in few])):
        pq.write_table(table(images), tmp_path / f"{name}.parquet")
        if name == "lists":
            with pytest.raises(UserError, match=r"lists\.parquet has pixel values of 0 to 16, .*data\.scale=0:16"):
                read(tmp_path / "lists.parquet")
        for scale in ("0:16", "observed"):
            images_NCHW, _ = read(tmp_path / f"{name}.parquet", scale=scale)
            assert np.array_equal(images_NCHW[:, 0], np.rint(few * (255 / 16)))
        resized, _ = read(tmp_path / f"{name}.parquet", scale="0:16", size="3", channels=3)
        assert resized.shape == (70, 3, 3, 3)


def test_the_range_of_all_rows_is_told(tmp_path: Path) -> None:
    standardised = (FLAT / 255 - 0.5) / 0.25
    pq.write_table(table(standardised.tolist()), tmp_path / "a.parquet", row_group_size=40)
    low, high = (f"{value:.4g}" for value in (standardised.min(), standardised.max()))
    with pytest.raises(UserError, match=f"row 0 of .* those seen are {low} to {high}"):
        read(tmp_path / "a.parquet")


def test_lists_with_opacity_are_laid_over_the_background(tmp_path: Path) -> None:
    pixels = np.dstack([COLOUR[0].transpose(1, 2, 0), np.full((4, 5), 255, np.uint8)])
    pixels[0, 0, 3] = 0
    pq.write_table(table([np.kron(pixels, np.ones((2, 2, 1), np.uint8)).tolist()]), tmp_path / "a.parquet")
    images_NCHW, _ = read(tmp_path / "a.parquet", background="white")
    assert (images_NCHW[0, :, :2, :2] == 255).all()
    assert np.array_equal(images_NCHW[0, :, ::2, 2::2], COLOUR[0][:, :, 1:])
