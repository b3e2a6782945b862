"""Small sets of images for the tests of the data layer, and their IDX files."""

from pathlib import Path

import numpy as np

from aae_ray.datasets.image_stream import ImageStream

IDX_TYPES = {"u1": 0x08, "i1": 0x09, ">i2": 0x0B, ">i4": 0x0C, ">f4": 0x0D, ">f8": 0x0E}


def idx_bytes(array: np.ndarray, element: str = "u1") -> bytes:
    header = bytes((0, 0, IDX_TYPES[element], array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(element).tobytes()


def write_idx(folder: Path, images_NHW: np.ndarray, labels_N: np.ndarray | None, test_count: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    stop = len(images_NHW) - test_count
    for part, rows in (("train", slice(0, stop)), ("t10k", slice(stop, None))):
        if part == "train" or test_count:
            (folder / f"{part}-images-idx3-ubyte").write_bytes(idx_bytes(images_NHW[rows]))
            if labels_N is not None:
                (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(labels_N[rows]))
    return folder


def some_images(count: int = 60, side: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, side, side), dtype=np.uint8), np.arange(count) % 3


def gather(stream: ImageStream) -> tuple[np.ndarray, np.ndarray | None]:
    images_NCHW = np.concatenate(list(stream.blocks))
    assert len(images_NCHW) == stream.count
    assert images_NCHW.dtype == np.uint8
    if stream.labels is None:
        return images_NCHW, None
    assert len(stream.labels) == stream.count
    return images_NCHW, stream.labels.to_numpy(zero_copy_only=False)
