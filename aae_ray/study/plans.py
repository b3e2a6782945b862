"""The plan of a new study, or of one training, from a file and changes to it: for commands and programs alike."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aae_ray.datasets.formats import find_stored
from aae_ray.datasets.sources import name_for
from aae_ray.errors import UserError
from aae_ray.search.journal import JOURNAL
from aae_ray.search.space import Changes, Plan, read_plan, study_file

# Of a training, which is a study of one trial.
# One trial with one seed, which nothing ends.
SINGLE: dict[str, Any] = {
    "study.budget.trials": 1,
    "study.pruner.type": "none",
    "study.seeds_per_trial": 1,
    "study.seeds_from_rung": None,
}
DEFAULT = "digits"  # the study that ships and needs nothing else


def study_plan(file: str | None, changes: Changes = ()) -> Plan:
    """A study of a file, or of a name that ships. Raises UserError with every mistake in file and changes, and for
    several trials of which each would be the same."""
    file = file or DEFAULT
    _check_no_data(file)
    plan = read_plan(file, changes)
    if not plan.space and plan.settings.study.budget.trials > 1:
        raise UserError(
            f"{file} has no `space:` block, so its {plan.settings.study.budget.trials} trials would all be the "
            f"same; python -m aae_ray.train {file} trains it once"
        )
    return plan


def _check_no_data(file: str | None) -> None:
    """Raises UserError where data, or the folder of a study, are named in place of a study's file."""
    if file is None or not (os.path.isdir(file) or _is_data(file)):
        return
    with suppress(UserError):
        if study_file(file) != file:  # a folder of the same name does not hide a study that ships
            return
    if os.path.isfile(os.path.join(file, JOURNAL)):
        raise UserError(f"{file} is the folder of a study: --resume {file} goes on with it, --extend {file} adds to it")
    raise UserError(
        f"{file} holds data, and a study's file is YAML; for a study of them give data.name={name_for(file)} "
        f"data.path={file} in place of it"
    )


def _is_data(file: str) -> bool:
    """Whether a file is in a format of data. YAML is in none."""
    try:
        find_stored(Path(file), "data.path")
    except (UserError, OSError):
        return False
    return True


def training_plan(file: str | None, changes: Changes = ()) -> Plan:
    """One configuration: the file's, or the defaults. Raises UserError with every mistake, and where keys are searched.

    What the file says of the number of trials and the pruner does not count.
    """
    _check_no_data(file)
    own = [f"{key}={'null' if value is None else value}" for key, value in SINGLE.items()]
    plan = read_plan(file, {**SINGLE, **changes} if isinstance(changes, Mapping) else [*own, *changes])
    if plan.space:
        keys = ", ".join(plan.space)
        raise UserError(
            f"{file} searches {keys}; train takes one configuration: give each a value, "
            f"or use python -m aae_ray.tune {file}"
        )
    return Plan(plan.settings, {}, places=plan.places)
