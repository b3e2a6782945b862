"""python -m aae_ray.reproduce: a registered version trained again, from the registry alone.

python -m aae_ray.reproduce aae-digits-decoder              the champion
python -m aae_ray.reproduce aae-digits-decoder@challenger   an alias
python -m aae_ray.reproduce aae-digits-decoder/3            a version
python -m aae_ray.reproduce aae-faces-decoder data.path=FOLDER    its data lie elsewhere by now
"""

from typing import Annotated

import typer

from aae_ray.cli import TrackingUri, Verbose, leave_study, main
from aae_ray.errors import STOPPED


def reproduce(
    model: Annotated[str, typer.Argument(metavar="NAME[@ALIAS|/VERSION]", help="registered model")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value ...]", help="where the data lie now, as data.path=FOLDER")
    ] = None,
    tracking_uri: TrackingUri = None,
    verbose: Verbose = False,
) -> None:
    """Train a registered version again and compare the metrics: 0 where they are the same, 1 where they are not."""
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.text import bullet
    from aae_ray.study import reproduction
    from aae_ray.tracking import address as server

    console, uri = console_for(), server.tracking_uri(tracking_uri)
    recorded = reproduction.read(model, uri, overrides or ())
    before = reproduction.differences(recorded)
    if before:
        console.print(reproduction.difference_table(before), "")
    found = reproduction.reproduce(recorded, uri, console, verbose=verbose)
    leave_study(found.report.interrupted, found.report.as_planned and found.report.best is not None)
    console.print("", reproduction.metric_table(found), "")
    console.print(bullet("verdict", found.verdict), soft_wrap=True)
    if not found.holds:
        raise typer.Exit(STOPPED)


if __name__ == "__main__":
    main(reproduce, "reproduce")
