"""Mounts, links and programs of the machine that the lab runs on."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HELD = Path("/mnt")  # covered in the lab, where paths that must stay visible are held
SECONDS_FOR_A_COMMAND = 60
PROGRAMS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "rsync": "rsync",
}


class LabError(RuntimeError):
    """The lab, or a part of it, could not be brought up; the text says which and why."""


def run(*command: str | Path) -> str:
    """What a program prints. Raises LabError when it fails, with what it says."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=SECONDS_FOR_A_COMMAND,
    )
    if done.returncode != 0:
        raise LabError(f"{' '.join(map(str, command))}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def missing() -> str | None:
    """Why there can be no lab on this machine; None if there can."""
    if sys.platform != "linux":
        return f"needs Linux; this is {sys.platform}"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=search_path()) is None:
            return f"needs {program}: the package {package}"
    tried = subprocess.run(
        [
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "ip",
            "link",
            "add",
            "lab0",
            "type",
            "bridge",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS_FOR_A_COMMAND,
    )
    if tried.returncode != 0:
        return f"needs CAP_SYS_ADMIN and CAP_NET_ADMIN: {tried.stderr.strip()}"
    return None


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


def paths_in_use(*more: Path) -> list[Path]:
    """Folders that Python and this project are read from, below those that the lab covers."""
    imported = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    wanted = {path.resolve() for path in (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix), *imported, *more)}
    covered = [Path(folder) for folder in ("/tmp", "/root", "/home", "/run")]
    hidden = [path for path in wanted if any(path.is_relative_to(folder) for folder in covered)]
    # What lies below another one comes with it.
    return sorted(path for path in hidden if not any(path != other and path.is_relative_to(other) for other in hidden))


class Covering:
    """Covers folders with empty ones of a new mount namespace, but for the paths that are held.

    with Covering(paths):
        ...                     # cover
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)

    def __enter__(self) -> None:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", HELD)
        for number, path in enumerate(self.paths):
            (HELD / str(number)).mkdir()
            run("mount", "--rbind", path, HELD / str(number))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            for number, path in enumerate(self.paths):
                path.mkdir(parents=True, exist_ok=True)
                run("mount", "--rbind", HELD / str(number), path)


def empty_folder(path: str, mode: str, size: str | None = None) -> None:
    """Cover a folder with an empty one in memory."""
    options = f"mode={mode}" + (f",size={size}" if size else "")
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
