"""Pictures in folders: a folder for each class, in folders of parts or not, or all pictures in one folder."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.classes import NO_LABELS
from aae_ray.datasets.image_stream import ImageStream, Origin, Parts
from aae_ray.datasets.parts import part_of_word
from aae_ray.datasets.pictures import ENDINGS, Pictures
from aae_ray.datasets.pixels import located_faults, stack
from aae_ray.errors import UserError
from aae_ray.settings import Data

_LEFT_BY_SYSTEMS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"))
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class PictureFolder:
    """The pictures below a folder in their order, and what their folders say of them."""

    path: Path
    files: tuple[Path, ...]
    labels: tuple[str | None, ...] | None  # names of the class folders; None where there are none
    parts: Parts | None
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Picture:
    part: int | None
    folders: tuple[str, ...]  # in which it lies, from the one of its class on
    file: Path

    @property
    def label(self) -> str | None:
        return self.folders[0] if self.folders else None


def find_pictures(path: Path) -> PictureFolder | None:
    """The pictures below a folder, in the order of parts, folders and names; None where there are none.

    The class is the first folder below the set's, or below the part's where the first folders are named like parts
    (train, val, test). Raises UserError where folders contradict each other; OSError where one cannot be read.
    """
    files = _Files()
    _walk(path, files, set())
    pictures = [_placed(path, file) for file in files.pictures]
    if not pictures:
        return None
    _check_folders(path, pictures)
    pictures.sort(key=lambda picture: (-1 if picture.part is None else picture.part, picture.file.parts))
    labels = tuple(picture.label for picture in pictures)
    parts = [picture.part for picture in pictures]
    remarks = files.remarks(path)
    if deeper := sum(len(picture.folders) > 1 for picture in pictures):
        remarks += (f"pictures in folders below the folder of their class: {deeper}",)
    return PictureFolder(
        path,
        tuple(picture.file for picture in pictures),
        labels if any(labels) else None,
        None if None in parts else np.array(parts, np.int8),
        remarks,
    )


def read_pictures(folder: PictureFolder, data: Data) -> ImageStream:
    """The pictures of a folder, decoded one by one as the blocks are read. Raises UserError by file."""
    import pyarrow as pa

    pictures = Pictures(data)

    def images() -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for file in folder.files:
            with located_faults(str(file)):
                yield str(file), pictures.decode(file)

    def blocks() -> Iterator[NDArray[np.uint8]]:
        if pictures.scale.needs_observing:
            for file in folder.files:
                with located_faults(str(file)):
                    pictures.observe(file)
        yield from stack(images())
        with located_faults(f"data.path: {folder.path}"):
            pictures.scale.finish()

    return ImageStream(
        len(folder.files),
        blocks(),
        None if folder.labels is None else pa.array(folder.labels, pa.string()),
        Origin("pictures in folders", len(folder.files), parts="" if folder.parts is None else "names of folders"),
        folder.parts,
        value_range=lambda: pictures.scale.seen,
        remarks=lambda: folder.remarks + pictures.remarks(),
        label_location=lambda image: (
            f"the names of the folders in {folder.path}"
            if image is None
            else f"{folder.files[image]}: its folder's name"
        ),
        other_labels=f"put all pictures of a class into one folder, or {NO_LABELS}",
    )


# ----------------------------------------------------------------------------------------------------------- folders


@dataclass
class _Files:
    """What lies below a folder."""

    pictures: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)  # files that are no pictures, by their endings
    hidden: int = 0
    empty: list[Path] = field(default_factory=list)  # folders without pictures

    def remarks(self, path: Path) -> tuple[str, ...]:
        """What was left out."""
        remarks = []
        if self.others:
            kinds = ", ".join(f"{ending} {count}" for ending, count in self.others.most_common(_NAMES_SHOWN))
            remarks.append(f"files that are no pictures, left out: {self.others.total()} ({kinds})")
        if self.hidden:
            remarks.append(f"hidden files and folders, left out: {self.hidden}")
        if self.empty:
            remarks.append(f"folders without pictures: {_some(str(folder.relative_to(path)) for folder in self.empty)}")
        return tuple(remarks)


def _walk(folder: Path, files: _Files, above: set[Path]) -> None:
    """Gather what lies below a folder, links followed, but none that leads back to a folder above it."""
    above = above | {folder.resolve()}
    before = len(files.pictures)
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name.lower() in _LEFT_BY_SYSTEMS:
            files.hidden += 1
        elif entry.is_dir():
            if entry.resolve() not in above:
                _walk(entry, files, above)
        elif entry.suffix.lower() in ENDINGS:
            files.pictures.append(entry)
        else:
            files.others[entry.suffix.lower() or entry.name] += 1
    if len(files.pictures) == before:
        files.empty.append(folder)


def _placed(path: Path, file: Path) -> _Picture:
    folders = file.relative_to(path).parts[:-1]
    part = part_of_word(folders[0]) if folders else None
    return _Picture(part, folders if part is None else folders[1:], file)


def _check_folders(path: Path, pictures: list[_Picture]) -> None:
    first = sorted({picture.file.relative_to(path).parts[0] for picture in pictures if picture.part is not None})
    others = sorted({picture.file.relative_to(path).parts[0] for picture in pictures if picture.part is None})
    if first and others:
        raise UserError(
            f"data.path: {path} holds folders of parts ({_some(first)}) and beside them {_some(others)}; put all "
            f"pictures into the parts, or give the folders other names where they are classes"
        )
    for part in {picture.part for picture in pictures}:
        mine = [picture for picture in pictures if picture.part == part]
        loose = [picture for picture in mine if picture.label is None]
        if loose and len(loose) < len(mine):
            classes = _some(sorted({picture.label for picture in mine if picture.label is not None}))
            counted = f"{len(loose)} picture{'s' * (len(loose) != 1)}"
            raise UserError(
                f"data.path: {loose[0].file.parent} holds {counted} beside folders of pictures ({classes}); put "
                "them into the folder of their class, or somewhere else"
            )
    if len({picture.label for picture in pictures}) == 1 and all(len(picture.folders) > 1 for picture in pictures):
        raise UserError(
            f"data.path: {path} holds one folder, {pictures[0].label}, with folders of pictures in it; give the "
            f"folder that holds those of the classes"
        )
    unnamed = [picture.file for picture in pictures if not _is_text(str(picture.label))]
    if unnamed:
        raise UserError(f"data.path: {str(unnamed[0].parent)!a} has a name that is no UTF-8 text; rename it")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8 stand in a name as lone surrogates
        return False
    return True


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
