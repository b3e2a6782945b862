"""python -m aae_ray.promote: which version of a registered model is its champion, by evidence.

python -m aae_ray.promote NAME                            hold the newest version against the champion, by new seeds:
                                                          those it has, or else its study's best trial is trained again
python -m aae_ray.promote NAME --confirm 2 --seeds 5      train the two best trials again, on 5 new seeds each
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
        int | None,
        typer.Option(
            metavar="K", min=1, help="train the K best trials of its study again, on new seeds; 1 where it has none"
        ),
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
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.report import StudyReport
    from aae_ray.reporting.text import bullet
    from aae_ray.study import promotion
    from aae_ray.tracking import address as server

    console, uri = console_for(), server.tracking_uri(tracking_uri)
    if rollback:
        console.print(bullet("champion", promotion.roll_back(name, uri)), soft_wrap=True)
        return
    told = promotion.promote(
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
