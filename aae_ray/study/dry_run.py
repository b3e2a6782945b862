"""What a study would be, said without starting it: `--dry-run`."""

from collections.abc import Sequence

from aae_ray.datasets.contents import contents_of
from aae_ray.reporting.cards import resolved
from aae_ray.search.space import Plan
from aae_ray.study import checks
from aae_ray.study.warm_start import how_many_fit, prior_trials


def described(plan: Plan, warm_start: Sequence[str] = ()) -> str:
    """What a study would be, after all checks of its start, those of the data included: remarks as comments, and its
    file with every setting. Raises UserError as the start would."""
    plan, _, dataset = checks.checked(plan)
    notes = [f"{about}: {line}" for about, line in contents_of(dataset).rows().items()]
    notes += checks.start_advice(plan, dataset)
    prior = prior_trials(warm_start, plan, dataset, notes.append)
    if warm_start:
        notes.append(how_many_fit(prior, plan))
    trials = checks.trials_at_a_time(plan.settings)
    disk, memory = checks.disk_needed(plan, dataset) / 1e6, checks.memory_needed(plan, dataset) / 1e6
    notes += [
        f"checkpoints will take about {disk:,.1f} MB at a time (study.keep)",
        f"training will take at least {memory:,.1f} MB of memory a trial, {trials * memory:,.1f} MB "
        f"for {trials} at a time (study.concurrent_trials)",
    ]
    if advice := checks.memory_advice(plan, dataset, trials):
        notes.append(advice)
    return "\n".join([*(f"# {note}" for note in notes), resolved(plan)])
