"""How a command's process ends: at once, with all that was said and begun, and with the code that it means."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """
import atexit, sys, threading, time
import typer
from aae_ray.cli import main
from aae_ray.errors import UserError

class Heavy:
    def __del__(self):
        time.sleep(20)  # as long as it takes to take apart what was imported

heavy = Heavy()

def late():
    time.sleep(0.5)
    print("a thread", end=" ")

def command(how: str) -> None:
    atexit.register(lambda: print("a farewell", end=""))
    threading.Thread(target=late).start()
    if how == "mistake":
        raise UserError("that is wrong")
    if how != "well":
        raise typer.Exit(int(how))

main(command, "command")
"""


@pytest.mark.parametrize(("how", "code", "told"), [("well", 0, ""), ("3", 3, ""), ("mistake", 2, "that is wrong\n")])
def test_a_command_ends_at_once_and_loses_nothing(tmp_path: Path, how: str, code: int, told: str) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "command.py"), how], capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "a thread a farewell", told)


@pytest.mark.parametrize(("how", "code"), [("well", 0), ("mistake", 2)])
def test_a_command_without_a_place_to_write_ends_with_its_code(tmp_path: Path, how: str, code: int) -> None:
    """As a service may start it."""
    (tmp_path / "command.py").write_text(COMMAND)
    shell = f"exec {sys.executable} {tmp_path / 'command.py'} {how} >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], timeout=15).returncode == code


WAITING = """
import threading, time
from aae_ray.cli import main

def command() -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()
    print("done", flush=True)

main(command, "command")
"""


def test_ctrl_c_while_a_thread_ends_its_work_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(WAITING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "command.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr and process.stdout.readline() == "done\n"
    time.sleep(0.5)  # the command is over, and its process waits
    process.send_signal(signal.SIGINT)
    assert (process.wait(15), process.stderr.read()) == (130, "")


def test_a_closed_pipe_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text("from aae_ray.cli import main\nmain(lambda: print('lost'), 'command')\n")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "command.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.wait(15), process.stderr.read()) == (141, "")
