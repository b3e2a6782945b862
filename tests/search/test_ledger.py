"""The ledger: what became of each trial, told once, whatever was retried."""

import math
import time
from typing import Any

import pytest

from aae_ray.search.ledger import BUDGET, COMPLETED, ERROR, PRUNED, USER, Ledger
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, replace

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(Plan(Settings(), {}))


def epoch(number: int, mse: float, jsd: float | None = None) -> dict[str, float]:
    return {"epoch": float(number), MSE: mse} | ({} if jsd is None else {JSD: jsd})


def result(*history: dict[str, float], **said: Any) -> dict[str, Any]:
    return {
        **(history[-1] if history else {}),
        "history": list(history),
        "finished": False,
        "stop_reason": None,
        "failed": False,
        **said,
    }


def finish(ledger: Ledger, name: str, mse: float, jsd: float) -> None:
    ledger.begin(name, {})
    ledger.report(name, result(epoch(1, mse, jsd), finished=True, done=True))
    ledger.end(name)


def test_trials_are_numbered_in_the_order_in_which_they_begin(ledger: Ledger) -> None:
    records = [ledger.begin(name, {"model.latent_dim": 3}) for name in ("x7", "a1", "k2")]
    assert [record.name for record in records] == ["t0000", "t0001", "t0002"]
    assert records[0].params == {"model.latent_dim": 3} and records[0].state == "running" and records[0].attempts == 1
    assert ledger.count("running") == 3


def test_every_epoch_is_told_once_and_the_last_one_stands(ledger: Ledger) -> None:
    ledger.begin("a", {})
    first = [epoch(1, 0.5), epoch(2, 0.4), epoch(3, 0.6, 0.2)]
    assert ledger.report("a", result(*first)) == first
    assert ledger.report("a", result(epoch(4, 0.3))) == [epoch(4, 0.3)]
    record = ledger.trials["a"]
    assert record.epoch == 4 and record.metrics == epoch(4, 0.3)  # JSD was not measured there
    assert record.best == {MSE: (0.3, 4), JSD: (0.2, 3)}


def test_a_retry_does_not_double_epochs(ledger: Ledger) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(*(epoch(number, 1 / number) for number in range(1, 6))))
    began = ledger.trials["a"].started
    assert ledger.begin("a", {}).attempts == 2
    assert len(ledger.trials) == 1 and ledger.trials["a"].started == began and ledger.trials["a"].state == "running"
    # It restarts from the checkpoint of epoch 3, and reports 4 and 5 again.
    fresh = ledger.report("a", result(*(epoch(number, 1 / number) for number in range(4, 8))))
    assert [metrics["epoch"] for metrics in fresh] == [6, 7]
    assert ledger.report("a", result(*(epoch(number, 9.9) for number in range(1, 8)))) == []
    assert ledger.trials["a"].epoch == 7 and ledger.trials["a"].best[MSE] == (1 / 7, 7)


def test_an_empty_history_changes_no_metric(ledger: Ledger) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.5)))
    assert ledger.report("a", result(failed=True, stop_reason="bad_input", message="the images are gone")) == []
    record = ledger.end("a")
    assert (record.state, record.stop_reason, record.message, record.epoch) == (
        "failed",
        "bad_input",
        "the images are gone",
        1,
    )
    assert record.metrics == epoch(1, 0.5)


def test_values_that_are_not_finite_are_never_the_best(ledger: Ledger) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, math.nan), epoch(2, -math.inf), epoch(3, 0.5, math.nan)))
    assert ledger.trials["a"].best == {MSE: (0.5, 3)}


def test_the_first_of_equal_values_is_the_best(ledger: Ledger) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.5), epoch(2, 0.5)))
    assert ledger.trials["a"].best[MSE] == (0.5, 1)


def test_the_best_of_a_metric_to_maximise_is_its_largest() -> None:
    speed = "perf/images_per_second"
    ledger = Ledger(Plan(replace(Settings(), {"study.objectives": (speed,)}), {}))
    for name, value in (("a", 1.0), ("b", 3.0), ("c", 2.0)):
        ledger.begin(name, {})
        ledger.report(name, result({"epoch": 1, speed: value}, {"epoch": 2, speed: value - 0.5}, finished=True))
        ledger.end(name)
    assert ledger.trials["b"].best == {speed: (3.0, 1)}
    assert [record.trial_id for record in ledger.front()] == ["b"] and ledger.values(ledger.trials["b"]) == [-2.5]


# --------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("said", "ended", "state", "reason"),
    [
        ({"finished": True}, {}, "complete", COMPLETED),
        ({}, {}, "stopped", PRUNED),  # Tune ends a trial that the pruner stopped without a word
        ({}, {"reason": BUDGET}, "stopped", BUDGET),
        ({}, {"reason": USER}, "stopped", USER),
        ({"stop_reason": "code_collapse"}, {}, "stopped", "code_collapse"),
        ({"stop_reason": "code_collapse"}, {"reason": USER}, "stopped", "code_collapse"),
        ({"stop_reason": "diverged", "failed": True}, {}, "failed", "diverged"),
        (
            {"stop_reason": "out_of_memory", "failed": True, "message": "no memory"},
            {"reason": BUDGET},
            "failed",
            "out_of_memory",
        ),
        ({}, {"failed": True, "message": "worker died"}, "failed", ERROR),
        ({"finished": True}, {"reason": USER}, "complete", COMPLETED),
    ],
)
def test_how_a_trial_ends(ledger: Ledger, said: dict[str, Any], ended: dict[str, Any], state: str, reason: str) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.5, 0.5), **said))
    before = time.time()
    record = ledger.end("a", **ended)
    assert (record.state, record.stop_reason) == (state, reason)
    assert record.message == (ended.get("message") or said.get("message"))
    assert record.ended is not None and before <= record.ended <= time.time()


def test_a_trial_ends_once(ledger: Ledger) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.5, 0.5), finished=True))
    ended = ledger.end("a").ended
    record = ledger.end("a", failed=True, message="too late")
    assert record.state == "complete" and record.ended == ended and record.message is None


def test_a_trial_that_ends_before_its_first_result_was_stopped(ledger: Ledger) -> None:
    ledger.begin("a", {})
    record = ledger.end("a", BUDGET)
    assert (record.state, record.stop_reason, record.metrics, record.best) == ("stopped", BUDGET, {}, {})


@pytest.mark.parametrize("last", [epoch(2, 0.5), epoch(2, 0.5, math.nan), epoch(2, math.inf, 0.5)])
def test_a_finished_trial_without_finite_objectives_has_failed(ledger: Ledger, last: dict[str, float]) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.1, 0.1), last, finished=True))
    assert ledger.complete() == []
    record = ledger.end("a")
    assert record.state == "failed" and record.stop_reason == "diverged"
    assert ledger.front() == [] and ledger.count("complete") == 0


# -------------------------------------------------------------------------------------------------------------- front


def test_the_front_holds_complete_trials_that_no_other_dominates_best_first_objective_first(ledger: Ledger) -> None:
    finish(ledger, "a", 0.3, 0.1)
    finish(ledger, "b", 0.1, 0.3)
    finish(ledger, "c", 0.3, 0.3)
    finish(ledger, "d", 0.2, 0.2)
    ledger.begin("e", {})
    ledger.report("e", result(epoch(1, 0.0, 0.0)))  # better than all, and stopped
    ledger.end("e")
    ledger.begin("f", {})
    ledger.report("f", result(epoch(1, 0.0, 0.0)))  # and this one still runs
    assert [record.trial_id for record in ledger.front()] == ["b", "d", "a"]
    assert [record.trial_id for record in ledger.complete()] == ["a", "b", "c", "d"]
    assert [ledger.count(state) for state in ("running", "complete", "stopped", "failed")] == [1, 4, 1, 0]


def test_equal_trials_are_on_the_front_together(ledger: Ledger) -> None:
    finish(ledger, "a", 0.1, 0.1)
    finish(ledger, "b", 0.1, 0.1)
    assert len(ledger.front()) == 2


def test_the_value_at_the_end_of_the_budget_counts_not_the_best_on_the_way(ledger: Ledger) -> None:
    ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.1, 0.1), epoch(2, 0.4, 0.4), finished=True))
    assert ledger.values(ledger.end("a")) == [0.4, 0.4]
    assert ledger.trials["a"].best == {MSE: (0.1, 1), JSD: (0.1, 1)}


def test_an_empty_ledger_has_an_empty_front(ledger: Ledger) -> None:
    assert ledger.front() == [] and ledger.complete() == []


def test_a_gang_that_died_counts_as_an_attempt(ledger: Ledger) -> None:
    """A trial goes on with a new gang in its own process, or begins again in a new process: both are attempts."""
    record = ledger.begin("a", {})
    ledger.report("a", result(epoch(1, 0.5), attempt=1))
    assert record.attempts == 1
    ledger.report("a", result(epoch(2, 0.5), attempt=2))
    ledger.report("a", result(epoch(3, 0.5), attempt=2))
    assert record.attempts == 2
    ledger.begin("a", {})
    ledger.report("a", result(epoch(4, 0.5), attempt=1))
    assert record.attempts == 3
