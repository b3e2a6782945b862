"""python -m aae_ray.tune: run a study."""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.console import INTERRUPTED, OVERRIDES_HELP, file_and_overrides, main
from aae_ray.errors import UserError

DIGITS = Path(__file__).parent.parent / "search_spaces" / "digits.yaml"


def tune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE] [KEY=VALUE]...",
            help=f"study to run (search_spaces/digits.yaml if none), then {OVERRIDES_HELP}",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, data included, print the whole study, start nothing")
    ] = False,
    replay: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="send to MLflow what an outage kept back in a study's folder"),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="go on with an interrupted study (not in this release)"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="show the messages of Ray as well")] = False,
) -> None:
    """Search for the best adversarial autoencoder of a data set, and register its decoder."""
    from aae_ray.reporting.console import console_for

    console = console_for()
    if resume is not None:
        raise UserError(
            f"--resume {resume}: this release keeps all that a resumed study needs and cannot resume yet; "
            "what finished is in MLflow, and the same study can be run again"
        )
    if replay is not None:
        from aae_ray.tracking.sender import replay as send

        sent, left, refused = send(replay)
        console.print(f"{sent} records sent to MLflow, {left} left")
        for message in refused:
            console.print(f"MLflow refused a record: {message}", soft_wrap=True)
        if refused:
            raise typer.Exit(1)
        return
    path, overrides = file_and_overrides(arguments or [])
    from aae_ray.search.space import read_plan

    path = path or str(DIGITS)
    plan = read_plan(path, overrides)
    if not plan.space and plan.settings.study.budget.trials > 1:
        raise UserError(
            f"{path} searches nothing, and its {plan.settings.study.budget.trials} trials would all be the same; "
            f"python -m aae_ray.train {path} trains it once"
        )
    from aae_ray.study.study import checked, run_study

    if dry_run:
        from aae_ray.reporting.cards import resolved

        checked(plan)
        console.print(resolved(plan), highlight=False, soft_wrap=True)
        return
    outcome = run_study(plan, console, verbose=verbose)
    if outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    if outcome.best is None:
        raise typer.Exit(1)


if __name__ == "__main__":
    main(tune, "tune")
