"""Files that may be packed with gzip."""

import gzip
from pathlib import Path
from typing import BinaryIO


def open_unpacked(path: Path) -> gzip.GzipFile | BinaryIO:
    """A file's content, unpacked where it is packed with gzip."""
    # By content, not by name: servers and browsers unpack .gz files on the way and leave the name as it was.
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if packed else path.open("rb")
