"""What a monitoring system is told of a study: a table of gauges, each a function of the ledger and of how sending
goes.

A gauge is named as Prometheus has it, without the prefix that Ray puts before all of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aae_ray.search.forecast import forecast
from aae_ray.search.hypervolume import dominated_share, references
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State

STUDY = "study"  # the label that every gauge has: the study's id


@dataclass(frozen=True)
class Observed:
    """A running study at a time."""

    ledger: Ledger
    now: float  # seconds since 1970
    gangs: int  # that are wanted at a time
    unsent: int = 0  # events that MLflow has yet to take
    refused: int = 0  # records that it has refused


Values = Mapping[str | None, float]  # by the value of the gauge's label; None where it has none


@dataclass(frozen=True)
class Gauge:
    """A number that is told, or one for each value of a label."""

    name: str
    text: str
    values: Callable[[Observed], Values]
    label: str | None = None  # beside the study's


@dataclass(frozen=True)
class Sample:
    """A gauge with its labels, at a time."""

    gauge: Gauge
    labels: Mapping[str, str]
    value: float


def _hypervolume(of: Observed) -> float:
    ledger = of.ledger
    feasible = [trial for trial in ledger.front() if not ledger.violation(trial)]
    if not feasible:
        return 0.0
    return dominated_share((ledger.values(trial) for trial in feasible), references(ledger))


def _hours(of: Observed) -> Values:
    time = forecast(of.ledger, of.now).worker_time
    seconds = {"training": time.training, "evaluation": time.evaluation, "waiting": time.waiting}
    return {activity: each / 3600 for activity, each in seconds.items()}


def _lost_hours(of: Observed) -> Values:
    return {str(kind): failures.lost_seconds / 3600 for kind, failures in list(of.ledger.failures.items())}


def _cost(of: Observed) -> Values:
    cost = of.ledger.cost(forecast(of.ledger, of.now).worker_time.held)
    return {} if cost is None else {None: cost}


def _machine_hours(of: Observed) -> Values:
    return {market: hours for market, hours in list(of.ledger.machines.hours.items()) if hours}


def _machine_cost(of: Observed) -> Values:
    cost = of.ledger.machine_cost
    return {} if cost is None else {None: cost}


GAUGES = (
    Gauge(
        "aae_trials",
        "Trials by state",
        lambda of: {str(state): of.ledger.count(state) for state in State},
        "state",
    ),
    Gauge(
        "aae_trials_planned",
        "Configurations that study.budget.trials asks for",
        lambda of: {None: of.ledger.current_plan.settings.study.budget.trials},
    ),
    Gauge(
        "aae_front_trials",
        "Trials on the Pareto front",
        lambda of: {None: len(of.ledger.front_points.members())},
    ),
    Gauge(
        "aae_hypervolume",
        "Share of the objectives' volume that the front dominates, 0 to 1",
        lambda of: {None: _hypervolume(of)},
    ),
    Gauge("aae_gangs", "Gangs that are wanted at a time", lambda of: {None: of.gangs}),
    Gauge("aae_worker_hours", "Hours for which workers were held, by what for", _hours, "activity"),
    Gauge(
        "aae_lost_worker_hours",
        "Hours of workers in failed attempts since their last saved state, by the class of the failure",
        _lost_hours,
        "failure",
    ),
    Gauge("aae_cost", "Cost of all worker hours, where study.price_per_worker_hour is given", _cost),
    Gauge(
        "aae_machine_hours",
        "Hours of a cluster's machines up to their last change, where its file has them on spot and on demand",
        _machine_hours,
        "market",
    ),
    Gauge("aae_machine_cost", "Cost of these, where study.cluster gives their prices", _machine_cost),
    Gauge(
        "aae_failed_attempts",
        "Attempts that failed, by the class of the failure",
        lambda of: {str(kind): failures.count for kind, failures in list(of.ledger.failures.items())},
        "failure",
    ),
    Gauge("aae_unsent_records", "Events of the journal that MLflow does not have yet", lambda of: {None: of.unsent}),
    Gauge("aae_refused_records", "Records that MLflow has refused", lambda of: {None: of.refused}),
    Gauge("aae_updated_seconds", "When the study last told all this, in seconds since 1970", lambda of: {None: of.now}),
)


def samples(of: Observed) -> Iterator[Sample]:
    """All that is told of a study that has begun. The cost grows with its open trials and its front."""
    assert of.ledger.started is not None, "the study has begun"
    study = {STUDY: of.ledger.started.study_id}
    for gauge in GAUGES:
        for label, value in gauge.values(of).items():
            yield Sample(gauge, study if label is None else {**study, str(gauge.label): label}, float(value))
