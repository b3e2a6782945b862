"""EMNIST, MNIST's digits with letters (Cohen et al. 2017): one zip of six sets in IDX files; errors name the file."""

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.idx import IDX_FILES, read_idx
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.errors import UserError
from aae_ray.settings import Data

ARCHIVE = "gzip.zip"
UNPACKED = "gzip"  # the folder in the archive
SETS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")


def mapping_file(name: str) -> str:
    """The file that says which characters the labels of a set stand for."""
    return f"emnist-{name}-mapping.txt"


def idx_files(name: str) -> tuple[str, ...]:
    """The IDX files of a set, in the order of IDX_FILES."""
    return tuple(f"emnist-{name}-{file.replace('t10k', 'test')}" for file in IDX_FILES)


def read_emnist(name: str, files: Mapping[str, Path], data: Data) -> tuple[ImageStream, dict[int, str]]:
    """One of SETS from the archive or from its own files, with the names of its labels.

    The files hold images with rows and columns exchanged; here they stand upright unless `data.transpose` is false.
    Raises UserError for a missing or damaged file.
    """
    if data.transpose is None:
        data = data.model_copy(update={"transpose": True})
    if ARCHIVE not in files:
        return _read(name, files, data)
    unpacked = tempfile.TemporaryDirectory(prefix="aae_ray-emnist-")
    try:
        members = _unpack(files[ARCHIVE], (*idx_files(name), mapping_file(name)), Path(unpacked.name))
        stream, names = _read(name, members, data)
    except BaseException:
        unpacked.cleanup()
        raise

    def blocks() -> Iterator[NDArray[np.uint8]]:
        with unpacked:
            yield from stream.blocks

    return replace(stream, blocks=blocks()), names


def _read(name: str, files: Mapping[str, Path], data: Data) -> tuple[ImageStream, dict[int, str]]:
    idx = {standard: files[file] for standard, file in zip(IDX_FILES, idx_files(name), strict=True)}
    return read_idx(idx, data), _characters(files[mapping_file(name)])


def _unpack(archive: Path, wanted: Sequence[str], folder: Path) -> dict[str, Path]:
    """Files of the archive by name, unpacked into a folder, still packed by gzip where they are."""
    unpacked = {}
    try:
        with zipfile.ZipFile(archive) as content:
            members = {PurePosixPath(member.filename).name: member for member in content.infolist()}
            for name in wanted:
                member = members.get(f"{name}.gz") or members.get(name)
                if member is None:
                    raise UserError(f"{archive} has no {name} (.gz or not) in it; EMNIST's own archive has")
                unpacked[name] = folder / name
                with content.open(member) as source, unpacked[name].open("wb") as target:
                    shutil.copyfileobj(source, target)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:  # RuntimeError: a password is asked
        raise UserError(f"{archive} cannot be read as a zip archive: {error}") from None
    except OSError as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}: {error.strerror or error}") from None
    return unpacked


def _characters(mapping: Path) -> dict[int, str]:
    """The character of each label: the first, a capital, where letters of both cases share one."""
    characters = {}
    try:
        for line in mapping.read_text("ascii").splitlines():
            if line.strip():
                label, code, *_ = map(int, line.split())
                characters[label] = chr(code)
    except OSError as error:
        raise UserError(f"{mapping} cannot be read: {error.strerror or error}") from None
    except (ValueError, OverflowError):
        raise UserError(
            f"{mapping} is not a mapping of EMNIST: a line is a label and the codes of its characters"
        ) from None
    if not characters:
        raise UserError(f"{mapping} is empty")
    return characters
