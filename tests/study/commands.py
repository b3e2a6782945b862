"""The commands as a user types them, each in a process of its own."""

import subprocess
import sys
from pathlib import Path


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"aae_ray.{name}", *arguments]


def run(
    folder: Path, environment: dict[str, str], name: str, *arguments: str, code: int = 0, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    clean, typed = {key: value for key, value in environment.items() if value}, command(name, *arguments)
    done = subprocess.run(typed, cwd=folder, env=clean, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
