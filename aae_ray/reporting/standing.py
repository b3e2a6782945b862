"""What the trials of a study are compared by when one asks what mattered: places, of all of them or by an objective."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.objectives import Ranks
from aae_ray.search.outcomes import Reason, State

STANDING = "how far they came"  # of all trials
UNDECIDED = (State.RUNNING, State.WAITING, State.FAILED)


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
    """All trials in one order: the complete ones by their non-dominated front, before those that stayed at a rung, the
    last rung first and there by the front, before those that a health check ended or that diverged.

    So a stopped trial counts with what is known of it. Who only looks at the complete ones sees what the pruner has let
    through, among which a bad value looks harmless: it came with good values of all else. Trials that are under way,
    that ended with their study between two rungs, or failed for a reason outside of them say nothing.
    """
    complete = Ranks()
    for trial in ledger.complete():
        complete.insert(trial.number, ledger.values(trial))
    judged = {number: level for level in sorted(ledger.rungs) for number in ledger.rungs[level].ranks.values}
    trials, keys = [], []
    for trial in ledger.trials:
        if trial.state is State.COMPLETE:
            key = (0, 0, complete.rank(complete.values[trial.number]))
        elif trial.reason is Reason.DIVERGED or (trial.last_report is not None and trial.last_report.stop_reason):
            key = (2, 0, 0)
        elif trial.state not in UNDECIDED and judged.get(trial.number) == trial.epoch:
            ranks = ledger.rungs[trial.epoch].ranks
            key = (1, -trial.epoch, ranks.rank(ranks.values[trial.number]))
        else:
            continue
        trials.append(trial)
        keys.append(key)
    return Outcome.of(STANDING, trials, keys)
