"""A console that outlives its reader: a closed pipe, a full disk, an encoding without arrows."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

import pytest
from rich.table import Table

from aae_ray.reporting.console import Output, ascii_text, console_for, is_ascii

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from pathlib import Path
from aae_ray.cli import main
from aae_ray.reporting.console import console_for

def command() -> None:
    console = console_for()
    for number in range(200):
        console.print(f"line {number} \\u2193 \\N{BLACK STAR} caf\\u00e9 \\u4e2d")
        if number == 5:
            time.sleep(0.3)
    print("a line of another library")
    Path(sys.argv[0]).with_name("done").write_text("the study went on")

main(command, "command")
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        | {"PYTHONPATH": str(ROOT)}
        | environment,
    )


def test_a_closed_pipe_ends_no_study(program: Path) -> None:
    done = shell(f"{sys.executable} {program} | head -3")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["0", "1", "2"]
    assert program.with_name("done").exists()


def test_a_reader_that_never_reads_ends_no_study(program: Path) -> None:
    done = shell(f"{sys.executable} {program} | true")
    assert (done.returncode, done.stderr) == (0, "") and program.with_name("done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has /dev/full")
def test_a_full_disk_ends_no_study_and_is_said_once(program: Path) -> None:
    done = shell(f"{sys.executable} {program} > /dev/full")
    assert done.returncode == 0 and program.with_name("done").exists()
    assert done.stderr == "the output cannot be written (No space left on device); this goes on without it\n"


@pytest.mark.parametrize("redirect", [">&-", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_a_process_without_a_stream_goes_on(program: Path, redirect: str) -> None:
    done = shell(f"{sys.executable} {program} {redirect}")
    assert done.returncode == 0 and program.with_name("done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_cannot_show_looks_like_it(program: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT), "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 0 and done.stderr == b""
    first = done.stdout.decode(encoding).splitlines()[0].rstrip()
    assert first == (
        "line 0 \N{DOWNWARDS ARROW} \N{BLACK STAR} café \u4e2d" if encoding == "utf-8" else "line 0 v * cafe ?"
    )


def test_a_mistake_is_no_traceback_where_stderr_is_full(program: Path) -> None:
    text = program.read_text().replace(
        "console = console_for()", "from aae_ray.errors import UserError; raise UserError('no')"
    )
    program.write_text(text)
    done = shell(f"{sys.executable} {program} 2> /dev/full")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("plain", "plain"),
        ("\N{DOWNWARDS ARROW}\N{UPWARDS ARROW}\N{BLACK STAR}", "v^*"),
        ("\N{BOX DRAWINGS LIGHT DOWN AND RIGHT}\N{BOX DRAWINGS LIGHT HORIZONTAL}", "+-"),
        ("Zürich \N{EN DASH} \u4e2d\u6587 \N{HORIZONTAL ELLIPSIS}", "Zurich - ?? ."),
    ],
)
def test_ascii_has_as_many_letters(text: str, plain: str) -> None:
    assert ascii_text(text) == plain and len(plain) == len(text)


def test_tables_are_as_wide_in_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = console_for(file)
    table = Table("a", "b \N{DOWNWARDS ARROW}")
    table.add_row("1", "2")
    console.print(table)
    file.seek(0)
    lines = file.read().splitlines()
    assert is_ascii(console) and len({len(line) for line in lines}) == 1 and any("b v" in line for line in lines)


def test_a_stream_that_was_closed_is_left_alone() -> None:
    file = io.StringIO()
    output = Output(cast(IO[str], file))
    output.write("a")
    file.close()
    for _ in range(2):
        assert output.write("b") == 1
        output.flush()
    assert output.broken and not output.isatty()
    nowhere = Output(None)
    nowhere.write("a")
    with pytest.raises(OSError):
        nowhere.fileno()


def test_a_console_for_a_log_is_wide_and_plain() -> None:
    console = console_for(io.StringIO())
    assert console.width >= 180 and not console.is_terminal


def test_a_log_takes_what_a_closed_terminal_does_not(tmp_path: Path) -> None:
    read, write = os.pipe()
    output = Output(os.fdopen(write, "w", buffering=1))
    os.close(read)
    output.log = (tmp_path / "log").open("w")
    output.write("\x1b[1mresume\x1b[0m  this\n")
    output.write("\x1b[2K\x1b[1Aa frame of the live screen\n")
    output.write("and that\n")
    assert (tmp_path / "log").read_text() == "resume  this\nand that\n" and not output.isatty()
    output.log.close()
