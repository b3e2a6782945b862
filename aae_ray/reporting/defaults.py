"""Which settings of the best trial could go back to their defaults at no loss, as far as a study's trials can tell.

For each setting, the trials near the best one's value are held against those near the default. The sampler tries good
values together, so that a plain difference of the two groups would be that of all their settings. What the other
settings explain is taken out of the trials' places, and of which group a trial is in; the effect is the slope of the
one residual over the other (Robinson 1988), each from out-of-bag predictions of a random forest (Chernozhukov et al.
2018). Where a value never came without certain others, the second residual is small, the error large, and nothing is
said.

"At no loss" is a claim that needs evidence, and not the lack of it: the upper bound of what is lost has to lie below
`TOLERANCE`. It is an average over the trials of the study, which need not hold at the best trial's other settings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from scipy.special import stdtrit

from aae_ray.reporting.standing import Outcome
from aae_ray.search.distributions import Space, spec_of
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, flatten

NEAR = 0.1  # of a range, in its logarithm where that is searched: numbers that count as alike
LEAST_TRIALS = 10  # on either side
MOST_TRIALS = 500  # of the latest ones
CONFIDENCE = 0.95  # of either bound
TOLERANCE = 0.1  # of all places, in the middle over the trials
TREES = 50


class Verdict(Enum):
    """What the trials say of a return to the default."""

    NO_LOSS = "no loss"
    LOSS = "loss"
    NOT_RESOLVED = "not resolved"


@dataclass(frozen=True)
class Loss:
    """Places lost in one outcome by the default in place of the best trial's value: bounds, each of 95 % confidence."""

    outcome: str
    low: float
    high: float
    default_trials: int
    value_trials: int


@dataclass(frozen=True)
class BackToDefault:
    """A setting of the best trial that differs from its default."""

    key: str
    value: Any
    default: Any
    losses: tuple[Loss, ...]  # by outcome, up to the first that decides; none where too few trials can be compared
    verdict: Verdict

    @property
    def at_most(self) -> float:
        """The places that are lost at most, in the outcome where that is most."""
        return max(loss.high for loss in self.losses)


def back_to_defaults(best: TrialRecord, found: Sequence[Outcome]) -> list[BackToDefault]:
    """Each searched setting of the best trial that differs from its default, in the order of the space.

    There is no loss where there is none in any outcome. A function of the trials alone.
    """
    defaults = flatten(Settings())
    return [_judged(key, value, defaults[key], found) for key, value in best.params.items() if value != defaults[key]]


def _judged(key: str, value: Any, default: Any, found: Sequence[Outcome]) -> BackToDefault:
    losses: list[Loss] = []
    verdict = Verdict.NO_LOSS
    for outcome in found:
        loss = _loss(key, value, default, outcome)
        if loss is None:
            verdict = Verdict.NOT_RESOLVED
            break
        losses.append(loss)
        if loss.high > TOLERANCE:
            verdict = Verdict.LOSS if loss.low > 0 else Verdict.NOT_RESOLVED
            break
    return BackToDefault(key, value, default, tuple(losses), verdict)


def _loss(key: str, value: Any, default: Any, outcome: Outcome) -> Loss | None:
    """The places lost by the default; None where too few trials are near it, or near the value."""
    space = {name: other for trial in outcome.trials for name, other in trial.plan.space.items()}
    sides = [
        (index, side)
        for index, trial in enumerate(outcome.trials)
        if key in trial.params and (side := _side(trial.params[key], value, default, spec_of(space[key]))) is not None
    ][-MOST_TRIALS:]
    rows, is_default = np.array([index for index, _ in sides], int), np.array([side for _, side in sides], float)
    counts = int(is_default.sum()), int((1 - is_default).sum())
    if min(counts) < LEAST_TRIALS:
        return None
    others = _features([outcome.trials[row].params for row in rows], {k: d for k, d in space.items() if k != key})
    lost, moved = _residuals(others, outcome.places[rows]), _residuals(others, is_default)
    weight = float(moved @ moved)
    effect = float(moved @ lost) / weight
    error = math.sqrt(float(moved**2 @ (lost - effect * moved) ** 2)) / weight  # also where the spread differs
    reach = float(stdtrit(len(rows) - 2, CONFIDENCE)) * error  # Student's quantile
    return Loss(outcome.name, effect - reach, effect + reach, *counts)


def _side(given: Any, value: Any, default: Any, spec: Mapping[str, Any]) -> bool | None:
    """Whether a trial's value is the default rather than the best trial's; None where it is neither."""
    if spec["type"] == "categorical":
        return {default: True, value: False}.get(given)
    to_default, to_value = (abs(_position(given, spec) - _position(end, spec)) for end in (default, value))
    return to_default < to_value if min(to_default, to_value) <= NEAR and to_default != to_value else None


def _position(number: float | None, spec: Mapping[str, Any]) -> float:
    """Where a number lies between the bounds of what is searched, 0 at the lower and 1 at the upper one; infinitely far
    below them for no number, or one without a logarithm, as a default may be."""
    scale = math.log if spec.get("log") else float
    if number is None or (spec.get("log") and number <= 0):
        return -math.inf
    low, high = scale(spec["low"]), scale(spec["high"])
    return (scale(number) - low) / ((high - low) or 1.0)


def _features(rows: Sequence[Mapping[str, Any]], space: Space) -> np.ndarray:
    """The settings as columns: a number's position, a column for each choice; not a number where one is not set."""
    columns: list[list[float]] = []
    for key, distribution in space.items():
        spec = spec_of(distribution)
        if spec["type"] == "categorical":
            columns += [[float(row.get(key) == choice) for row in rows] for choice in spec["choices"]]
        else:
            columns.append([_position(row[key], spec) if key in row else math.nan for row in rows])
    return np.array(columns or [[0.0] * len(rows)]).T


def _residuals(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What a forest of trees that have not seen the row does not explain of it."""
    from sklearn.ensemble import RandomForestRegressor  # takes a second, which most studies need not spend

    forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.5, oob_score=True, random_state=0)
    residuals: np.ndarray = target - forest.fit(features, target).oob_prediction_
    return residuals
