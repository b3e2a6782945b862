"""Folders that are there completely or not at all, also after a kill, and after the machine has lost its power."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aae_ray.search.store import PARTIAL


@contextmanager
def durable_folder(target: Path) -> Iterator[Path]:
    """A folder to write files into; it gets its name when all of it is on the disk.

    In a folder that has the name already each file is replaced by its new one. At any time there is a whole folder,
    then: of files that are old or new, which are worth the same where both come from the same epoch.
    """
    partial = target.with_name(f"{target.name}{PARTIAL}{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            sync(file)
        sync(partial)
        if target.exists():  # an attempt that comes by the same epoch again; no two folders can change places at once
            new = {file.name for file in partial.iterdir()}
            for name in sorted(new):
                (partial / name).replace(target / name)
            for file in target.iterdir():
                if file.name not in new:
                    file.unlink()
            sync(target)
        else:
            partial.rename(target)
        for parent in (target.parent, target.parent.parent):
            sync(parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the file system write a file, or the names in a folder, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
