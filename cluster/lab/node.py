"""One machine of the lab: a network namespace with an address, users, homes and processes of its own, and real sshd.

`python -m cluster.lab.node FOLDER` is its first process; Machine starts and ends it.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.lab.services import Service, listens, start
from cluster.lab.system import (
    HELD,
    REPOSITORY,
    Covering,
    LabError,
    empty_folder,
    paths_in_use,
    run,
    search_path,
)

BOOT_SECONDS = 120.0
USER, USER_ID = "ubuntu", 2000
SHARED = "/run/shared"  # a folder that all nodes see, as NFS would give them
MEMORY = "2g"  # of /tmp and of /dev/shm of a node, at most
OPEN_FILES = (1024, 1_048_576)  # soft and hard limit, as on Ubuntu
SSHD = """\
Port 22
HostKey {key}
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin no
AuthorizedKeysFile .ssh/authorized_keys
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class Spec:
    """What a machine is. `names` are lines of /etc/hosts by address."""

    name: str
    address: str  # with its prefix, e.g. 172.31.4.5/16
    bridge: str
    gateway: str
    authorized_key: str
    bashrc: str
    names: dict[str, str] = field(default_factory=dict)
    shared: str | None = None

    @property
    def ip(self) -> str:
        return self.address.partition("/")[0]

    @property
    def link(self) -> str:
        """Its end of the cable at the bridge; Linux allows 15 characters."""
        return f"v{self.name}"[:15]


class Machine:
    """A machine that is up, or was."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.spec, self.folder = spec, folder
        self.service: Service | None = None

    def boot(self) -> None:
        """Raises LabError when its sshd does not answer in time."""
        spec = self.spec
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "spec.json").write_text(json.dumps(asdict(spec)))
        if not (self.folder / "host_key").exists():
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / "host_key")
        with suppress(LabError):
            run("ip", "link", "del", spec.link)  # of a machine of that name that was before: it goes away late
        # One MAC for an address: a machine that comes back under its address would be lost to its peers for a minute.
        mac = "02:00:" + ":".join(f"{int(part):02x}" for part in spec.ip.split("."))
        run("ip", "netns", "add", spec.name)
        run("ip", "link", "add", spec.link, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", spec.name)
        run("ip", "link", "set", spec.link, "master", spec.bridge, "up")
        for command in (
            ("addr", "add", spec.address, "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", spec.gateway),
        ):
            run("ip", "-n", spec.name, *command)
        program = [
            "ip", "netns", "exec", spec.name,
            "unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--mount-proc",
            sys.executable, "-m", "cluster.lab.node", str(self.folder),
        ]  # fmt: skip
        self.service = start(spec.name, program, self.folder / "sshd.log", dict(os.environ), REPOSITORY)
        self.service.wait(lambda: listens(spec.ip, 22), BOOT_SECONDS)

    @property
    def ended(self) -> bool:
        """Whether its first process has ended: it was shut down, or its plug was pulled."""
        return self.service is not None and self.service.process.poll() is not None

    def pull_the_plug(self) -> None:
        """End it at once, with all its processes."""
        if self.service is not None:
            self.service.kill()
        for command in (("link", "del", self.spec.link), ("netns", "del", self.spec.name)):
            with suppress(LabError):
                run("ip", *command)


# ------------------------------------------------------------------------------------------------ in the machine


def first_process(folder: Path) -> None:
    """Make this process's namespaces a machine, and become its sshd."""
    spec = Spec(**json.loads((folder / "spec.json").read_text()))
    run("mount", "--make-rprivate", "/")
    socket.sethostname(spec.name)
    with Covering(paths_in_use()):
        home = HELD / "home" / USER
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        (home / ".ssh/authorized_keys").write_text(spec.authorized_key)
        (home / ".bashrc").write_text(spec.bashrc)
        for path in (home, *home.rglob("*")):
            os.chown(path, USER_ID, USER_ID)
        (HELD / "shared").mkdir()
        if spec.shared is not None:
            run("mount", "--bind", spec.shared, HELD / "shared")
        shutil.copy(folder / "host_key", HELD / "host_key")
        (HELD / "host_key").chmod(0o600)
        for name, text in _etc(spec).items():
            (HELD / name).write_text(text)
            (HELD / name).chmod(0o600 if name == "shadow" else 0o644)
            if Path("/etc", name).exists():
                run("mount", "--bind", HELD / name, f"/etc/{name}")
        empty_folder("/root", "755")  # an interpreter may be below it
        run("mount", "--bind", HELD / "home", "/home")
        empty_folder("/tmp", "1777", MEMORY)
        empty_folder("/dev/shm", "1777", MEMORY)
        empty_folder("/run", "755")
        Path("/run/sshd").mkdir()
        Path(SHARED).mkdir()
        run("mount", "--bind", HELD / "shared", SHARED)
    Path("/run/sshd_config").write_text(SSHD.format(key=HELD / "host_key"))
    sshd = shutil.which("sshd", path=search_path())
    assert sshd is not None, "the lab looked for it"
    with suppress(ValueError):  # a container may not raise it; the ulimit of gpu.yaml then says so, and Ray starts
        resource.setrlimit(resource.RLIMIT_NOFILE, OPEN_FILES)
    os.chdir("/")
    os.execve(sshd, [sshd, "-D", "-e", "-f", "/run/sshd_config"], {"PATH": search_path(), "LANG": "C.UTF-8"})


def _etc(spec: Spec) -> dict[str, str]:
    """Users and names of the machine. No name server: the lab has none, and asking would take its time."""

    def others(path: str) -> str:
        lines = Path(path).read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(f"{USER}:"))

    hosts = {"127.0.0.1": "localhost", spec.ip: spec.name} | spec.names
    return {
        "passwd": others("/etc/passwd") + f"{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash\n",
        "group": others("/etc/group") + f"{USER}:x:{USER_ID}:\n",
        "shadow": others("/etc/shadow") + f"{USER}:*:19000:0:99999:7:::\n",
        "hosts": "".join(f"{address} {name}\n" for address, name in hosts.items()),
        "hostname": f"{spec.name}\n",
        "resolv.conf": "nameserver 127.0.0.1\n",
    }


def user_id_is_taken() -> str | None:
    """Why the nodes' user cannot be: sshd looks for the home of the first user with an id. None if nothing is wrong."""
    import pwd

    try:
        name = pwd.getpwuid(USER_ID).pw_name
    except KeyError:
        return None
    return None if name == USER else f"user id {USER_ID}, which the lab gives to {USER}, is {name}'s"


if __name__ == "__main__":
    try:
        first_process(Path(sys.argv[1]))
    except (LabError, OSError, subprocess.SubprocessError) as error:
        print(f"{time.strftime('%T')} {error}", file=sys.stderr)
        raise SystemExit(1) from None
