"""What the trials of a study are compared by when one asks what mattered: places, of all of them or by an objective."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aae_ray.search.constraints import constraints_of
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import Reason
from aae_ray.search.ranking import Standing, ranked, result_of
from aae_ray.search.trial_record import TrialRecord

STANDING = "how far they came"  # of all trials
OF_THE_STUDY = (Reason.BUDGET, Reason.USER, Reason.INTERRUPTED)  # who ended with it was not judged


@dataclass(frozen=True)
class Outcome:
    """The trials that can be compared in one respect, each with its place among them, from 0 (best) to 1 (last).

    Places, as objectives have tails (a diverging trial's) that would outweigh all else, and units of their own.
    """

    name: str  # STANDING, or an objective
    trials: tuple[TrialRecord, ...]
    places: np.ndarray

    @classmethod
    def of(cls, name: str, trials: Sequence[TrialRecord], keys: Sequence[Any]) -> "Outcome":
        """By keys that sort the trials, the best first; equal ones share the middle of their places."""
        counts = Counter(keys)
        ends = np.cumsum([counts[key] for key in sorted(counts)])
        middle = {key: end - counts[key] / 2 for key, end in zip(sorted(counts), ends, strict=True)}
        return cls(name, tuple(trials), np.array([middle[key] / len(keys) for key in keys]))


def outcomes(ledger: Ledger) -> list[Outcome]:
    """How far each trial came, and with several objectives the complete trials by each of them."""
    found = [_standing(ledger)]
    if len(ledger.objectives) > 1:
        complete = ledger.complete()
        for index, name in enumerate(ledger.objectives):
            found.append(Outcome.of(name, complete, [ledger.values(trial)[index] for trial in complete]))
    return found


def _standing(ledger: Ledger) -> Outcome:
    """All trials in the order that samplers learn from (`search.ranking`), the bad ones all last.

    So a stopped trial counts with what is known of it. Who only looks at the complete ones sees what the pruner has let
    through, among which a bad value looks harmless: it came with good values of all else. Trials that are under way,
    that ended with their study, or failed for a reason outside of them say nothing.
    """
    constraints = constraints_of(ledger.current_plan.settings.study)
    trials = {trial.number: trial for trial in ledger.firsts() if trial.reason not in OF_THE_STUDY}
    found = [result_of(trial, ledger.judged(trial), ledger.objectives, constraints) for trial in trials.values()]
    order = ranked([one for one in found if one is not None], careful=len(trials))
    bad = len(order)
    places = [bad if one.standing is Standing.BAD else place for place, one in enumerate(order)]
    return Outcome.of(STANDING, [trials[one.number] for one in order], places)
