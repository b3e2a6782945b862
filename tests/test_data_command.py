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
from aae_ray.datasets import parquet


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
    assert list(rows) == ["name", "images", "shape", "classes", "parts", "digest", "folder"]
    assert rows["images"] == "1797"
    assert rows["shape"].startswith("1 x 8 x 8")
    assert rows["parts"] == "training 1079, validation 359, test 359"
    assert (Path(rows["folder"]) / "images.npy").is_file()
    starts = {line.index(line.split(maxsplit=1)[1]) for line in done.stdout.splitlines()}
    assert len(starts) == 1, "the values are not in one column"
    assert done.stderr == "preparing digits: 1797 of 1797\n"


def test_name_options_and_settings(run: Callable[..., Ended], faces: Path, tmp_path: Path) -> None:
    words = ("data.image_column=pixels", "faces", "data.validation_fraction=0.5", "--path", faces)
    ended = run(*words, "--cache", tmp_path / "kept")
    assert ended.code == 0
    assert "name     faces" in ended.stdout
    assert "classes  no labels" in ended.stdout
    assert "parts    training 12, validation 20, test 8" in ended.stdout
    assert str(tmp_path / "kept/faces-") in ended.stdout


def test_progress_without_a_terminal_is_a_line_at_each_tenth(
    run: Callable[..., Ended], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH_ROWS", 1)
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
