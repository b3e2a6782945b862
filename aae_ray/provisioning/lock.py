"""The lock file of a cluster's nodes: exact versions, each with the hashes of its files."""

import re
from dataclasses import dataclass
from pathlib import Path

from aae_ray.errors import UserError

NAME = "requirements.txt"  # beside the cluster file
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)(.*)$")


@dataclass(frozen=True)
class Lock:
    """Versions by package, in lower case with dashes."""

    path: Path
    versions: dict[str, str]


def read_lock(path: Path) -> Lock:
    """Read a lock file. Raises UserError for a line that is not an exact version with a hash."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; write it with `sh cluster/lock.sh`") from None
    versions = {}
    for line in text.replace("\\\n", " ").splitlines():
        line = line.partition(" #")[0].strip()
        if not line or line.startswith("#"):
            continue
        pin = PIN.match(line)
        if pin is None or "--hash=sha256:" not in pin[3]:
            shown = line.partition(" --hash")[0]
            raise UserError(
                f"{path}: {shown!r} is not a version with hashes, as NAME==VERSION --hash=sha256:...; write the file "
                "with `sh cluster/lock.sh`"
            )
        versions[canonical(pin[1])] = pin[2]
    return Lock(path, versions)


def canonical(name: str) -> str:
    """The name of a package as all spellings of it are written: Flask_WTF is flask-wtf."""
    return re.sub(r"[-_.]+", "-", name).lower()
