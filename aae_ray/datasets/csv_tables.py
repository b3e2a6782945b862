"""Tables in CSV files: a line of names, then a line a row; errors name file, row and column.

What stands between the columns is found in the first line: a comma, a semicolon, a tabulator or a bar.
"""

import csv
import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aae_ray import settings
from aae_ray.datasets.columns import read_shards
from aae_ray.datasets.image_stream import TO_BE_DRAWN, ImageStream
from aae_ray.datasets.packed import open_unpacked
from aae_ray.datasets.parts import parts_of_files
from aae_ray.datasets.rows import is_a_number
from aae_ray.datasets.shards import BATCH_ROWS, Shard
from aae_ray.errors import UserError

ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabulators", "|": "bars"}
_LONGEST = 1 << 20  # bytes of the first line
_BINARY = b"\x00"  # in no text


def is_csv(relative: Path) -> bool:
    """Whether a file is called so; what begins with a dot or an underscore are notes of the program that wrote it."""
    return relative.name.lower().endswith(ENDINGS) and not any(part.startswith((".", "_")) for part in relative.parts)


@dataclass(frozen=True)
class _CsvShard(Shard):
    """A CSV file, which is held in memory."""

    table: Any
    delimiter: str

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

    An empty field, and one that says NA, NaN or null, is a missing value. Parts are those of a column `split`, else
    those that files and folders are named by. Raises UserError by file, column and row.
    """
    parts = parts_of_files(root, files) or [TO_BE_DRAWN] * len(files)
    shards = [_shard(file, part) for file, part in zip(files, parts, strict=True)]
    between = dict.fromkeys(_DELIMITERS[shard.delimiter] for shard in shards if shard.delimiter != ",")
    form = f"CSV with {' and '.join(between)}" if between else "CSV"
    return read_shards(root, shards, data, form, "names of files and folders")


def _shard(file: Path, part: int) -> _CsvShard:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    names, delimiter = _head(file)
    twice = tuple(dict.fromkeys(name for name in names if names.count(name) > 1))
    if twice:
        raise UserError(f"{file} has several columns of the name {twice[0]}; give each a name of its own")
    try:
        with open_unpacked(file) as content:
            table = arrow_csv.read_csv(
                pa.PythonFile(content, mode="r"),
                parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
            )
    except (pa.ArrowException, OSError, EOFError, gzip.BadGzipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(
            f"{file} cannot be read as CSV with {_DELIMITERS[delimiter]} between its columns: {reason}"
        ) from None
    fields = {field.name: field for field in table.schema}
    return _CsvShard(file, fields, (), table.num_rows, {}, {}, part, table, delimiter)


def _head(file: Path) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them."""
    try:
        with open_unpacked(file) as content:
            raw = content.read(_LONGEST)
    except (OSError, EOFError) as error:
        raise UserError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not raw.strip():
        raise UserError(f"{file} is empty; write or fetch it again, or take it out of the folder")
    if _BINARY in raw:
        raise UserError(f"{file} is no text, and so no CSV file")
    try:
        text = raw.decode("utf-8-sig", "strict" if len(raw) < _LONGEST else "ignore")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not in UTF-8 (byte {error.start}); save it in that encoding") from None
    line = next(line for line in text.splitlines() if line.strip())
    delimiter = max(_DELIMITERS, key=line.count)
    names = next(csv.reader([line], delimiter=delimiter))
    if all(map(is_a_number, names)):
        raise UserError(
            f"{file} begins with numbers ({', '.join(names[:3])}, ...) where the names of its columns should be; write "
            f"them as its first line"
        )
    return names, delimiter
