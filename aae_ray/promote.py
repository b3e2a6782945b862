"""python -m aae_ray.promote: which version of a registered model is its champion, by evidence.

python -m aae_ray.promote NAME                            hold the newest version against the champion
python -m aae_ray.promote NAME --confirm 1 --seeds 5      train its study's best trial again on 5 new seeds first
python -m aae_ray.promote NAME --rollback                 back to the champion before this one
"""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import TrackingUri, Verbose, leave_study, main
from aae_ray.errors import STOPPED, UserError


def promote(
    name: Annotated[str, typer.Argument(help="registered model, e.g. aae-digits-decoder")],
    version: Annotated[str | None, typer.Option(help="alias or number of the version; the newest if none")] = None,
    confirm: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="train the K best trials of its study again, on new seeds")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="new seeds of each; study.confirm.seeds")
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="make the champion before this one the champion")
    ] = False,
    folder: Annotated[Path, typer.Option(help="where studies keep their state; study.folder")] = Path("runs"),
    tracking_uri: TrackingUri = None,
    verbose: Verbose = False,
) -> None:
    """Move the champion of a registered model where new seeds show a version to be better, or tell why not."""
    if rollback and (version, confirm, seeds) != (None, None, None):
        raise UserError("--rollback takes neither --version nor --confirm nor --seeds")
    if seeds is not None and confirm is None:
        raise UserError("--seeds goes with --confirm, which says how many trials get them")
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.report import StudyReport
    from aae_ray.reporting.text import bullet
    from aae_ray.search.promotion import Verdict
    from aae_ray.study import promotion
    from aae_ray.tracking import address as server

    console, uri = console_for(), server.tracking_uri(tracking_uri)
    if rollback:
        console.print(bullet("champion", promotion.roll_back(name, uri)), soft_wrap=True)
        return
    told: StudyReport | Verdict
    if confirm is None:
        told = promotion.hold(name, version, uri)
    else:
        told = promotion.confirm(
            name, version, uri, console, finalists=confirm, seeds=seeds, root=folder.expanduser(), verbose=verbose
        )
    if isinstance(told, StudyReport):  # which has said it all
        leave_study(told.interrupted, told.as_planned and told.promoted)
        return
    console.print(bullet("champion" if told.champion else "refused", told.reason), soft_wrap=True)
    if not told.champion:
        raise typer.Exit(STOPPED)


if __name__ == "__main__":
    main(promote, "promote")
