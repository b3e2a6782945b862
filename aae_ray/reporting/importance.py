"""Which of the searched settings mattered: PED-ANOVA, and whether what it says is more than chance.

PED-ANOVA (Watanabe et al. 2023; for conditional settings arXiv 2601.20800) holds where a setting's values lie among the
best trials against where they lie among all. It gives every setting some importance, also where there is nothing to
find. So the same is computed with the places shuffled over the trials: a setting stands out when its importance is more
than that of any setting in 95 % of the permutations, each in units of its own 95 % quantile, as one with many values
gets more by chance than one with two. This is a permutation test by the maximum over the settings (Westfall and Young
1993): where nothing matters, one outcome in twenty names a setting.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial

from aae_ray.reporting.standing import Outcome

BEST = 0.25  # share of the trials that count as the best
LEAST_TRIALS = 20  # five among the best, as many as Optuna asks for
MOST_TRIALS = 500  # of more, so many at even distances: the time grows with them, and the answer is known
PERMUTATIONS = 100
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Importance:
    """What the settings did for one outcome."""

    outcome: str
    trials: int  # that can be compared
    shares: dict[str, float]  # setting -> share of all importance, the largest first; empty with too few trials
    chance: dict[str, float]  # setting -> share up to which it does not stand out

    @property
    def standing_out(self) -> dict[str, float]:
        return {key: share for key, share in self.shares.items() if share > self.chance[key]}


def importance(outcome: Outcome) -> Importance:
    """The importance of each searched setting for an outcome, a function of the trials alone."""
    count = len(outcome.trials)
    if count < LEAST_TRIALS:
        return Importance(outcome.name, count, {}, {})
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_TRIALS)).astype(int))
    study, places = _study(outcome, chosen), outcome.places[chosen]
    keys = sorted({key for trial in study.trials for key in trial.params})
    generator = np.random.default_rng(0)
    found = _divergences(study, keys, places)
    shuffled = np.array([_divergences(study, keys, generator.permutation(places)) for _ in range(PERMUTATIONS)])
    by_chance = np.quantile(shuffled, CONFIDENCE, axis=0) + np.finfo(float).eps
    limit = by_chance * np.quantile((shuffled / by_chance).max(1, initial=0.0), CONFIDENCE)
    total = found.sum() or 1.0
    ranked = [(keys[index], index) for index in np.argsort(-found, kind="stable")]
    return Importance(
        outcome.name,
        count,
        shares={key: float(found[index] / total) for key, index in ranked},
        chance={key: float(limit[index] / total) for key, index in ranked},
    )


def _study(outcome: Outcome, chosen: np.ndarray) -> optuna.Study:
    """These trials as Optuna's evaluators take them, each with the distributions that it was drawn from."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()
    for index in chosen:
        trial = outcome.trials[index]
        distributions = {key: trial.plan.space[key] for key in trial.params}
        study.add_trial(create_trial(params=dict(trial.params), distributions=distributions, value=0.0))
    return study


def _divergences(study: optuna.Study, keys: list[str], places: np.ndarray) -> np.ndarray:
    """PED-ANOVA's importance of each key when the study's trials have these places."""
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that smaller is better, which places are
        found = evaluator.evaluate(study, params=keys, target=lambda trial: float(places[trial.number]))
    return np.array([found[key] for key in keys])
