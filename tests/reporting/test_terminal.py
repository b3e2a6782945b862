"""The live screen in a real terminal of each size, and commands where there is less than a terminal."""

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pyte
import pytest

from aae_ray.search.journal import JOURNAL
from tests.reporting.test_screen import history_of_all_states

MORE = ("val/kl_aggregate_nats", "val/scaled_sliced_wasserstein")  # objectives than fit beside each other
SIZES = [(width, height, *more) for width, height in ((80, 24), (120, 40), (200, 50)) for more in ((), MORE)]
NEXT = "\x0c"  # between the sizes
PROGRAM = """
import fcntl, struct, sys, termios
from aae_ray.reporting.console import console_for
from aae_ray.reporting.screen import Screen
from aae_ray.reporting.text import resume_command
from pathlib import Path
from tests.reporting.test_screen import history_of_all_states, replayed

folder = Path("runs", "a study with a long name " * 5 + "-1")
for width, height, *more in eval(sys.argv[1]):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
    history = history_of_all_states("val/reconstruction_mse", "val/jsd_nats", *more)
    with Screen(console_for(), folder, history.plan) as screen:
        replayed(history, screen)
        screen.note("an \\N{LATIN SMALL LETTER A WITH DIAERESIS} in a note")
        if screen.live:
            screen.live.refresh()
        print(end="\\x0c", flush=True)
    screen.end("Go on with\\n  " + resume_command(folder))
    print(end="\\x0c", flush=True)
"""


def typed(*arguments: str, **environment: str) -> str:
    """What a program writes into a terminal."""
    master, slave = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR", "LC_ALL")}
    process = subprocess.Popen(
        arguments, stdin=slave, stdout=slave, stderr=slave, env={**clean, "TERM": "xterm-256color", **environment}
    )
    os.close(slave)
    written = b""
    while select.select([master], [], [], 120)[0]:
        try:
            piece = os.read(master, 65536)
        except OSError:  # nobody holds the other end any more
            break
        written += piece
    assert process.wait(60) == 0, written
    os.close(master)
    return written.decode()


def displayed(text: str, width: int, height: int) -> list[str]:
    screen = pyte.Screen(width, height)
    pyte.Stream(screen).feed(text)
    return [line.rstrip() for line in screen.display]


def test_a_terminal_of_any_size_shows_trials_in_full() -> None:
    parts = typed(sys.executable, "-c", PROGRAM, repr(SIZES)).split(NEXT)
    for (width, height, *more), live, end in zip(SIZES, parts[::2], parts[1::2], strict=False):
        lines = displayed(live, width, height)
        assert lines[0].startswith("digits: digits, 24 trials of 9 epochs")  # nothing has scrolled away
        for row in ("t0004 running, attempt 2 4/9 0.0400 0.3000", "t0000 complete 9/9 0.0300 0.3000",
                    "t0002 stopped: pruned 3/9 0.0500 0.3000", "t0003 failed: out_of_memory 0/9"):  # fmt: skip
            assert sum(" ".join(line.split()).startswith(row) for line in lines) == 1, lines
        heads = "".join(lines).replace(" ", "")
        for name in ("val/reconstruction_mse", "val/jsd_nats", *more):
            assert name in heads or name.partition("/")[2] in heads
        assert any("an ä in a note" in line for line in lines)
        (command,) = [line for line in end.splitlines() if "aae_ray.tune --resume" in line]
        assert command.rstrip().endswith("-1'")  # the terminal breaks the line, and we do not


@pytest.mark.parametrize(
    "environment",
    [
        {"TERM": "dumb"},
        {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "NO_COLOR": "1"},
    ],
)
def test_a_terminal_that_shows_little_shows_it_readably(environment: dict[str, str]) -> None:
    written = typed(sys.executable, "-c", PROGRAM, repr(SIZES[:1]), **environment)
    assert "Traceback" not in written and "Go on with" in written
    if "NO_COLOR" in environment:
        lines = displayed(written.split(NEXT)[0], 80, 24)
        assert written.isascii() and not re.search("\x1b\\[[0-9;]*3[0-9]m", written)
        assert any("an a in a note" in line for line in lines) and any("val/jsd_nats v" in line for line in lines)
    else:
        assert "\x1b" not in written and re.search(r"\] t0004 attempt 1 failed \(lost_worker\): node 10.0.0.3", written)


@pytest.mark.parametrize("arguments", [".tune --help", ".status digits-1", ""])
def test_a_command_whose_reader_has_gone_ends_quietly(arguments: str, tmp_path: Path) -> None:
    journal = tmp_path / "runs" / "digits-1" / JOURNAL
    journal.parent.mkdir(parents=True)
    journal.write_text("".join(f"{event.model_dump_json()}\n" for event in history_of_all_states().events))
    pipe = f"{sys.executable} -m aae_ray{arguments} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1 and done.returncode in (0, 1, 141)


def test_a_full_disk_behind_the_output_is_a_sentence(tmp_path: Path) -> None:
    command = f"{sys.executable} -m aae_ray.data data.cache={tmp_path} > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "what this command writes has no room: No space left on device" in done.stderr
