"""Everything that must be there before `ray up`, found at once."""

import os
import platform
import re
import shutil
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from aae_ray.errors import UserError
from aae_ray.execution.cluster_schema import schema_problem
from aae_ray.provisioning.cluster_file import ClusterFile
from aae_ray.provisioning.findings import Finding, advice, missing, ok
from aae_ray.provisioning.lock import NAME as LOCK_NAME
from aae_ray.provisioning.lock import Lock, canonical, read_lock
from aae_ray.provisioning.on_prem import check_hosts
from aae_ray.provisioning.rules import broken_rules, commands

TOKEN = "~/.ray/auth_token"
TOOLS = ("ssh", "rsync")
PYTHON = re.compile(r"uv venv --python (\S+)")
LONG_ENOUGH = 32  # letters of a token; Ray's have 64


def check(file: ClusterFile, folder: str | None) -> list[Finding]:
    """Every finding about a cluster file, about this machine, and about the provider; nothing is changed.

    `folder` is that of studies, such as s3://BUCKET/studies. Raises UserError when the folder is none that machines of
    the provider can share.
    """
    bucket = bucket_of(folder) if folder is not None else None
    if problem := schema_problem(file.content):
        unread = advice("file", "nothing else in it was looked at, as Ray does not take it")
        return [missing("file", f"{file.path}: {problem}"), unread, *_programs(), _token()]
    findings = [*check_file(file), *check_here(file), *check_versions(file)]
    if file.provider["type"] == "aws":
        return [*findings, *_check_account(file, bucket)]
    return [*findings, *check_hosts(file)]


def bucket_of(folder: str) -> str:
    """The bucket of an address such as s3://BUCKET/studies. Raises UserError for any other folder."""
    match = re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/.*)?", folder)
    if match is None:
        raise UserError(f"--folder {folder}: expected an address such as s3://BUCKET/studies")
    return match[1]


def check_file(file: ClusterFile) -> list[Finding]:
    """What our rules say of a file that Ray takes."""
    broken = [missing("file", f"{file.path}: {text}") for _, text in broken_rules(file)]
    return broken or [ok("file", f"{file.path} keeps Ray's schema and the rules of this project")]


def check_here(file: ClusterFile) -> list[Finding]:
    """What this machine needs: programs, the token, and to stand in the folder that the file sends."""
    findings = [*_programs(), _token()]
    for place, source in (file.content.get("file_mounts") or {}).items():
        path = Path(str(source)).expanduser()
        if source == "." and not (path / "pyproject.toml").is_file():
            text = f"file_mounts sends the current folder to {place}; {path.absolute()} is not the root of this project"
            findings.append(missing("folder", f"{text}; go there first"))
        elif not path.exists() and not str(source).endswith("auth_token"):
            findings.append(missing("folder", f"file_mounts sends {source}, which is not there"))
    return findings


def _programs() -> list[Finding]:
    return [missing("programs", f"{tool} is not on the PATH; install it") for tool in TOOLS if not shutil.which(tool)]


def _token() -> Finding:
    path = Path(TOKEN).expanduser()
    try:
        text, mode = path.read_text().strip(), path.stat().st_mode
    except (OSError, UnicodeDecodeError):
        text, mode = "", 0
    if len(text) < LONG_ENOUGH:
        made = "`python -m aae_ray.cluster prepare` or `RAY_AUTH_MODE=token ray get-auth-token --generate` makes one"
        return missing("token", f"{TOKEN} holds no token of at least {LONG_ENOUGH} letters; {made}")
    if mode & 0o077:
        return missing("token", f"others on this machine can read {TOKEN}: chmod 600 {TOKEN}")
    if os.environ.get("RAY_AUTH_TOKEN") not in (None, text):
        return missing("token", f"RAY_AUTH_TOKEN is another token than {TOKEN}, which the nodes get; unset it")
    return ok("token", TOKEN)


def check_versions(file: ClusterFile) -> list[Finding]:
    """The versions that the nodes will have against those here and those that the project needs."""
    lock = read_lock(file.path.parent / LOCK_NAME)
    findings = [missing("versions", text) for text in lock_problems(lock, file.path.parent.parent / "pyproject.toml")]
    there, here = lock.versions.get("ray"), version("ray")
    if there != here:
        text = f"Ray is {here} here and {there} on the nodes ({lock.path}); install one of them in both places"
        findings.append(missing("versions", text))
    if python := PYTHON.search(commands(file)):
        mine = platform.python_version()
        if mine.split(".")[:2] != python[1].split(".")[:2]:
            text = f"Python is {mine} here and {python[1]} on the nodes; `ray up` works so, a study is to run there"
            findings.append(advice("versions", text))
    return findings or [ok("versions", f"Ray {here} here and there, {len(lock.versions)} packages in {lock.path}")]


def lock_problems(lock: Lock, project: Path) -> list[str]:
    """Where a lock file does not hold what a pyproject.toml, else the installed project, asks for."""
    if project.is_file():
        told = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        wanted = [*told["dependencies"], *told["optional-dependencies"]["cluster"]]
    else:
        try:
            wanted = [text for text in requires("aae-ray") or [] if "extra ==" not in text]
        except PackageNotFoundError:
            wanted = []
    problems = []
    for requirement in map(Requirement, wanted):
        pinned = lock.versions.get(canonical(requirement.name))
        if pinned is None:
            problems.append(f"{lock.path} has no {requirement.name}; write it anew with `sh cluster/lock.sh`")
        elif not requirement.specifier.contains(pinned):
            text = f"{lock.path} has {requirement.name} {pinned}, the project needs {requirement.specifier}"
            problems.append(f"{text}; write it anew with `sh cluster/lock.sh`")
    return problems


def require_boto3() -> None:
    """Raises UserError where the library with which AWS is asked is not installed."""
    if find_spec("boto3") is None:
        raise UserError("AWS is asked with boto3, which is not installed: pip install 'aae-ray[cluster]'")


def _check_account(file: ClusterFile, bucket: str | None) -> list[Finding]:
    require_boto3()
    from aae_ray.provisioning.aws import check_account

    return check_account(file, bucket)
