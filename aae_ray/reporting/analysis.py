"""What a study says of its own search, made once for its report and its plots from the journal alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from aae_ray.reporting.defaults import BackToDefault, back_to_defaults
from aae_ray.reporting.importance import Importance, importance
from aae_ray.reporting.standing import outcomes
from aae_ray.search import events
from aae_ray.search.hypervolume import Progress, progress, references
from aae_ray.search.ledger import Ledger
from aae_ray.search.trial_record import TrialRecord


@dataclass(frozen=True)
class SearchAnalysis:
    """How far the search came, what mattered in it, and what of its best trial did not."""

    progress: tuple[Progress, ...]
    importances: tuple[Importance, ...]  # by outcome; none where nothing is searched
    defaults: tuple[BackToDefault, ...]  # of the best trial

    @classmethod
    def of(cls, ledger: Ledger, history: Sequence[events.Event], best: TrialRecord | None) -> "SearchAnalysis":
        """`history` is the journal's, and `best` the trial that is chosen, if one is."""
        found = outcomes(ledger) if any(trial.params for trial in ledger.trials) else []
        return cls(
            tuple(progress(history, references(ledger))),
            tuple(importance(outcome) for outcome in found),
            tuple(back_to_defaults(best, found)) if best is not None else (),
        )
