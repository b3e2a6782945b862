"""What the sampler may learn from earlier studies."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aae_ray.datasets.dataset import Dataset, split_digest
from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.journal import first_event
from aae_ray.search.outcomes import State
from aae_ray.search.points import fits
from aae_ray.search.space import Plan
from aae_ray.search.store import find_study, local_root, read_ledger, studies
from aae_ray.settings import RunSettings, dotted_fields, flatten


def prior_trials(
    names: Sequence[str], plan: Plan, dataset: Dataset, note: Callable[[str], None]
) -> list[events.PriorTrial]:
    """The complete configurations of earlier studies, by name, folder or experiment, with means over their seeds.
    Raises UserError for unlike studies.

    Of several studies of an experiment, those that cannot be read are left out with a note.
    """
    root = local_root(plan.settings.study.folder)
    trials = []
    for name in names:
        folders = _of_experiment(name, root) or [find_study(name, root)]
        for folder in folders:
            try:
                ledger = read_ledger(folder)
                objectives = tuple(ledger.objectives)
            except UserError as error:
                if len(folders) == 1:
                    raise UserError(f"--warm-start {name}: {folder.name}: {error}") from None
                note(f"--warm-start {name} leaves out {folder.name}: {error}")
                continue
            assert ledger.started is not None
            if ledger.started.data.digest != dataset.digest:
                raise UserError(f"--warm-start {name}: {folder.name} was on other data ({ledger.started.data.name})")
            if ledger.started.data.split not in ("", split_digest(dataset)):
                raise UserError(
                    f"--warm-start {name}: {folder.name} was on another split of {dataset.name}, and measured its "
                    "objectives on other images; give the same data.split_seed, data.validation_fraction, "
                    "data.test_fraction and source, or leave this study out"
                )
            if objectives != tuple(plan.settings.study.objectives):
                raise UserError(
                    f"--warm-start {name}: {folder.name} had other objectives, {', '.join(objectives)}; "
                    f"this study has {', '.join(plan.settings.study.objectives)}"
                )
            trials += [
                events.PriorTrial(
                    params=trial.params,
                    values=tuple(ledger.judged(trial)[objective] for objective in objectives),
                    source=f"{folder.name}/{trial.name}",
                    same_settings=_same_settings(trial.plan, plan),
                )
                for trial in ledger.firsts()
                if trial.state is State.COMPLETE
            ]
    return trials


def how_many_fit(prior: Sequence[events.PriorTrial], plan: Plan) -> str:
    """How many of these trials the sampler can learn from, as a sentence."""
    fitting = sum(fits(trial.params, plan.space, plan.conditions) for trial in prior)
    return f"{fitting} finished trials fit the space, of {len(prior)} read"


def _same_settings(earlier: Plan, plan: Plan) -> bool:
    """Whether trials of two plans differ in nothing but what both of them search."""
    if earlier.space.keys() != plan.space.keys():
        return False
    one, other = flatten(earlier.settings), flatten(plan.settings)
    shared = [key for key in dotted_fields(RunSettings) if key not in plan.space or key in plan.conditions]
    return all(one[key] == other[key] for key in shared)


def _of_experiment(name: str, root: Path) -> list[Path]:
    """The studies that were recorded under this experiment of MLflow, the one that began first first."""
    return [folder for folder in reversed(studies(root)) if _experiment(first_event(folder)) == name]


def _experiment(started: Mapping[str, Any]) -> str | None:
    """The experiment of a study by its first event, as far as its version has told it."""
    with suppress(KeyError, TypeError):
        return events.experiment_name(started["plan"]["settings"])
    return None
