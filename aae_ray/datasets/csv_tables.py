"""Tables in CSV files: a line of names, then a line a row; errors name file, row and column.

What stands between the columns is found in the first line: a comma, a semicolon, a tabulator or a bar.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from aae_ray import settings
from aae_ray.datasets.columns import LABEL_COLUMN, NONE, read_shards
from aae_ray.datasets.damage import AGAIN, readable
from aae_ray.datasets.image_stream import TO_BE_DRAWN, ImageStream
from aae_ray.datasets.packed import open_unpacked
from aae_ray.datasets.parts import parts_of_files
from aae_ray.datasets.pictures import format_of
from aae_ray.datasets.rows import is_a_number
from aae_ray.datasets.shards import BATCH_ROWS, Shard
from aae_ray.errors import UserError

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabulators", "|": "bars"}
_LONGEST = 1 << 20  # bytes of the first line
_LEAST_OF_A_SPECTRUM = 4  # columns; few numbers of a row are often in order
_DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error)
_COMMENT = "#"
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANK_LINES = re.compile(r"(?:[^\S\r\n]*(?:\r\n|\r|\n))*")  # before the first line that says something
_BINARY = b"\x00"  # in no text
_OTHER_TEXT = ("<", "version https://git-lfs")  # how text begins that is no table
_NUMBER = re.compile(r"(0|-?[1-9]\d*)(\.\d+)?")  # with one spelling for each whole number, and so no 007


def is_csv(relative: Path) -> bool:
    """Whether a file is called so; what begins with a dot or an underscore are notes of the program that wrote it."""
    return relative.name.lower().endswith(ENDINGS) and not any(part.startswith((".", "_")) for part in relative.parts)


@dataclass(frozen=True)
class _Layout:
    """The names of the columns, and what stands between them."""

    names: tuple[str, ...]
    delimiter: str
    lines: int  # down to that of the names, and with it
    bare: bool  # whether nothing follows


@dataclass(frozen=True)
class _CsvShard(Shard):
    """A CSV file, which is held in memory."""

    table: Any
    layout: "_Layout"

    def batches(self, columns: Sequence[str], size: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        row = 0
        for batch in self.table.select(list(columns)).to_batches(max_chunksize=size):
            if batch.num_rows:
                yield row, batch
                row += batch.num_rows

    def values(self, column: str) -> Any:
        return self.table.column(column)

    def row_text(self, row: int) -> str:
        """Its line too, where each row has one of its own."""
        with open_unpacked(self.file) as content:
            lines = sum(1 for _ in content)
        return f"row {row} (line {row + 2})" if lines == self.rows + 1 else f"row {row}"


def read_csv(root: Path, files: Sequence[Path], data: settings.Data) -> ImageStream:
    """The rows, or the images, of CSV files below a folder, in the order given; or of one file, which is `root` itself.

    An empty field, and one that says NA, NaN or null, is a missing value. Labels are text as it stands there, of which
    an empty field alone is missing, unless all of them are numbers. Blanks around names and labels do not count.
    Parts are those of a column `split`, else those that files and folders are named by. Raises UserError by file,
    column and row.
    """
    parts = parts_of_files(root, files) or [TO_BE_DRAWN] * len(files)
    shards = [_shard(file, part) for file, part in zip(files, parts, strict=True)]
    shards = _with_labels_as_written(shards, data.label_column or LABEL_COLUMN)
    between = dict.fromkeys(_DELIMITERS[shard.layout.delimiter] for shard in shards if shard.layout.delimiter != ",")
    form = f"CSV with {' and '.join(between)}" if between else "CSV"
    return read_shards(root, shards, data, form, "names of files and folders")


def _shard(file: Path, part: int) -> _CsvShard:
    layout = _layout(file)
    twice = tuple(dict.fromkeys(name for name in layout.names if layout.names.count(name) > 1))
    if twice:
        raise UserError(f"{file} has several columns of the name {twice[0]}; give each a name of its own")
    table = _table(file, layout, strings_can_be_null=True, quoted_strings_can_be_null=False)
    fields = {field.name: field for field in table.schema}
    return _CsvShard(file, fields, (), table.num_rows, {}, {}, part, table, layout)


def _with_labels_as_written(shards: list[_CsvShard], column: str) -> list[_CsvShard]:
    """Files whose labels are text, unless they are numbers in all of them: 01067 is a name, and NA may be one."""
    import pyarrow as pa
    from pyarrow import compute

    def texts_of(shard: _CsvShard) -> Any:
        options = {"include_columns": [column], "column_types": {column: pa.string()}, "null_values": [""]}
        texts = compute.utf8_trim_whitespace(
            _table(shard.file, shard.layout, strings_can_be_null=True, **options).column(0)
        )
        return compute.if_else(compute.equal(texts, ""), pa.scalar(None, pa.string()), texts)

    with_labels = [shard for shard in shards if column in shard.fields and column != NONE]
    texts = {shard.file: texts_of(shard) for shard in with_labels}
    if all(_are_numbers(shard.table.column(column), texts[shard.file]) for shard in with_labels):
        return shards
    return [_with_column(shard, column, texts[shard.file]) if shard.file in texts else shard for shard in shards]


def _are_numbers(values: Any, texts: Any) -> bool:
    """Whether Arrow took values for numbers, or for nothing, and each number has the one spelling that it can have."""
    import pyarrow as pa

    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        return False
    known = texts.filter(values.is_valid()).unique().to_pylist()
    return all(text is not None and _NUMBER.fullmatch(text.strip()) for text in known) and not (
        pa.types.is_null(kind) and texts.null_count < len(texts)
    )


def _with_column(shard: _CsvShard, column: str, values: Any) -> _CsvShard:
    table = shard.table.set_column(shard.table.schema.get_field_index(column), column, values)
    return replace(shard, table=table, fields={field.name: field for field in table.schema})


def _table(file: Path, layout: _Layout, **options: Any) -> Any:
    """What Arrow reads in a file. Raises UserError, by the line where a row is cut or has too many fields."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    if layout.bare:
        table = pa.Table.from_arrays([pa.nulls(0)] * len(layout.names), names=list(layout.names))
        return table.select(options.get("include_columns", layout.names))

    def advice(error: Exception) -> str:
        return f"; {AGAIN}" if isinstance(error, _DAMAGE) else "; save it again as CSV in UTF-8"

    text = f"cannot be read as CSV with {_DELIMITERS[layout.delimiter]} between its columns"
    with readable(file, (pa.ArrowException, *_DAMAGE), text, advice), open_unpacked(file) as content:
        try:
            return arrow_csv.read_csv(
                pa.PythonFile(content, mode="r"),
                read_options=arrow_csv.ReadOptions(column_names=layout.names, skip_rows=layout.lines),
                parse_options=arrow_csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(**options),
            )
        except pa.ArrowInvalid:
            if (ragged := _ragged_row(file, layout)) is not None:
                raise UserError(f"{file}: {ragged}") from None
            raise


def _ragged_row(file: Path, layout: _Layout) -> str | None:
    """The first row that has not as many fields as there are names, and what to do; None where all have."""
    names = len(layout.names)
    with open_unpacked(file) as content, io.TextIOWrapper(content, "utf-8-sig", "replace", newline="") as text:
        rows = csv.reader(text, delimiter=layout.delimiter)
        line = 1
        try:
            for fields in rows:
                if fields and len(fields) != names and rows.line_num > layout.lines:
                    if fields[0].lstrip().startswith(_COMMENT):
                        return f"line {line} begins with {_COMMENT}; a table has no comments: take the line out"
                    return (
                        f"line {line} has {len(fields)} field{'s' * (len(fields) != 1)}, and the line of names "
                        f"{names}; complete it or take it out, and put a field into quotes that holds "
                        f"{_DELIMITERS[layout.delimiter]} of its own"
                    )
                line = rows.line_num + 1
        except csv.Error as error:
            return f"line {line} cannot be read: {error}; put it right, or take it out"
    return None


def _are_values(numbers: Sequence[str]) -> bool:
    """Whether numbers in the line of names are those of a row. Whole ones count columns through, and fractions that
    only grow, or only fall, are wavelengths or the like, by which the columns of a spectrum are called."""
    values = [float(number) for number in numbers]
    pairs = list(pairwise(values))
    in_order = all(first < second for first, second in pairs) or all(first > second for first, second in pairs)
    return any("." in number for number in numbers) and not (in_order and len(values) >= _LEAST_OF_A_SPECTRUM)


def _layout(file: Path) -> _Layout:
    """What the first line says. Raises UserError where it holds no names, or the file is none of text."""
    with readable(file, _DAMAGE, "is damaged or cut short", lambda error: f"; {AGAIN}"), open_unpacked(file) as content:
        raw = content.read(_LONGEST)
    if not raw.strip():
        raise UserError(f"{file} is empty; {AGAIN}")
    try:
        text = raw.decode("utf-8-sig", "strict" if len(raw) < _LONGEST else "ignore")
    except UnicodeDecodeError as error:
        if (kind := format_of(raw)) is not None:
            raise UserError(f"{file} is no CSV file, but {kind}") from None
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{file} is in UTF-16; save it in UTF-8") from None
        complete = raw[: error.start].count(b"\n")
        where = f"line {complete + 1}, byte {error.start}"
        raise UserError(f"{file} is not in UTF-8 ({where}); save it in that encoding") from None
    if _BINARY in raw or text.lstrip().startswith(_OTHER_TEXT):
        # Of other text the first letters say nothing: a table may begin with a column BMI.
        kind = format_of(raw.removeprefix(b"\xef\xbb\xbf")) or "a file of no known format; save it again as CSV"
        raise UserError(f"{file} is no CSV file, but {kind}")
    before = _BLANK_LINES.match(text)
    assert before is not None
    rest = text[before.end() :]
    if not rest.strip():
        raise UserError(f"{file} is empty; {AGAIN}")
    line = _LINE_END.split(rest, maxsplit=1)[0]
    delimiter = max(_DELIMITERS, key=line.count)
    rows = csv.reader(io.StringIO(rest, newline=""), delimiter=delimiter)
    try:
        fields = next(rows)
        lines, following = len(_LINE_END.findall(before[0])) + rows.line_num, next(rows, None)
    except csv.Error as error:
        raise UserError(f"{file}: its line of names cannot be read: {error}; put it right") from None
    names = [name.strip() for name in fields]
    if names[0].startswith(_COMMENT):
        if following is None or len(following) != len(names):
            raise UserError(
                f"{file} begins with {line.strip()[:40]!r}; take out lines that begin with {_COMMENT}, and let the "
                "names of the columns be the first line"
            )
        names[0] = names[0].lstrip(f"{_COMMENT} ")  # as NumPy's savetxt writes a line of names
    numbers = [name for name in names if is_a_number(name)]
    if len(numbers) == len(names) or (2 * len(numbers) >= len(names) and _are_values(numbers)):
        raise UserError(
            f"{file} begins with numbers ({', '.join(numbers[:3])}, ...) where the names of its columns should be; "
            "write them as its first line"
        )
    return _Layout(tuple(names), delimiter, lines, following is None and len(raw) < _LONGEST)
