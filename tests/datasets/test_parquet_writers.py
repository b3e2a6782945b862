"""What pandas, polars, DuckDB, Hugging Face datasets and Ray Data write as Parquet is read pixel by pixel."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from aae_ray.datasets.image_stream import ImageStream
from aae_ray.datasets.parquet import read_parquet
from aae_ray.errors import UserError
from aae_ray.settings import Data

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (70, 6, 5), dtype=np.uint8)  # more than a batch
SQUARE = RANDOM.integers(0, 256, (70, 6, 6), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (70, 3, 4, 5), dtype=np.uint8)
NAMES = [("cat", "ant", "bee")[n % 3] for n in range(70)]


def picture(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


PNG = [picture(image) for image in GREY]


def stream_of(path: Path, **data: Any) -> ImageStream:
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    return read_parquet(path, files, Data(**data))


def read(path: Path, **data: Any) -> tuple[np.ndarray, list[Any] | None]:
    stream = stream_of(path, **data)
    images_NCHW = np.concatenate(list(stream.blocks))
    return images_NCHW, None if stream.labels is None else stream.labels.to_pylist()


def arrow(array: pa.Array) -> Callable[[Path], Any]:
    return lambda file: pq.write_table(pa.table({"image": array, "label": NAMES[: len(array)]}), file)


def pandas(**columns: Any) -> Callable[[Path], Any]:
    def write(file: Path) -> None:
        import pandas as pd

        pd.DataFrame(columns).to_parquet(file)

    return write


def polars(image: Any, dtype: Callable[[Any], Any], labels: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def write(file: Path) -> None:
        import polars as pl

        pl.DataFrame(
            {"image": pl.Series(image, dtype=dtype(pl)), "label": pl.Series(NAMES, dtype=labels(pl))}
        ).write_parquet(file)

    return write


def duckdb(query: str) -> Callable[[Path], Any]:
    def write(file: Path) -> None:
        import duckdb

        rows = pa.table({"image": GREY.tolist(), "png": PNG, "label": NAMES})  # noqa: F841 - the query names it
        duckdb.sql(f"COPY ({query}) TO '{file}' (FORMAT parquet)")

    return write


def hugging_face(feature: Callable[[Any], Any], images: Any) -> Callable[[Path], Any]:
    def write(file: Path) -> None:
        import datasets

        features = {"image": feature(datasets), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
        rows = {"image": images, "label": NAMES}
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(file)

    return write


def ray_data(images: np.ndarray, version: int) -> Callable[[Path], Any]:
    def write(file: Path) -> None:
        from ray.data.extensions import ArrowTensorArray, ArrowTensorType

        array = ArrowTensorArray.from_numpy(images)
        if version == 1:
            flat = pa.array(images.reshape(len(images), -1).tolist(), pa.list_(pa.uint8()))
            array = pa.ExtensionArray.from_storage(ArrowTensorType(images.shape[1:], pa.uint8()), flat)
        arrow(array)(file)

    return write


U8 = pa.uint8()
FLAT = pa.array(SQUARE.reshape(70, -1).tolist(), pa.list_(U8))

WRITERS: dict[str, tuple[Callable[[Path], Any], np.ndarray]] = {
    "pandas, nested": (pandas(image=GREY.tolist(), label=NAMES), GREY[:, None]),
    "pandas, flat": (pandas(image=list(SQUARE.reshape(70, -1)), label=NAMES), SQUARE[:, None]),
    "pandas, bytes": (pandas(image=PNG, label=NAMES), GREY[:, None]),
    "pandas, pixel0": (
        pandas(label=NAMES, **{f"pixel{n}": column for n, column in enumerate(SQUARE.reshape(70, -1).T)}),
        SQUARE[:, None],
    ),
    "pandas, px_1": (
        pandas(**{f"px_{n + 1}": column for n, column in enumerate(SQUARE.reshape(70, -1).T)}, label=NAMES),
        SQUARE[:, None],
    ),
    "pandas, numbers": (
        pandas(**{str(n): column / 255 for n, column in enumerate(SQUARE.reshape(70, -1).T)}, label=NAMES),
        SQUARE[:, None],
    ),
    "pandas, 1x1": (
        pandas(**{f"{y + 1}x{x + 1}": GREY[:, y, x] for y in range(6) for x in range(5)}, label=NAMES),
        GREY[:, None],
    ),
    "polars, list": (
        polars(GREY.tolist(), lambda pl: pl.List(pl.List(pl.UInt8)), lambda pl: pl.String), GREY[:, None],
    ),
    "polars, array": (
        polars(GREY, lambda pl: pl.Array(pl.UInt8, (6, 5)), lambda pl: pl.Categorical), GREY[:, None],
    ),
    "polars, bytes": (
        polars(PNG, lambda pl: pl.Binary, lambda pl: pl.Enum(["ant", "bee", "cat"])), GREY[:, None],
    ),
    "DuckDB, lists": (duckdb("SELECT image, label FROM rows"), GREY[:, None]),
    "DuckDB, blobs": (duckdb("SELECT png AS image, label FROM rows"), GREY[:, None]),
    "DuckDB, arrays": (
        duckdb("SELECT image::UTINYINT[5][6] AS image, label::ENUM('cat', 'bee', 'ant') AS label FROM rows"),
        GREY[:, None],
    ),
    "Hugging Face, Image": (
        hugging_face(lambda hf: hf.Image(), [{"bytes": png, "path": None} for png in PNG]), GREY[:, None],
    ),
    "Hugging Face, Array2D": (hugging_face(lambda hf: hf.Array2D((6, 5), "uint8"), GREY.tolist()), GREY[:, None]),
    "Hugging Face, Array3D": (hugging_face(lambda hf: hf.Array3D((3, 4, 5), "uint8"), COLOUR.tolist()), COLOUR),
    "Ray Data, tensor": (ray_data(GREY, 2), GREY[:, None]),
    "Ray Data, tensor, version 1": (ray_data(COLOUR, 1), COLOUR),
    "Ray Data, H x W x C": (ray_data(np.ascontiguousarray(COLOUR.transpose(0, 2, 3, 1)), 2), COLOUR),
    "tensor of Arrow": (arrow(pa.FixedShapeTensorArray.from_numpy_ndarray(GREY)), GREY[:, None]),
    "permuted tensor of Arrow": (
        arrow(pa.FixedShapeTensorArray.from_numpy_ndarray(GREY.transpose(0, 2, 1))), GREY.transpose(0, 2, 1)[:, None],
    ),
    "binary view": (arrow(pa.array(PNG, pa.binary_view())), GREY[:, None]),
    "dictionary of bytes": (arrow(pa.array(PNG).dictionary_encode()), GREY[:, None]),
    "fixed-size binary": (arrow(pa.array([image.tobytes() for image in SQUARE], pa.binary(36))), SQUARE[:, None]),
    "list view": (arrow(pa.array(FLAT.to_pylist(), pa.list_view(U8))), SQUARE[:, None]),
    "large list view": (arrow(pa.array(FLAT.to_pylist(), pa.large_list_view(U8))), SQUARE[:, None]),
    "booleans": (arrow(pa.array((SQUARE > 99).reshape(70, -1).tolist())), 255 * (SQUARE > 99)[:, None]),
    "H x W x C": (arrow(pa.array(COLOUR.transpose(0, 2, 3, 1).tolist(), pa.list_(pa.list_(pa.list_(U8))))), COLOUR),
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_library_writes_is_read_pixel_by_pixel(tmp_path: Path, writer: str) -> None:
    write, expected_NCHW = WRITERS[writer]
    write(tmp_path / "a.parquet")
    images_NCHW, labels = read(tmp_path / "a.parquet")
    assert images_NCHW.dtype == np.uint8 and np.array_equal(images_NCHW, expected_NCHW)
    names = stream_of(tmp_path / "a.parquet").label_names
    assert labels is not None and [names[label] if names else label for label in labels] == NAMES


RAY_DATA = """
import numpy as np, ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
rows = ray.data.from_items([{"image": image, "label": name} for image, name in zip(np.load("a.npy"), np.load("b.npy"))])
rows.write_parquet("written")
"""


@pytest.mark.slow  # it starts Ray
def test_what_ray_data_itself_writes_is_read_pixel_by_pixel(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GREY)
    np.save(tmp_path / "b.npy", np.array(NAMES))
    done = subprocess.run([sys.executable, "-c", RAY_DATA], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    images_NCHW, labels = read(tmp_path / "written")
    assert labels is not None
    found = sorted((image.tobytes(), str(name)) for image, name in zip(images_NCHW, labels, strict=True))
    assert found == sorted((image.tobytes(), name) for image, name in zip(GREY, NAMES, strict=True))


def test_a_tensor_of_many_shapes_is_refused_and_one_of_them_read(tmp_path: Path) -> None:
    from ray.data.extensions import ArrowVariableShapedTensorArray

    for name, images in {"alike": [GREY[0], GREY[1]], "mixed": [GREY[0], GREY[1][:3]]}.items():
        array = ArrowVariableShapedTensorArray.from_numpy(images)
        pq.write_table(pa.table({"image": array}), tmp_path / f"{name}.parquet")
    assert np.array_equal(read(tmp_path / "alike.parquet")[0], GREY[:2, None])
    with pytest.raises(UserError, match="row 1 of column image is 3 x 5 in .* 1 of 6 x 5 in grey, 1 of 3 x 5"):
        read(tmp_path / "mixed.parquet")


def write(file: Path, rows: slice, kind: Any = U8, **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {"image": pa.array(SQUARE[rows].reshape(-1, 36).tolist(), pa.list_(kind)), **columns}
    pq.write_table(pa.table(table), file)


def test_shards_may_differ_in_the_width_of_their_numbers_and_some_may_be_empty(tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", slice(0, 0), label=pa.nulls(0))
    write(tmp_path / "1.parquet", slice(0, 30), pa.int16(), label=pa.array([1] * 30, pa.int8()))
    write(tmp_path / "2.parquet", slice(30, 60), pa.uint64(), label=pa.array([None, *[2.0] * 29]))
    write(tmp_path / "3.parquet", slice(60, 70), U8, label=pa.nulls(10))
    images_NCHW, labels = read(tmp_path)
    assert np.array_equal(images_NCHW[:, 0], SQUARE)
    assert labels == [1] * 30 + [None] + [2] * 29 + [None] * 10


def test_shards_may_differ_in_how_they_store_text(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", slice(0, 2), label=pa.array(["a", "b"]).dictionary_encode())
    write(tmp_path / "2.parquet", slice(2, 4), label=pa.array(["c", "a"], pa.large_string()))
    write(tmp_path / "3.parquet", slice(4, 6), label=pa.array(["b", None], pa.string_view()))
    assert read(tmp_path)[1] == ["a", "b", "c", "a", "b", None]


@pytest.mark.parametrize("library", ["pandas", "polars", "DuckDB"])
def test_folders_named_after_a_column_are_that_column(tmp_path: Path, library: str) -> None:
    write(tmp_path / "all.parquet", slice(None), label=NAMES)
    folder = tmp_path / "hive"
    if library == "pandas":
        import pandas as pd

        pd.read_parquet(tmp_path / "all.parquet").to_parquet(folder, partition_cols=["label"])
    elif library == "polars":
        import polars as pl

        pl.read_parquet(tmp_path / "all.parquet").write_parquet(folder, partition_by="label", mkdir=True)
    else:
        import duckdb

        query = f"SELECT * FROM '{tmp_path / 'all.parquet'}'"
        duckdb.sql(f"COPY ({query}) TO '{folder}' (FORMAT parquet, PARTITION_BY (label))")
    images_NCHW, labels = read(folder)
    assert labels == sorted(NAMES)
    expected = {(name, image.tobytes()) for name, image in zip(NAMES, SQUARE, strict=True)}
    assert {(name, image.tobytes()) for name, image in zip(labels, images_NCHW, strict=True)} == expected


def test_features_that_are_counted_through_are_no_pixels_unless_they_are_named(tmp_path: Path) -> None:
    columns = {f"f{n}": column for n, column in enumerate(SQUARE.reshape(70, -1).T)}
    pandas(**columns)(tmp_path / "a.parquet")
    assert stream_of(tmp_path / "a.parquet").columns == tuple(columns)  # rows of numbers
    with pytest.raises(UserError, match=r"no column of images .* its columns are f0 \(uint8\).*\(36 in all\)"):
        read(tmp_path / "a.parquet", kind="images")
    assert np.array_equal(read(tmp_path / "a.parquet", image_column="f")[0][:, 0], SQUARE)


def test_a_pixel_that_is_missing_is_told_by_its_column(tmp_path: Path) -> None:
    columns = {f"pixel{n}": [1, None if n == 2 else 1] for n in range(4)}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="row 1 of column pixel2 is null; every pixel must have a value"):
        read(tmp_path / "a.parquet")


KINDS = st.sampled_from(
    [pa.uint8(), pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(),
     pa.bool_()]
)  # fmt: skip
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
LISTS = st.sampled_from([pa.list_, pa.large_list, pa.list_view, lambda kind: kind])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(kind=pa.bool_(), shape=(2, 1, 4), make_list=pa.list_, low=0, high=9, seed=3)  # opaque everywhere
@example(kind=pa.bool_(), shape=(4, 1, 2), make_list=pa.list_, low=0, high=4, seed=1)  # the same, channels first
@given(
    kind=KINDS, shape=SHAPES, make_list=LISTS, low=st.integers(-2, 0), high=st.integers(1, 300), seed=st.integers(0, 9)
)
def test_what_is_read_is_what_was_written_or_it_is_refused(
    tmp_path: Path, kind: Any, shape: tuple[int, ...], make_list: Any, low: int, high: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values: np.ndarray = random.integers(low, high, (3, *shape)) / (255 if pa.types.is_floating(kind) else 1)
    values = values > 0 if pa.types.is_boolean(kind) else values
    nested = kind
    for size in reversed(shape):
        nested = pa.list_(nested, size) if make_list(kind) == kind else make_list(nested)
    try:
        array = pa.array(values.tolist(), nested)
        pq.write_table(pa.table({"image": array}), tmp_path / "a.parquet")
    except (pa.ArrowException, OverflowError):  # no such values of this type, or Arrow does not store them
        return
    try:
        images_NCHW, _ = read(tmp_path / "a.parquet")
    except UserError:
        return
    stored = np.array(array.to_pylist(), float)
    bytes_N = stored if pa.types.is_integer(kind) else 255 * stored
    assert bytes_N.min() >= 0 and bytes_N.max() <= 255.0001
    channels_last = len(shape) == 3 and shape[0] not in (1, 3) and shape[-1] in (1, 3, 4)
    expected = np.moveaxis(bytes_N, -1, 1) if channels_last else bytes_N
    if len(shape) == 3 and expected.shape[1] == 4:  # the last one says how opaque a pixel is; what shows is refused
        assert np.rint(expected[:, -1]).min() == 255
        expected = expected[:, :-1]
    assert np.array_equal(images_NCHW, np.rint(expected).reshape(images_NCHW.shape))
    assert len(shape) == 1 or images_NCHW.shape[2:] == expected.shape[-2:]
