"""Rows of numbers in CSV and Parquet: what is read is what was written, in its own units, or it is refused by place."""

import gzip
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.preprocessing import StandardScaler

from aae_ray.autoencoder.kinds import RowKind
from aae_ray.datasets.contents import contents_of
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.images import examples
from aae_ray.errors import UserError
from aae_ray.settings import Data

FRAME = pd.DataFrame({"a": np.arange(40) % 7 + 0.5, "b": np.arange(40) ** 2, "label": list("xyzx") * 10})


def read(path: Path, **data: Any) -> Dataset:
    return load(Data(name="own", path=str(path), cache=str(path.parent / "cache"), **data))


def write(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_parquet(path, index=False) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def csv(folder: Path, text: str) -> Path:
    path = folder / "own.csv"
    path.write_text(text)
    return path


def lines(*columns: str, rows: int = 40) -> str:
    """CSV whose first column counts in halves, the others as they are given."""
    head = ",".join(["a", *(f"x{index}" for index in range(len(columns)))])
    return "\n".join([head, *(",".join([str(row / 2), *columns]) for row in range(rows))]) + "\n"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("bunch", [load_wine, load_breast_cancer])
def test_rows_are_standardised_by_their_training_part_alone(tmp_path: Path, bunch: Any, ending: str) -> None:
    known = bunch(as_frame=True)
    names = [str(known.target_names[label]) for label in known.target]
    dataset = read(write(tmp_path / f"own.{ending}", known.data.assign(label=names)))
    assert isinstance(dataset.kind, RowKind) and dataset.kind.columns == tuple(known.data.columns)
    np.testing.assert_array_equal(dataset.examples_NX, known.data.to_numpy())
    scaler = StandardScaler().fit(known.data.to_numpy()[dataset.train])
    np.testing.assert_allclose(
        examples(dataset, dataset.test).numpy(), scaler.transform(known.data.to_numpy()[dataset.test]), atol=1e-5
    )
    assert [dataset.class_names[label] for label in dataset.labels_N] == names  # type: ignore[index, union-attr]
    told = contents_of(dataset).rows()
    assert told["rows"] == f"{len(names)} of {len(known.data.columns)} numbers"
    assert f"{known.data.columns[0]} {dataset.kind.mean[0]:.4g} ± {dataset.kind.std[0]:.3g}" in told["values"]


def test_the_same_rows_have_one_digest_in_csv_and_parquet_however_columns_are_separated(tmp_path: Path) -> None:
    digests = {read(write(tmp_path / name, FRAME)).digest for name in ("a.csv", "b.parquet")}
    (tmp_path / "c.csv").write_text("\ufeff" + FRAME.to_csv(index=False, sep=";"))
    (tmp_path / "d.tsv").write_text(FRAME.to_csv(index=False, sep="\t"))
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(FRAME.to_csv(index=False).encode()))
    digests |= {read(tmp_path / name).digest for name in ("c.csv", "d.tsv", "e.csv.gz")}
    assert len(digests) == 1
    assert contents_of(read(tmp_path / "c.csv")).format == "CSV with semicolons"
    renamed = read(write(tmp_path / "f.csv", FRAME.rename(columns={"a": "c"})))
    assert renamed.digest not in digests  # a model of one is none of the other


NUMBERS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "int8": (pa.int8(), st.integers(-128, 127)),
    "uint64": (pa.uint64(), st.integers(0, 2**53)),
    "int64": (pa.int64(), st.integers(-(2**53), 2**53)),
    "float16": (pa.float16(), st.floats(-1000, 1000, width=16).map(np.float16)),
    "float32": (pa.float32(), st.floats(-1e9, 1e9, width=32)),
    "float64": (pa.float64(), st.floats(-1e100, 1e100)),
    "bool": (pa.bool_(), st.booleans()),
    "decimal": (pa.decimal128(9, 3), st.decimals(-999, 999, places=3)),
}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_numbers_of_every_type_are_read_as_they_were_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(NUMBERS)), min_size=1, max_size=4))
    columns = {
        f"{kind} {place}": data.draw(st.lists(NUMBERS[kind][1], min_size=12, max_size=12))
        for place, kind in enumerate(kinds)
    }
    varied = {name: values for name, values in columns.items() if len({float(value) for value in values}) > 1}
    path = tmp_path_factory.mktemp("types") / "own.parquet"
    arrays = {name: pa.array(values, NUMBERS[name.split()[0]][0]) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path)
    try:
        dataset = read(path)
    except UserError as error:
        assert not varied or "standard deviation" in str(error)
        return
    expected = np.array([[float(value) for value in values] for values in varied.values()]).T
    np.testing.assert_array_equal(dataset.examples_NX, expected)
    scaled = examples(dataset, dataset.train).numpy()
    assert np.isfinite(scaled).all() and np.abs(scaled.mean(0)).max() < 1e-3


def test_dates_in_seconds_keep_their_differences(tmp_path: Path) -> None:
    seconds = 1.7e9 + np.arange(40) % 5
    scaled = examples(read(write(tmp_path / "a.csv", pd.DataFrame({"t": seconds}))), np.arange(5)).numpy()
    assert len(np.unique(scaled)) == 5  # float32 knows no second of this century from the next


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; copy or download it again"),
        ("a,b\n", "has no rows"),
        (lines("1", rows=1), "there is nothing to learn"),
        ("a,b\n1,2\n1,2\n1,2\n", "all rows are alike in a, b"),
        ("a,b\n1,2\n", "all rows are alike"),
        ("a,a\n1,2\n3,4\n", "several columns of the name a"),
        ("1,2\n3,4\n5,6\n", "begins with numbers (1, 2, ...) where the names of its columns should be"),
        (lines("7").replace("\n3.5,7", "\n3.5,seven"), "row 7 (line 9) of column x0 is 'seven', and most others"),
        (lines("7").replace("\n3.5,7", "\n3.5,"), "row 7 (line 9) of column x0 is empty; every value must be"),
        (lines("7").replace("\n3.5,7", "\n3.5,NaN"), "row 7 (line 9) of column x0 is empty"),
        (lines("7").replace("\n3.5,7", "\n3.5,inf"), "row 7 (line 9) of column x0 is inf"),
        (
            lines("7", "8").replace("\n3.5,7", "\n3.5"),
            ": line 9 has 2 fields, and the line of names 3;",
        ),
        ("a;b\n1,5;2\n2,5;3\n", "row 0 (line 2) of column a is '1,5'; write numbers with a decimal point"),
        (
            'a,b\n"1,234,567",2\n"12,345.5",3\n',
            "column a is '1,234,567'; write numbers with a decimal point, and without",
        ),
        ("a;b\n1.234.567;2\n2.345.678;3\n", "column a is '1.234.567'; write numbers with a decimal point, and without"),
        ("# of 2026\na,b\n1,2\n", "begins with '# of 2026'; take out lines that begin with #"),
        ("a,b\n1,2\n# half\n2,3\n", "line 3 begins with #; a table has no comments: take the line out"),
        (lines("9007199254740993"), "is 9007199254740993; whole numbers beyond 2^53"),
        (lines("name"), "data.kind=rows reads the numbers in a as rows"),
        ("a,b\nx,y\nz,w\n", "has no column of images"),
        ("a,b\n" + "1,1e300\n2,-1e300\n" * 20, "column b has values from -1e+300 to 1e+300, whose standard deviation"),
    ],
)
def test_what_are_no_numbers_is_refused_by_file_row_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = csv(tmp_path, text)
    with pytest.raises(UserError) as error:
        read(path)
    assert message in str(error.value)
    assert "own" in str(error.value)


def test_missing_values_of_parquet_are_refused_too_and_labels_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row 3 of column a is (NaN|empty)"):
        read(write(tmp_path / "a.parquet", FRAME.assign(a=[0.0, 1, 2, math.nan] * 10)))
    dataset = read(write(tmp_path / "b.csv", FRAME.assign(label=["x", None, "y", "x"] * 10)))
    assert dataset.unlabelled == 10


def test_columns_that_say_nothing_are_left_out_and_told(tmp_path: Path) -> None:
    frame = FRAME.assign(same=3, name="n", steps=range(40), target=[0, 1] * 20)
    frame.to_csv(tmp_path / "own.csv")  # with pandas' index, a column without a name
    dataset = read(tmp_path / "own.csv", kind="rows")
    assert dataset.kind.columns == ("a", "b", "steps", "target")  # type: ignore[attr-defined]
    told = contents_of(dataset).rows()
    assert "not used: (without a name), same, name" in told["source"]
    assert "column without a name counts the rows and is left out" in told["remarks"]
    assert "left out, as all rows have the same value: same (3)" in told["remarks"]
    assert "counts the rows, and is read as a number like others: steps" in told["remarks"]
    assert "data.label_column=target would take that column as labels" in told["remarks"]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (
            [number for number in range(17) if number != 5],
            "pixel0 to pixel16 are called pixels, .* 16: pixel5 is missing",
        ),
        (
            list(range(48)),
            "pixel0 to pixel47 are as many as a colour image of 4 x 4 has, in an order that nobody tells",
        ),
        (list(range(15)), "pixel0 to pixel14 are called pixels, and are 15: they are not as many as a square"),
    ],
)
def test_pixels_that_are_missing_are_told(numbers: list[int], told: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({f"pixel{number}": range(40) for number in numbers})
    path = write(tmp_path / "own.csv", frame)
    with pytest.raises(UserError, match=told):
        read(path)
    assert len(read(path, kind="rows").kind.columns) == len(numbers)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["Label", "LABELS", "Class"])
def test_a_column_that_is_called_like_labels_is_told(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FRAME.drop(columns="label").assign(**{name: [0, 1] * 20}))
    told = contents_of(read(path, kind="rows")).rows()
    assert f"data.label_column={name} would take that column as labels" in told["remarks"]


def test_a_first_line_of_numbers_is_no_line_of_names(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("1.5,45.25,ant\n" * 30)
    with pytest.raises(UserError, match=r"begins with numbers \(1.5, 45.25, ...\) where the names of its columns"):
        read(tmp_path / "own.csv", kind="rows")


def test_columns_of_a_spectrum_are_called_by_wavelengths(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 5))
    frame = pd.DataFrame(values, columns=["400.5", "401.0", "401.5", "402.0", "402.5"]).assign(label=["a", "b"] * 20)
    frame.to_csv(tmp_path / "own.csv", index=False)
    assert len(read(tmp_path / "own.csv", kind="rows").kind.columns) == 5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "told"),
    [("utf-16", "is in UTF-16; save it in UTF-8"), ("latin-1", r"is not in UTF-8 \(line 2, byte 6\)")],
)
def test_another_encoding_is_told(encoding: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("a,b\n1,ä\n", encoding=encoding)
    with pytest.raises(UserError, match=told):
        read(tmp_path / "own.csv", kind="rows")


def test_named_columns_are_read_in_their_order_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FRAME.assign(same=3))
    dataset = read(path, columns=("same", "b"), label_column="none")
    assert dataset.kind.columns == ("same", "b") and dataset.kind.std[0] == 1  # type: ignore[attr-defined]
    np.testing.assert_array_equal(examples(dataset, dataset.test)[:, 0], 0)
    with pytest.raises(UserError, match=r"data\.columns: .* has no column B, but a, b, label, same"):
        read(path, columns=("B",))
    with pytest.raises(UserError, match="column label holds string; rows are of numbers"):
        read(path, columns=("label", "a"), label_column="none")
    with pytest.raises(UserError, match=r"data\.columns: column label .* is read as labels"):
        read(path, columns=("label", "a"))


def test_names_with_commas_survive_the_record() -> None:
    from aae_ray.reading import Entry, build
    from aae_ray.settings import flatten

    columns = ("acid, g/l", "ash")
    run = build({"data.path": Entry("x", "here"), "data.name": Entry("own", ""), "data.columns": Entry(columns, "")})
    recorded = flatten(run)["data.columns"]
    assert build({"data.columns": Entry(recorded, "")}).data.columns == columns
    assert build({"data.columns": Entry("a,b", "")}).data.columns == ("a", "b")


def test_columns_of_pixels_are_images_and_what_may_be_both_is_refused(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (30, 64))
    pixels = write(tmp_path / "p.csv", pd.DataFrame(numbers, columns=[f"pixel{index}" for index in range(64)]))
    assert read(pixels).shape == (1, 8, 8)
    assert read(pixels, kind="rows").shape == (64,)
    doubtful = write(tmp_path / "x.csv", pd.DataFrame(numbers, columns=[f"x{index}" for index in range(64)]))
    with pytest.raises(UserError, match=r"x0 to x63 may be 64 numbers, or the pixels of images of 8 x 8; data\.kind"):
        read(doubtful)
    assert read(doubtful, kind="rows").shape == (64,)
    assert read(doubtful, image_column="x").shape == (1, 8, 8)


def test_settings_of_pixels_and_rows_in_other_formats_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", FRAME)
    with pytest.raises(UserError, match=r"data\.scale=0:16, data\.size=8x8: says how pixels are read"):
        read(path, scale="0:16", size="8")
    (tmp_path / "pictures").mkdir()
    for index in range(12):
        Image.fromarray(np.full((4, 4), 20 * index, np.uint8)).save(tmp_path / "pictures" / f"{index}.png")
    write(tmp_path / "pictures" / "notes.csv", FRAME)  # a list beside pictures is no set of its own
    assert read(tmp_path / "pictures").shape == (1, 4, 4)
    with pytest.raises(UserError, match=r"data\.kind=rows: .* holds pictures"):
        read(tmp_path / "pictures", kind="rows")


def test_parts_come_from_names_a_column_and_a_second_path(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, rows in (("train", slice(0, 30)), ("test", slice(30, 40))):
        write(tmp_path / "set" / f"{name}.csv", FRAME[rows])
    by_name = read(tmp_path / "set")
    assert by_name.given_parts == ("test",) and len(by_name.test) == 10
    column = write(tmp_path / "c.csv", FRAME.assign(split=["train"] * 20 + ["val"] * 10 + ["test"] * 10))
    assert [len(part) for part in (read(column).train, read(column).val, read(column).test)] == [20, 10, 10]
    constant = write(tmp_path / "t.csv", FRAME[30:].assign(a=2.5))  # in the test alone, which is read as the rest is
    swapped = write(tmp_path / "u.csv", FRAME[30:][["b", "label", "a"]])
    first = write(tmp_path / "first.csv", FRAME[:30])
    for path in (constant, swapped):
        dataset = read(first, test_path=str(path))
        assert dataset.kind.columns == ("a", "b") and len(dataset.test) == 10  # type: ignore[attr-defined]
    np.testing.assert_array_equal(dataset.examples_NX[dataset.test], FRAME[30:][["a", "b"]])
    with pytest.raises(UserError, match=r"^data\.test_path: .*v\.csv has no column a, but c, b, label"):
        read(first, test_path=str(write(tmp_path / "v.csv", FRAME[30:].rename(columns={"a": "c"}))))


@pytest.mark.parametrize(
    ("labels", "classes", "unlabelled"),
    [
        (["01067", "10115"], ("01067", "10115"), 0),
        (["01", "1", "2"], ("01", "1", "2"), 0),
        (["US", "NA", "", "null"], ("NA", "US", "null"), 10),
        (["True", "False"], ("False", "True"), 0),
        (["NA", '""'], ("NA",), 20),
        (["2.0", "10.0", ""], ("2", "10"), 13),
        (["2", "10", "-1", "NA"], ("2", "10"), 20),
        (["007", "-1", "12"], ("-1", "007", "12"), 0),
    ],
)
def test_labels_of_csv_are_named_as_they_are_written(
    tmp_path: Path, labels: list[str], classes: tuple[str, ...], unlabelled: int
) -> None:
    rows = [f"{row / 2},{labels[row % len(labels)]}" for row in range(40)]
    dataset = read(csv(tmp_path, "\n".join(["a,label", *rows])))
    assert (dataset.class_names, dataset.unlabelled) == (classes, unlabelled)


def test_blanks_around_names_and_labels_and_lines_before_the_names_do_not_count(tmp_path: Path) -> None:
    rows = [f"{row / 2}, {row**2} , {'xyz'[row % 3]}, {'test' if row > 30 else 'train'}" for row in range(40)]
    dataset = read(csv(tmp_path, "\n".join(["", " ", "a, b, label , split", "", *rows])))
    assert dataset.kind.columns == ("a", "b")  # type: ignore[attr-defined]
    assert (dataset.class_names, dataset.unlabelled, len(dataset.test)) == (("x", "y", "z"), 0, 9)
    np.testing.assert_array_equal(dataset.examples_NX[0], [0, 0])


@pytest.mark.parametrize(
    ("head", "columns"),
    [("# a,b", ("a", "b")), ("#a,b", ("a", "b")), ('"a\nx",b', ("a\nx", "b")), ("\n \n\ta,b", ("a", "b"))],
)
def test_a_line_of_names_is_read_as_programs_write_it(tmp_path: Path, head: str, columns: tuple[str, ...]) -> None:
    for end in ("\n", "\r\n"):
        rows = [f"{row / 2},{row**2}" for row in range(40)]
        dataset = read(csv(tmp_path, end.join([head.replace("\n", end), *rows])))
        assert tuple(name.replace("\r", "") for name in dataset.kind.columns) == columns  # type: ignore[attr-defined]
        assert len(dataset.examples_NX) == 40
    with pytest.raises(UserError, match=f"line {head.count(chr(10)) + 42} has 1 field, and the line of names 2"):
        read(csv(tmp_path, "\n".join([head, *rows, "7"])))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "full.csv").write_text("\n".join(["a,b", *rows]))
    (tmp_path / "set" / "none.csv").write_text("a,b")
    assert len(read(tmp_path / "set").examples_NX) == 40


def test_labels_are_text_in_all_files_where_they_are_in_one(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, first in (("train", "01067"), ("test", "10115")):
        rows = [f"{row / 2},{first if row % 2 else 20095}" for row in range(40)]
        (tmp_path / "set" / f"{name}.csv").write_text("\n".join(["a,zip", *rows]))
    assert read(tmp_path / "set", label_column="zip").class_names == ("01067", "10115", "20095")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404</html>", "is no CSV file, but a web page, perhaps the error page of a download"),
        (b"PAR1" + b"\x15\x04\x00\xff" * 20, "is no CSV file, but Parquet"),
        (b"PK\x03\x04" + bytes(40), "is no CSV file, but an archive; unpack it"),
        (b"a,b\0,c\n1,2,3\n", "is no CSV file, but a file of no known format; save it again as CSV"),
        (
            gzip.compress(lines("1").encode(), mtime=0)[:-20],
            "cut short: it ends too early",
        ),
        (b"a,b\n1,2\n3,4,5\n", ": line 3 has 3 fields, and the line of names 2; complete it or take it out"),
        (b"a,b\n1,2\n\n3", ": line 4 has 1 field, and the line of names 2"),
        (b'a,b\n1,"x\ny"\n3\n', ": line 4 has 1 field, and the line of names 2"),
    ],
    ids=itertools.count(),  # bytes of all kinds, which no terminal shows
)
def test_csv_that_is_something_else_or_ragged_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "own.csv.gz").write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path / "own.csv.gz")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_may_begin_with_letters_that_pictures_begin_with(tmp_path: Path) -> None:
    path = csv(tmp_path, "BMI,age\n" + "".join(f"{row / 2},{row % 7}\n" for row in range(40)))
    assert isinstance(read(path).kind, RowKind)
