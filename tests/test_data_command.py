"""python -m aae_ray.data: what it prints, where, and how it ends."""

import io
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aae_ray.cli import run_command
from aae_ray.data import prepare


class Ended(NamedTuple):
    """How the command ended, and what it printed."""

    code: object
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["data", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_command(prepare, "data")
        return Ended(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    images = np.arange(40 * 9).reshape(40, 9) % 256
    file = tmp_path / "faces.parquet"
    pq.write_table(pa.table({"pixels": images.tolist(), "mask": (images % 2).tolist()}), file)
    return file


def test_summary_of_the_digits(tmp_path: Path) -> None:
    """As a user runs it: another process, with the module run as the main one."""
    command = [sys.executable, "-m", "aae_ray.data", "--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(rows) == ["name", "images", "source", "values", "classes", "parts", "digest", "folder"]
    assert rows["images"] == "1,797 of 1 x 8 x 8 (channels x height x width)"
    assert rows["values"] == "0 to 16 before scaling"
    assert rows["classes"].startswith("10 classes: 0 178, 1 182, 2 177")
    assert rows["parts"] == "training 1,079, validation 359, test 359; drawn"
    assert (Path(rows["folder"]) / "images.npy").is_file()
    starts = {line.index(line.split(maxsplit=1)[1]) for line in done.stdout.splitlines()}
    assert len(starts) == 1, "the values are not in one column"
    assert done.stderr == "preparing digits: 1797 of 1797\n"


def test_name_options_and_settings(run: Callable[..., Ended], faces: Path, tmp_path: Path) -> None:
    words = ("data.image_column=pixels", "faces", "data.validation_fraction=0.5", "--path", faces)
    ended = run(*words, "--cache", tmp_path / "kept")
    assert ended.code == 0
    assert "name    faces" in ended.stdout
    assert "classes no labels" in ended.stdout
    assert "parts   training 12, validation 20, test 8; drawn" in ended.stdout
    assert str(tmp_path / "kept/faces-") in ended.stdout


def test_a_file_or_folder_alone_names_the_set(
    run: Callable[..., Ended], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--cache", tmp_path / "kept", "data.image_column=pixels")
    for words in ((faces,), ("faces.parquet",), ("./faces.parquet",)):
        ended = run(*words, *more)
        assert ended.code == 0 and "name    faces" in ended.stdout
    assert "name    own" in run("faces.parquet", *more, "data.name=own").stdout
    (tmp_path / "mnist").mkdir()  # is none the less the name of a published set
    ended = run("mnist", "data.image_column=x")
    assert ended.code == 2 and "data.path names none" in ended.stderr
    (tmp_path / "faces").mkdir()  # beside data.path a word is a name
    assert "name    faces" in run("faces", "data.path=faces.parquet", *more).stdout
    assert "give it another name, such as data.name=faces\n" in run("data.path=faces.parquet").stderr


def test_what_was_read_and_what_was_not_is_said_once(run: Callable[..., Ended], tmp_path: Path) -> None:
    images = np.arange(40 * 9).reshape(40, 9) % 256
    for part, rows in (("train", slice(0, 20)), ("test", slice(20, 40))):
        kinds = [None if row == 3 else ("ant", "bee")[row % 2] for row in range(40)][rows]
        columns = {"pixels": images[rows].tolist(), "kind": kinds, "age": list(range(40))[rows]}
        pq.write_table(pa.table(columns), tmp_path / f"{part}-00000.parquet")
    labelled = run("faces", "--path", tmp_path, "--cache", tmp_path / "cache", "data.label_column=kind")
    assert "source  Parquet, 2 files, columns pixels, kind; not used: age" in labelled.stdout
    assert "values  0 to 255 before scaling" in labelled.stdout
    assert "classes 2 classes: ant 20, bee 19; without a label 1" in labelled.stdout
    assert (
        "parts   training 16, validation 4, test 20; test given by names of files and folders, validation drawn"
        in labelled.stdout
    )
    bare = run("faces", "--path", tmp_path, "--cache", tmp_path / "cache")
    assert "not used: kind, age (data.label_column takes one of them as labels)" in bare.stdout


def test_a_preview_shows_images_with_their_labels(run: Callable[..., Ended], tmp_path: Path) -> None:
    from PIL import Image

    images = np.stack([np.full(16, 255 * (row % 2)) for row in range(40)])
    labels = [("black", "white")[row % 2] for row in range(40)]
    pq.write_table(pa.table({"image": images.tolist(), "label": labels}), tmp_path / "own.parquet")
    words = ("own", "--path", tmp_path / "own.parquet", "--cache", tmp_path)
    drawn = run(*words, "--preview", tmp_path / "own.png")
    assert drawn.code == 0 and drawn.stdout.splitlines()[-1].split() == ["preview", str(tmp_path / "own.png")]
    with Image.open(tmp_path / "own.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    half = pixels.shape[0] // 2  # class by class: the black ones come first
    assert (pixels[:half] == 0).mean() > 0.5 and (pixels[half:] == 0).mean() < 0.05
    for name, sentence in (
        ("own.jpg", "is a PNG picture; call it own.png"),
        ("no/own.png", f"cannot be written: there is no folder {tmp_path / 'no'}"),
    ):
        ended = run("other", *words[1:], "--preview", tmp_path / name)
        assert ended.code == 2 and sentence in ended.stderr
    assert not list(tmp_path.glob("other-*"))  # nothing was prepared for a sheet that cannot be written


def test_progress_without_a_terminal_is_a_line_at_each_tenth(
    run: Callable[..., Ended], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aae_ray.datasets.pixels.BLOCK_BYTES", 1)
    ended = run("faces", "--path", faces, "--cache", tmp_path, "data.image_column=pixels")
    lines = ended.stderr.splitlines()
    assert lines[0] == "preparing faces: 1 of 40"
    assert lines[-1] == "preparing faces: 40 of 40"
    assert len(lines) == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mnsit"], "data.name: mnsit is none of digits, mnist, fashion-mnist"),
        (["mnist", "fashion-mnist"], "'fashion-mnist' is not of the form key=value"),
        (["data.pth=x"], "data.pth is not a setting. Did you mean data.path?"),
        (["data.split_seed=-1"], "data.split_seed: expected"),
        (["no name"], "data.name: "),
        (["faces", "--path", "nowhere"], "data.path: nowhere does not exist"),
        (["faces", "--path", "{faces}"], "several columns of images, pixels, mask"),
        (["faces", "--path", "{faces}", "data.image_column=pixel"], "Did you mean pixels?"),
    ],
)
def test_mistakes_end_with_code_2_and_a_sentence(
    run: Callable[..., Ended], faces: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    ended = run(*(word.format(faces=faces) for word in words), "--cache", tmp_path / "cache")
    assert ended.code == 2
    assert ended.stdout == ""
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_ends_with_code_130_and_leaves_nothing_half_done(
    run: Callable[..., Ended], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PressesCtrlC(io.StringIO):
        """Gets its first text when the images are on their way into the cache."""

        def write(self, text: str) -> int:
            if not self.getvalue():
                super().write(text)
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    stderr = PressesCtrlC()
    monkeypatch.setattr(sys, "stderr", stderr)
    ended = run("faces", "--path", faces, "--cache", tmp_path / "cache", "data.image_column=pixels")
    assert ended.code == 130
    assert ended.stdout == ""
    assert "Traceback" not in stderr.getvalue()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("digits", "data.name=mnist"), "data.name is given twice: digits and mnist"),
        (("train.epochs=3",), "train.epochs: data are prepared by settings of data.* alone"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    run: Callable[..., Ended], arguments: tuple[str, ...], sentence: str
) -> None:
    ended = run(*arguments)
    assert ended.code == 2 and sentence in ended.stderr and not ended.stdout
