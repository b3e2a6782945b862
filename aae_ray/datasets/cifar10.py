"""CIFAR-10 in its binary version (Krizhevsky 2009); errors name the file.

The Python version of the archive holds pickles, which may run code when they are read.

`N` images of a batch, `B` images of a block, `C` channels, `H` height, `W` width.
"""

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from aae_ray.datasets.damage import AGAIN, unreadable
from aae_ray.datasets.image_stream import TEST, TRAIN, ImageStream, Origin
from aae_ray.datasets.packed import open_unpacked
from aae_ray.errors import UserError

ARCHIVE = "cifar-10-binary.tar.gz"
UNPACKED = "cifar-10-batches-bin"  # the folder in the archive
BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SHAPE_CHW = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32  # a label, then the pixels channel by channel and row by row
_BLOCK_ROWS = 4096


def read_cifar10(files: Mapping[str, Path]) -> ImageStream:
    """The images of the archive, or of the six batches in it: the training images batch by batch, then those for test.

    Labels are indices of CLASSES. All batches are held in memory (184 MB in all) while the blocks are
    read. Raises UserError for a missing, damaged, empty or cut batch.
    """
    batches = _batches_in(files[ARCHIVE]) if ARCHIVE in files else {name: _content(files[name]) for name in BATCHES}
    origins = {name: files.get(name, files.get(ARCHIVE, Path()) / name) for name in BATCHES}
    records = [_records(batches[name], origins[name]) for name in BATCHES]
    labels_N = np.concatenate([batch[:, 0] for batch in records])
    counts = [len(batch) for batch in records]
    parts_N = np.repeat(np.array([TRAIN] * (len(BATCHES) - 1) + [TEST], np.int8), counts)

    def blocks() -> Iterator[NDArray[np.uint8]]:
        for batch in records:
            for start in range(0, len(batch), _BLOCK_ROWS):
                yield batch[start : start + _BLOCK_ROWS, 1:].reshape(-1, *_SHAPE_CHW)

    import pyarrow as pa

    origin = Origin("CIFAR-10 binary", len(files), parts="names of files")
    return ImageStream(sum(counts), blocks(), pa.array(labels_N), origin, parts_N, label_names=CLASSES)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def _batches_in(archive: Path) -> dict[str, bytes]:
    batches = {}
    try:
        with open_unpacked(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            # One pass in the archive's own order: to go back in it is to unpack it again from its start.
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in BATCHES and (content := tar.extractfile(member)) is not None:
                    batches[name] = content.read()
            while stream.read(1 << 20):  # to its end, where gzip has its checksum
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{archive} cannot be read as an archive of CIFAR-10: {reason}; {AGAIN}") from None
    if missing := [name for name in BATCHES if name not in batches]:
        raise UserError(
            f"{archive} has no {missing[0]} in it; the binary version of CIFAR-10 is {ARCHIVE}, not one of the others"
        )
    return batches


def _records(content: bytes, path: Path) -> NDArray[np.uint8]:
    """Labels and pixels of a batch, (N, 3073)."""
    if not content:
        raise UserError(f"{path} is empty; {AGAIN}")
    whole, rest = divmod(len(content), _RECORD_BYTES)
    if rest:
        raise UserError(
            f"{path} ends within image {whole}: it has {len(content)} bytes, and each image takes {_RECORD_BYTES}; "
            f"{AGAIN}"
        )
    records = np.frombuffer(content, np.uint8).reshape(whole, _RECORD_BYTES)
    wrong = records[:, 0] >= len(CLASSES)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise UserError(
            f"{path} is not a batch of CIFAR-10: image {row} has label {records[row, 0]}, and its labels are 0 to 9"
        )
    return records
