"""Pictures in folders: classes, parts and order from the names; what is odd is told by file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from aae_ray.datasets.folders import find_pictures, read_pictures
from aae_ray.datasets.image_stream import ImageStream
from aae_ray.errors import UserError
from aae_ray.settings import Data
from tests.datasets.small_sets import gather


def write(root: Path, files: Mapping[str, int | bytes]) -> Path:
    """Pictures of one grey level each, and files of other bytes."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            Image.new("L", (6, 4), content).save(root / name)
    return root


def read(root: Path, **data: Any) -> ImageStream:
    folder = find_pictures(root)
    assert folder is not None
    return read_pictures(folder, Data(**data))


def levels(stream: ImageStream) -> list[int]:
    images_NCHW, _ = gather(stream)
    assert images_NCHW.shape[1:] == (1, 4, 6)
    return [int(image.flat[0]) for image in images_NCHW]


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    stream = read(write(tmp_path, {"bee/2.png": 30, "ant/b.PNG": 20, "ant/a.bmp": 10, "bee/10.Tiff": 240}))
    assert levels(stream) == [10, 20, 240, 30]
    assert stream.labels is not None and stream.labels.to_pylist() == ["ant", "ant", "bee", "bee"]
    assert stream.parts is None
    assert (stream.origin.format, stream.origin.files) == ("pictures in folders", 4)
    assert stream.value_range() == (10, 240)
    assert stream.remarks() == ()


def test_all_pictures_in_one_folder_have_no_labels(tmp_path: Path) -> None:
    stream = read(write(tmp_path, {"b.png": 200, "a.png": 10}))
    assert levels(stream) == [10, 200]
    assert stream.labels is None and stream.parts is None


def test_folders_of_parts(tmp_path: Path) -> None:
    files = {
        "Test/ant/1.png": 50,
        "train/bee/1.png": 20,
        "train/ant/1.png": 10,
        "val/bee/x.png": 40,
        "val/ant/x.png": 30,
    }
    stream = read(write(tmp_path, files))
    assert levels(stream) == [10, 20, 30, 40, 50]
    assert stream.parts is not None and stream.parts.tolist() == [0, 0, 1, 1, 2]
    assert stream.labels is not None and stream.labels.to_pylist() == ["ant", "bee", "ant", "bee", "ant"]


def test_a_part_may_be_unlabelled(tmp_path: Path) -> None:
    stream = read(write(tmp_path, {"train/ant/1.png": 10, "train/bee/1.png": 20, "test/1.png": 30}))
    assert stream.labels is not None and stream.labels.to_pylist() == ["ant", "bee", None]


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    files: dict[str, int | bytes] = {
        "ant/1.png": 100,
        "ant/Thumbs.db": b"x",
        "ant/._1.png": b"x",
        ".DS_Store": b"x",
        "__MACOSX/ant/1.png": b"x",
        "ant/readme.txt": b"x",
        "ant/photo.HEIC": b"x",
        "labels.csv": b"x",
        "bee/2.png": 20,
        "bee/more/3.png": 30,
    }
    (tmp_path / "cat").mkdir()
    stream = read(write(tmp_path, files))
    assert levels(stream) == [100, 20, 30]
    assert stream.remarks() == (
        "files that are no pictures, left out: 3 (.heic 1, .txt 1, .csv 1)",
        "hidden files and folders, left out: 4",
        "folders without pictures: cat",
        "pictures in folders below the folder of their class: 1",
    )


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    write(tmp_path / "set", {"ant/1.png": 10, "bee/1.png": 20})
    write(tmp_path / "elsewhere", {"1.png": 30})
    (tmp_path / "set" / "ant" / "back").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    stream = read(tmp_path / "set")
    assert stream.labels is not None and stream.labels.to_pylist() == ["ant", "bee", "cat"]


def test_names_of_all_languages(tmp_path: Path) -> None:
    stream = read(write(tmp_path, {"Ähre rot/ü 1.png": 10, "犬/1.png": 20}))
    assert stream.labels is not None and stream.labels.to_pylist() == ["Ähre rot", "犬"]


def test_pixels_are_those_that_opencv_wrote(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images_NHWC = random.integers(0, 256, (12, 5, 7, 3), dtype=np.uint8)
    for index, image in enumerate(images_NHWC):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        assert cv2.imwrite(str(tmp_path / "ab"[index % 2] / f"{index:02}.png"), image[..., ::-1])
    images_NCHW, labels_N = gather(read(tmp_path))
    assert np.array_equal(images_NCHW, np.concatenate([images_NHWC[::2], images_NHWC[1::2]]).transpose(0, 3, 1, 2))
    assert labels_N is not None and labels_N.tolist() == ["a"] * 6 + ["b"] * 6


def test_settings_of_pixels_reach_the_pictures(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": 0, "b.png": 8, "c.png": 16})
    Image.new("RGB", (12, 8), (16, 16, 16)).save(tmp_path / "d.png")
    images_NCHW, _ = gather(read(tmp_path, scale="observed", channels=1, size="4x6"))
    assert [int(image.flat[0]) for image in images_NCHW] == [0, 128, 255, 255]


FAULTS: dict[str, tuple[Mapping[str, int | bytes], str]] = {
    "cut": ({"a/1.png": 200, "a/2.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"}, "a/2.png is a PNG image that is cut short"),
    "empty": ({"a.png": 200, "b.jpg": b""}, "b.jpg is empty"),
    "other kind": ({"a.png": 200, "b.png": b"%PDF-1.7"}, "b.png is PDF or PostScript"),
    "dark": ({"a.png": 9, "b.png": 3}, "has pixel values of 3 to 9, and would be dark"),
    "loose": ({"ant/1.png": 9, "bee/1.png": 9, "2.png": 3}, "holds 1 picture beside folders of pictures (ant, bee)"),
    "loose in a part": (
        {"train/ant/1.png": 9, "train/2.png": 3},
        "train holds 1 picture beside folders of pictures (ant)",
    ),
    "parts and classes": ({"train/1.png": 9, "cat/1.png": 3}, "holds folders of parts (train) and beside them cat"),
    "wrapped": ({"set/ant/1.png": 9, "set/bee/1.png": 3}, "holds one folder, set, with folders of pictures in it"),
    "wrapped parts": ({"set/train/1.png": 9, "set/test/1.png": 3}, "holds one folder, set, with folders of pictures"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_by_file_or_folder(tmp_path: Path, fault: str) -> None:
    files, text = FAULTS[fault]
    with pytest.raises(UserError) as error:
        levels(read(write(tmp_path, files)))
    assert str(tmp_path) in str(error.value) and text in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_that_differ_are_told_by_file(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": 200, "b.png": 100})
    Image.new("L", (4, 4)).save(tmp_path / "c.png")
    with pytest.raises(
        UserError, match=r"c\.png is 4 x 4 in grey .*there are 2 of 4 x 6 in grey, 1 of 4 x 4.*data\.size=4x6"
    ):
        levels(read(tmp_path))


def test_a_picture_that_may_not_be_read(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": 200, "b.png": 100})
    os.symlink(tmp_path / "nowhere.png", tmp_path / "c.png")
    with pytest.raises(UserError, match=r"c\.png cannot be read: No such file or directory; put the file there again"):
        levels(read(tmp_path))


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    for folder in tmp_path.iterdir():
        Image.new("L", (6, 4), 200).save(folder / "1.png")
    with pytest.raises(UserError, match=r"no UTF-8 text; rename it"):
        read(tmp_path)


def test_no_pictures(tmp_path: Path) -> None:
    assert find_pictures(write(tmp_path, {"a.txt": b"x"})) is None


def test_pictures_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be larger than the memory."""
    monkeypatch.setattr("aae_ray.datasets.pixels.BLOCK_BYTES", 3 * 4 * 6)
    stream = read(write(tmp_path, {f"{level}.png": level for level in range(100, 110)}))
    assert len(next(stream.blocks)) == 3
    for level in range(103, 110):
        (tmp_path / f"{level}.png").unlink()
    with pytest.raises(UserError, match=r"103\.png cannot be read"):
        next(stream.blocks)
