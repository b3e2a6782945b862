"""python -m aae_ray.tune: run a study, go on with one, or add to one.

python -m aae_ray.tune [FILE] [KEY=VALUE]...                     a new study
python -m aae_ray.tune --resume NAME                             go on with one that was stopped
python -m aae_ray.tune --extend NAME study.budget.trials=50      add to one that has ended
"""

from pathlib import Path
from typing import Annotated

import typer

from aae_ray.cli import OVERRIDES_HELP, DryRun, Verbose, file_and_overrides, leave_study, main
from aae_ray.errors import UserError


def tune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE] [KEY=VALUE]...",
            help=f"study to run (search_spaces/digits.yaml if none), then {OVERRIDES_HELP}",
        ),
    ] = None,
    dry_run: DryRun = False,
    resume: Annotated[
        str | None, typer.Option(metavar="NAME", help="go on with a study that was stopped: its name or folder")
    ] = None,
    extend: Annotated[
        str | None, typer.Option(metavar="NAME", help="add trials to a study, with changed settings for new ones")
    ] = None,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="start the sampler from earlier studies: name, folder or experiment"),
    ] = None,
    close: Annotated[
        str | None, typer.Option(metavar="NAME", help="close a study whose process was killed, without going on")
    ] = None,
    sync: Annotated[
        str | None, typer.Option(metavar="NAME", help="send to MLflow what it has not taken of a study")
    ] = None,
    confirm: Annotated[
        int | None, typer.Option(metavar="K", min=1, help="at the end, train the K best trials again on new seeds")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="new seeds of each; study.confirm.seeds")
    ] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="another MLflow server or database, with --resume, --extend, --close or --sync")
    ] = None,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="go on with a study of other versions of Python and PyTorch")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Search for the best adversarial autoencoder of a data set, and register its decoder."""
    from aae_ray.reporting.console import console_for

    console = console_for()
    modes = {"--resume": resume, "--extend": extend, "--close": close, "--sync": sync}
    given = [option for option, name in modes.items() if name is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; give one of them")
    if given and (warm_start or dry_run):
        raise UserError(f"{given[0]} takes neither --warm-start nor --dry-run")
    if tracking_uri is not None and not given:
        raise UserError(
            "--tracking-uri goes with --resume, --extend, --close or --sync; a new study takes tracking.uri="
        )
    path, overrides = file_and_overrides(arguments or [])
    if seeds is not None and confirm is None:
        raise UserError("--seeds goes with --confirm, which says how many trials get them")
    for key, value in {"finalists": confirm, "seeds": seeds}.items():
        if value is not None and any(each.startswith(f"study.confirm.{key}=") for each in overrides):
            option = "--confirm" if key == "finalists" else "--seeds"
            raise UserError(f"{option} {value} and study.confirm.{key} say the same thing twice; leave one of them out")
        overrides += [] if value is None else [f"study.confirm.{key}={value}"]
    if given and path is not None:
        raise UserError(f"{given[0]} takes the study's own settings, and key=value changes; it does not take {path}")
    from aae_ray.study import study

    root = _root(overrides)
    if sync is not None:
        leave_study(False, study.sync(sync, console, uri=tracking_uri, root=root))
        return
    if close is not None:
        study.close_study(close, console, uri=tracking_uri, root=root)
        return
    name = resume or extend
    if name is not None:
        own = [change for change in overrides if not change.startswith("study.folder=")]
        report = study.resume_study(
            name,
            own,
            console,
            extend=extend is not None,
            any_version=any_version,
            uri=tracking_uri,
            root=root,
            verbose=verbose,
        )
    else:
        from aae_ray.study.plans import study_plan

        plan = study_plan(path, overrides)
        if dry_run:
            from aae_ray.study.dry_run import described

            console.print(described(plan, warm_start or ()), highlight=False, soft_wrap=True, markup=False)
            return
        report = study.start_study(plan, console, warm_start=warm_start or (), verbose=verbose)
    leave_study(report.interrupted, report.as_planned and report.best is not None)


def _root(overrides: list[str]) -> Path:
    """Where studies are looked for by name."""
    from aae_ray.search.store import local_root

    given = [change.partition("=")[2] for change in overrides if change.startswith("study.folder=")]
    folder = given[-1] if given else "runs"
    return local_root(folder)


if __name__ == "__main__":
    main(tune, "tune")
