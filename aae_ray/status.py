"""python -m aae_ray.status: where a study stands, from its folder alone.

python -m aae_ray.status                     all studies under runs/, a line each
python -m aae_ray.status digits              one study, by its name, its id or its folder
python -m aae_ray.status digits --json       the same for a program
python -m aae_ray.status --healthy           exit code 0 while a study runs here: a probe for Kubernetes
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aae_ray.cli import main
from aae_ray.errors import UserError

if TYPE_CHECKING:
    from aae_ray.reporting.status import StudyStatus


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="a study's name, id or folder; all studies if none is given")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    folder: Annotated[Path, typer.Option(help="where studies keep their state; study.folder")] = Path("runs"),
    healthy: Annotated[
        bool, typer.Option("--healthy", help="say by the exit code alone, 0 or 1, whether a study's process lives")
    ] = False,
) -> None:
    """Say where a study stands: trials, best values, pace and failures. Reads its folder; the study need not run."""
    if healthy:
        well, told = _health(name, folder.expanduser())
        print(told)
        raise typer.Exit(0 if well else 1)
    from aae_ray.reporting.console import console_for, is_ascii
    from aae_ray.reporting.status_view import left_to_do, listing, render
    from aae_ray.search.store import find_study, is_remote, studies

    console, root = console_for(), folder.expanduser()
    if name is not None:
        study = _read(find_study(name, root), name if is_remote(name) else None)
        if as_json:
            console.print(json.dumps(study.to_json(), indent=2), soft_wrap=True, markup=False)
        else:
            console.print(render(study, console.width, is_ascii(console)))
            for line in left_to_do(study):
                console.print(line, soft_wrap=True)
        return
    known: list[StudyStatus] = []
    unreadable: dict[str, str] = {}
    for path in studies(root):
        try:
            known.append(_read(path))
        except UserError as error:
            unreadable[path.name] = str(error)
    if as_json:
        content = {"studies": [study.to_json() for study in known], "unreadable": unreadable}
        console.print(json.dumps(content, indent=2), soft_wrap=True, markup=False)
    elif known or unreadable:
        console.print(listing(known, unreadable, is_ascii(console)))
    else:
        console.print(f"there is no study under {folder}; python -m aae_ray.tune starts one", markup=False)


def _health(name: str | None, root: Path) -> tuple[bool, str]:
    """Whether a study under a folder, or the one of this name, has a process with a fresh heartbeat; and a sentence.

    It imports next to nothing and reads one small file of each study, as it may be asked every few seconds.
    """
    import time

    from aae_ray.search.owner import OWNER, STALE_SECONDS, read_owner

    folders = [path.parent for path in root.glob(f"*/{OWNER}")]
    if name is not None:
        wanted = name.partition("?")[0].rstrip("/").rpartition("/")[2]
        folders = [path for path in folders if path.name == wanted or path.name.startswith(f"{wanted}-")]
    owners = {path.name: owner for path in folders if (owner := read_owner(path)) is not None}
    for study, owner in owners.items():
        age = max(time.time() - owner.heartbeat, 0.0)
        if owner.alive and age < STALE_SECONDS:
            return True, f"{study} runs: process {owner.pid} on {owner.host}, last heartbeat {age:.0f} s ago"
    told = "; ".join(f"{study}: process {owner.pid} on {owner.host} gives no sign" for study, owner in owners.items())
    return False, told or f"no study{f' {name}' if name else ''} runs under {root}"


def _read(folder: Path, uri: str | None = None) -> "StudyStatus":
    """The status of the study in a folder, which may be a copy. Raises UserError where its journal cannot be read."""
    from aae_ray.reporting.status import current
    from aae_ray.search.journal import read_events
    from aae_ray.search.owner import read_owner
    from aae_ray.search.store import Store, read_ledger, remote_owner
    from aae_ray.tracking.cursor import left_to_send

    owner = read_owner(folder) if uri is None else remote_owner(Store(folder, uri))
    # before the journal: a study that ends in between has said so there
    history = read_events(folder)
    ledger = read_ledger(folder, history)
    return current(folder, ledger, owner, uri=uri, left_to_send=left_to_send(folder, history))


if __name__ == "__main__":
    main(status, "status")
