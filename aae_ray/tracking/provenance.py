"""Where a run comes from: commit, versions, command line."""

import platform
import secrets
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DEVICE = "machine.device"  # the tag of a trial's run: cpu, or cuda, on which two trainings differ in their last digits
PACKAGES = ("aae-ray", "torch", "ray", "optuna", "mlflow", "numpy", "scikit-learn", "pyarrow")


def provenance() -> Mapping[str, str]:
    """Tags for every run of a study: git commit and dirty flag of the code, versions, command line."""
    tags = {f"version.{name}": _version(name) for name in PACKAGES}
    tags |= {
        "version.python": platform.python_version(),
        "machine.processor": _processor(),
        "mlflow.source.name": _command_line(),
        "mlflow.source.type": "LOCAL",
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["mlflow.source.git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def unique_timestamp() -> str:
    """Now, to the second, for a name that no other run has: two of one second differ in four random characters."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _command_line() -> str:
    program = Path(sys.argv[0])
    ours = program.parent == Path(__file__).parents[1]
    return " ".join(["python", *(["-m", f"aae_ray.{program.stem}"] if ours else [str(program)]), *sys.argv[1:]])


def _git(*arguments: str) -> str:
    """Git's answer about the code's own checkout; nothing when the package was installed from elsewhere."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    """The kind of processor, on which the last digits of a training hang: its model where the kernel tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return " ".join((platform.machine(), next(models, platform.processor()))).strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
