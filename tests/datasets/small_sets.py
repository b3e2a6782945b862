"""Small sets of images for the tests of the data layer, and their IDX files."""

from pathlib import Path

import numpy as np

from aae_ray.datasets.image_stream import ImageStream


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


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
    blocks = list(stream.blocks)
    images_NCHW = np.concatenate([images for images, _ in blocks])
    labels = [labels for _, labels in blocks if labels is not None]
    assert len(images_NCHW) == stream.count
    assert images_NCHW.dtype == np.uint8
    assert len(labels) in (0, len(blocks))
    return images_NCHW, np.concatenate(labels) if labels else None
