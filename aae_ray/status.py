"""python -m aae_ray.status: where a study stands, from its folder alone.

python -m aae_ray.status                     all studies under runs/, a line each
python -m aae_ray.status digits              one study, by its name, its id or its folder
python -m aae_ray.status digits --json       the same for a program
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
) -> None:
    """Say where a study stands: trials, best values, pace and failures. Reads its folder; the study need not run."""
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
