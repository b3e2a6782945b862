"""Which format the files at a path are of, and who reads them."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aae_ray.datasets.arrays import find_arrays, is_archive_of_arrays, read_arrays
from aae_ray.datasets.csv_tables import is_csv, read_csv
from aae_ray.datasets.folders import find_pictures, read_pictures
from aae_ray.datasets.idx import find_idx, read_idx
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.datasets.parquet import read_parquet
from aae_ray.datasets.pictures import ENDINGS, format_of
from aae_ray.datasets.saved_arrow import find_saved, read_saved
from aae_ray.errors import UserError
from aae_ray.settings import Data


@dataclass(frozen=True)
class Stored:
    """The files of one format at a path, and how they are read."""

    files: tuple[Path, ...]  # whose change makes another set
    read: Callable[[Data], ImageStream]


@dataclass(frozen=True)
class Format:
    """A format in which sets are stored."""

    name: str
    find: Callable[[Path], Stored | None]  # None where there are no such files
    columns: bool = False  # whether data.image_column and its like choose what is read


def _parquet(path: Path) -> Stored | None:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _is_parquet(file.relative_to(path)))
    else:
        files = [path] if _is_parquet(Path(path.name)) else []
    return Stored(tuple(files), lambda data: read_parquet(path, files, data)) if files else None


def _is_parquet(relative: Path) -> bool:
    """Whether a file is called so; what begins with a dot or an underscore are notes of the program that wrote it."""
    hidden = any(part.startswith((".", "_")) for part in relative.parts)
    return relative.suffix.lower() == ".parquet" and not hidden


def _csv(path: Path) -> Stored | None:
    files = [path] if not path.is_dir() and is_csv(Path(path.name)) else []
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if is_csv(file.relative_to(path)))
    return Stored(tuple(files), lambda data: read_csv(path, files, data)) if files else None


def _saved(path: Path) -> Stored | None:
    saved = find_saved(path)
    return Stored(saved.files, lambda data: read_saved(saved, data)) if saved else None


def _idx(path: Path) -> Stored | None:
    files = find_idx(path)
    return Stored(tuple(files.values()), lambda data: read_idx(files, data)) if files else None


def _arrays(path: Path) -> Stored | None:
    files = find_arrays(path)
    return Stored(tuple(files), lambda data: read_arrays(files, data)) if files else None


def _pictures(path: Path) -> Stored | None:
    folder = find_pictures(path) if path.is_dir() else None
    return Stored(folder.files, lambda data: read_pictures(folder, data)) if folder else None


FORMATS = (
    Format("Parquet", _parquet, columns=True),
    Format("a saved Hugging Face dataset", _saved, columns=True),
    Format("IDX", _idx),
    Format("NumPy", _arrays, columns=True),
    Format("pictures", _pictures),
)
# Beside files of other formats these are notes, such as a list of the pictures in a folder.
CSV = Format("CSV", _csv, columns=True)
FORMATS_TEXT = (
    "Parquet, CSV, pictures in folders, .npy, .npz, IDX (train-images-idx3-ubyte), or a folder that Hugging Face's "
    "save_to_disk wrote"
)


def find_stored(path: Path, key: str) -> tuple[Format, Stored]:
    """The one format of the files at a path, which the setting `key` names, and the files.

    Raises UserError where there are none, or some of several formats; OSError where a folder cannot be read.
    """
    if not path.exists():
        raise UserError(f"{key}: {path} does not exist")
    matches = [(form, stored) for form in FORMATS if (stored := form.find(path)) is not None]
    if not matches and (tables := CSV.find(path)) is not None:
        matches = [(CSV, tables)]
    if not matches and path.is_file():
        matches = _by_content(path)
    if len(matches) > 1:
        names = " and ".join(f"{form.name} ({stored.files[0].name})" for form, stored in matches)
        raise UserError(f"{key}: {path} holds files of several formats, {names}; keep one of them in the folder")
    if not matches:
        raise UserError(f"{key}: {path} {_what_it_is(path)}; images are read from {FORMATS_TEXT}")
    return matches[0]


def _by_content(path: Path) -> list[tuple[Format, Stored]]:
    """The format of a file whose name does not tell it, by its first bytes."""
    forms = {form.name: form for form in FORMATS}
    with path.open("rb") as content:
        start = content.read(6)
    if start.startswith(b"PAR1"):
        return [(forms["Parquet"], Stored((path,), lambda data: read_parquet(path, [path], data)))]
    if start == b"\x93NUMPY" or (start.startswith(b"PK") and is_archive_of_arrays(path)):
        return [(forms["NumPy"], Stored((path,), lambda data: read_arrays([path], data)))]
    return []


def _what_it_is(path: Path) -> str:
    if path.is_dir():
        endings = Counter(Path(name).suffix.lower() or name for _, _, names in os.walk(path) for name in names)
        kinds = ", ".join(f"{ending} {count}" for ending, count in endings.most_common(5))
        return f"holds no images, but files of other kinds ({kinds})" if endings else "is empty"
    if path.suffix.lower() in ENDINGS:
        return "is a single picture; give the folder that holds it"
    with path.open("rb") as content:
        kind = format_of(content.read(1024))
    return f"is {kind or 'a file of no known format'}"
