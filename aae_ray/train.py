"""python -m aae_ray.train: train one configuration, as a study with an empty space and one trial."""

from typing import Annotated

import typer

from aae_ray.cli import OVERRIDES_HELP, DryRun, Verbose, file_and_overrides, leave_study, main


def train(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE] [KEY=VALUE]...",
            help=f"file with a `run:` block (the defaults if none), then {OVERRIDES_HELP}",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="data-parallel workers; study.workers_per_trial")] = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
) -> None:
    """Train one configuration, record it like a study's trial, and register its decoder."""
    path, overrides = file_and_overrides(arguments or [])
    from aae_ray.reporting.console import console_for
    from aae_ray.study.plans import training_plan
    from aae_ray.study.study import start_study

    if workers is not None:
        overrides.append(f"study.workers_per_trial={workers}")
    console, plan = console_for(), training_plan(path, overrides)
    if dry_run:
        from aae_ray.study.dry_run import described

        console.print(described(plan), highlight=False, soft_wrap=True, markup=False)
        return
    report = start_study(plan, console, verbose=verbose)
    leave_study(report.interrupted, report.as_planned and report.best is not None)


if __name__ == "__main__":
    main(train, "train")
