"""Images and labels in Parquet files, read batch by batch; errors name file, column and row.

`B` images of a batch, `C` channels, `H` height, `W` width.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aae_ray import settings
from aae_ray.datasets.classes import is_label
from aae_ray.datasets.columns import names_of_class_label, read_shards
from aae_ray.datasets.damage import AGAIN, readable
from aae_ray.datasets.image_stream import TO_BE_DRAWN, ImageStream
from aae_ray.datasets.parts import parts_of_files
from aae_ray.datasets.shards import BATCH_ROWS, MOST_COLUMNS, Shard
from aae_ray.errors import UserError

_MAGIC = b"PAR1"  # at both ends of a file
_LEAST = 12  # bytes of a file: the magic twice, and the length of what stands before the second
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_OTHER_FORMATS = {
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"\x1f\x8b": "packed with gzip",
    b"PK\x03\x04": "a ZIP archive", b"ARROW1": "an Arrow file (Feather)", b"\x93NUMPY": "a NumPy array",
    b"<!DOC": "a web page", b"<html": "a web page", b"version https://git-lfs": "a pointer of Git LFS to the file",
}  # fmt: skip


class _ParquetShard(Shard):
    """A Parquet file."""

    def batches(self, columns: Sequence[str], size: int = BATCH_ROWS) -> Iterator[tuple[int, Any]]:
        import pyarrow.parquet as pq

        # Without a buffer size the whole column of a row group, often of a whole file, is read at once.
        options = {"buffer_size": 1 << 20, "pre_buffer": False}
        row = 0
        with _parquet(self.file, columns), pq.ParquetFile(self.file, **options) as parquet:
            for batch in parquet.iter_batches(size, columns=list(columns)):
                if batch.num_rows:
                    yield row, batch
                    row += batch.num_rows

    def values(self, column: str) -> Any:
        import pyarrow.parquet as pq

        with _parquet(self.file, [column]), pq.ParquetFile(self.file) as parquet:
            return parquet.read([column]).column(0)


def read_parquet(root: Path, files: Sequence[Path], data: settings.Data) -> ImageStream:
    """The images of Parquet files below a folder, in the order given; or of one file, which is `root` itself.

    Images are pictures as bytes (also in Hugging Face's struct of bytes and path), lists or tensors of pixels (H x W,
    C x H x W or H x W x C with 1 or 3 channels, or flat and square), or a column for each pixel (`pixel0`, `pixel1`,
    ...). The image column is found by its type when it is not named; the label column is `label` when that is there.
    Parts are those of a column `split`, else those that files and folders are named by. Files may differ in the widths
    of their numbers, and some may be empty.

    Schemas, labels and parts are read here, images while the blocks are. Raises UserError by file, column and row.
    """
    parts = parts_of_files(root, files) or [TO_BE_DRAWN] * len(files)
    shards = [_shard(root, file, part) for file, part in zip(files, parts, strict=True)]
    return read_shards(root, shards, data, "Parquet", "names of files and folders")


# ---------------------------------------------------------------------------------------------------------- files


def _parquet(file: Path, columns: Sequence[str] = ()) -> AbstractContextManager[None]:
    """What is read in it are these columns of a Parquet file. Raises UserError."""
    import pyarrow as pa

    def advice(error: Exception) -> str:
        # Arrow writes nulls among lists of a fixed size, and fails to read them.
        return "; a row may be null" if "lists to be of size" in str(error) else f"; {AGAIN}"

    of_columns = f" (column {' or '.join(columns)})" if 0 < len(columns) < MOST_COLUMNS else ""
    return readable(file, (pa.ArrowException, OSError), f"cannot be read as Parquet{of_columns}", advice)


def _shard(root: Path, file: Path, part: int) -> Shard:
    import pyarrow.parquet as pq

    with _parquet(file):
        _check_ends(file)
        with pq.ParquetFile(file) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
    twice = tuple(dict.fromkeys(name for name in schema.names if schema.names.count(name) > 1))
    fields = {field.name: field for field in schema}
    hive = {} if file == root else _hive(file.relative_to(root))
    _check_hive(file, hive, fields)
    return _ParquetShard(file, fields, twice, rows, hive, names_of_class_label(_features(schema)), part)


def _features(schema: Any) -> Any:
    """What Hugging Face's library notes of the columns in a file's metadata."""
    try:
        return json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return None


def _check_ends(file: Path) -> None:
    """Whether a file begins and ends as a Parquet file does; of another format it is said which."""
    with file.open("rb") as stream:
        head = stream.read(32)
        if not head:
            raise UserError(f"{file} is empty; {AGAIN}")
        size = file.stat().st_size
        stream.seek(max(0, size - len(_MAGIC)))
        tail = stream.read()
    if not head.startswith(_MAGIC):
        what = next((name for magic, name in _OTHER_FORMATS.items() if head.startswith(magic)), None)
        found = f"is {what}" if what else f"begins with {head[:4]!r}"
        raise UserError(f"{file} is not a Parquet file: it {found}; {AGAIN}")
    if tail != _MAGIC or size < _LEAST:
        raise UserError(f"{file} is cut: its end is missing after {size:,} bytes; {AGAIN}")


def _check_hive(file: Path, hive: Mapping[str, str | None], fields: Mapping[str, Any]) -> None:
    """Raises UserError where a folder and a column of the same name say different things."""
    import pyarrow.parquet as pq

    for key in (key for key in hive if key in fields and is_label(fields[key].type)):
        with _parquet(file, [key]), pq.ParquetFile(file) as parquet:
            values = parquet.read([key]).column(0).unique().to_pylist()
        if other := [value for value in values if not _says(hive[key], value)]:
            raise UserError(
                f"{file}: its folder says {key}={hive[key]}, and its column {key} {other[0]}; rename the folder or the "
                "column, or take it out"
            )


def _says(folder: str | None, value: Any) -> bool:
    """Whether a folder's text is that of a value, as one of the programs that write such folders spells it."""
    if folder is None or value is None:
        return folder is value is None
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    return str(plain).lower() == folder.lower()  # true and True


def _hive(relative: Path) -> dict[str, str | None]:
    """What folders named `key=value` say, as Hive, Spark, DuckDB and pandas write partitions."""
    pairs = (folder.partition("=") for folder in relative.parts[:-1] if "=" in folder)
    return {unquote(key): None if value == _HIVE_NULL else unquote(value) for key, _, value in pairs}
