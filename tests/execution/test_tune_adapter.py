"""What Ray Tune calls back, on a real conductor and without Ray."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, UnserializableException
from ray.tune.search import Searcher

from aae_ray.execution import tune_adapter
from aae_ray.execution.capacity import Room
from aae_ray.execution.tune_adapter import Executor, SearchOver
from aae_ray.search.conductor import Conductor
from aae_ray.search.contract import Failure, Progress, Report
from aae_ray.search.journal import JournalError
from aae_ray.search.outcomes import FailureClass, Reason, State, StudyEnd
from tests.search.test_conductor import begin, plan_of

Make = Callable[..., tuple[Executor, Conductor]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(gangs: int = 2, start_timeout: float = 600.0) -> tuple[Executor, Conductor]:
        conductor = begin(tmp_path, plan_of(study__budget__trials=3), gangs)
        return Executor(conductor, lambda: None, start_timeout), conductor

    return build


def test_a_gang_that_never_comes_up_is_tried_again_in_its_place_and_then_is_a_trial_with_a_reason(make: Make) -> None:
    executor, conductor = make(gangs=2, start_timeout=-1.0)  # at once
    assert isinstance(executor.suggest("a"), dict)
    assert not executor.should_stop()
    (failure,) = conductor.ledger.trials[0].failures
    assert failure.failure is FailureClass.CANNOT_START and failure.retry and executor.numbers == {"a": 0}
    assert not executor.should_stop()
    assert conductor.ledger.trials[0].reason is Reason.CANNOT_START and not executor.numbers
    executor.started("a")  # the nodes have come after all
    assert executor.result("a", Report(0, 1, ({"epoch": 1.0},)).to_result()) and not executor.abandoned


def test_a_study_ends_when_no_gang_comes_up(make: Make) -> None:
    executor, conductor = make(gangs=1, start_timeout=-1.0)
    executor.suggest("a")
    executor.should_stop()
    with pytest.raises(SearchOver):
        executor.should_stop()
    assert conductor.ledger.end is StudyEnd.FAILURES and "no gang came up" in (conductor.ledger.end_message or "")


def test_what_rays_memory_monitor_kills_has_failed_and_is_tried_again(make: Make) -> None:
    executor, conductor = make()
    executor.suggest("a")
    executor.started("a")
    executor.suggest("b")  # still waits for its gang
    error = OutOfMemoryError(
        "2 worker(s) were killed due to the node running low on memory.\nRefer to the documentation"
    )
    assert executor.lost(error)
    first, second = conductor.ledger.trials
    assert [each.failure for each in first.failures] == [FailureClass.OUT_OF_MEMORY] and not second.failures
    assert "running low on memory" in first.failures[0].message and "Refer" not in first.failures[0].message
    assert first.state is second.state is State.WAITING
    again = Executor(conductor, lambda: None, 600.0)
    assert isinstance(again.suggest("c"), dict) and again.numbers == {"c": 1}


def test_a_study_goes_on_while_one_gang_trains_whatever_does_not_come_up(make: Make) -> None:
    executor, conductor = make(gangs=2)
    executor.suggest("a")
    executor.started("a")
    executor.pending_timeout = -1.0
    for name in ("b", "c"):
        executor.suggest(name)
        executor.should_stop()
        executor.should_stop()
    assert executor.abandoned == {"b", "c"} and conductor.ledger.end is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_journal_that_cannot_be_written_ends_the_search_as_what_it_is(make: Make) -> None:
    executor, conductor = make()
    executor.suggest("a")
    executor.started("a")
    conductor.journal.file = os.open("/dev/full", os.O_WRONLY)
    result: dict[str, Any] = Report(0, 1, ({"epoch": 1.0},)).to_result()
    with pytest.raises(SearchOver):
        executor.result("a", result)
    assert isinstance(executor.problem, JournalError) and "No space left" in str(executor.problem)
    executor.problem = None
    assert executor.lost(OutOfMemoryError("running low on memory")) and isinstance(executor.problem, JournalError)


def test_what_ray_cannot_tell_of_gives_up_no_trial(make: Make) -> None:
    """An exception that cannot be read in this process, for instance: Ray then ends everything that ran."""
    executor, conductor = make()
    for name in ("a", "b"):
        executor.suggest(name)
        executor.started(name)
    assert executor.lost(UnserializableException(b"of another version"))
    for trial in conductor.ledger.trials:
        assert [each.failure for each in trial.failures] == [FailureClass.LOST_WORKER]
        assert trial.state is State.WAITING


def test_progress_inside_an_epoch_is_heard_and_ends_nothing(make: Make) -> None:
    executor, conductor = make()
    executor.suggest("a")
    executor.started("a")
    executor.heard["a"] = 0.0
    assert not executor.result("a", Progress(0, 0, 120, 469).to_result()) and executor.heard["a"] > 0
    (trial,) = conductor.ledger.trials
    assert trial.batches == (120, 469) and trial.state is State.RUNNING and trial.epoch == 0
    conductor.stop(StudyEnd.USER)
    assert executor.result("a", Progress(0, 0, 240, 469).to_result()) and trial.batches is None


def tunes_trial(name: str, process: str | None) -> Any:
    return SimpleNamespace(trial_id=name, temporary_state=SimpleNamespace(ray_actor=process))


def test_a_process_that_does_not_begin_its_next_trial_is_ended(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, conductor = make(gangs=1, start_timeout=-1.0)  # at once
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    executor.suggest("a")
    executor.trials = [tunes_trial("a", "process a")]  # that it shall go on with
    assert not executor.should_stop() and killed == ["process a"]
    assert [each.failure for each in conductor.ledger.trials[0].failures] == [FailureClass.HUNG]
    assert not executor.numbers and not executor.abandoned and executor.suggest("b")


def test_a_process_that_says_nothing_is_ended_and_its_trial_is_tried_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, conductor = make()
    killed: list[str] = []
    monkeypatch.setattr("ray.kill", killed.append)
    executor.trials = [tunes_trial("a", "process a"), tunes_trial("b", "process b")]
    for name in ("a", "b"):
        executor.suggest(name)
        executor.started(name)
    executor.answer_timeout = 0.1
    executor.looked = time.monotonic() - 3600  # this process was stopped itself: nobody is to blame
    executor.heard = {name: time.monotonic() - 3600 for name in executor.heard}
    assert not executor.should_stop() and not killed
    time.sleep(0.2)
    assert not executor.result("b", Report(1, 1, ({"epoch": 1.0},)).to_result())
    assert not executor.should_stop() and killed == ["process a"]
    (failure,) = conductor.ledger.trials[0].failures
    assert failure.failure is FailureClass.HUNG and "said nothing for 0.1 s" in failure.message
    assert not conductor.ledger.trials[1].failures
    executor.error("a", None)  # as Tune then tells
    assert len(conductor.ledger.trials[0].failures) == 1


def test_a_search_that_tune_ends_by_itself_has_not_ended_as_planned(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGUSR1, which Tune takes for itself."""
    _, conductor = make()
    monkeypatch.setattr(tune_adapter, "start_mailbox_hub", lambda gangs: None)
    monkeypatch.setattr(tune_adapter, "trainable", lambda *arguments, **given: None)

    class Tuner:
        def fit(self) -> None:
            conductor.suggest()

    monkeypatch.setattr(tune_adapter, "_tuner", lambda *arguments, **given: Tuner())
    tune_adapter.search(conductor, str(tmp_path), lambda: None)
    assert conductor.ledger.end is StudyEnd.USER and not conductor.ledger.open


# -------------------------------------------------------------------------------- a cluster that grows and shrinks


def test_the_search_is_over_when_time_is_up_and_who_was_about_to_end_has(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__wall_clock=100), 3)
    executor = Executor(conductor, lambda: None, 600.0)
    for name in ("a", "b", "pending"):
        executor.suggest(name)
    for name in ("a", "b"):
        executor.started(name)
    report = Report(0, 26, ({"epoch": 26.0, "val/reconstruction_mse": 0.1, "val/jsd_nats": 0.1},), finished=False)
    executor.result("a", report.to_result())
    assert not executor.should_stop()
    assert conductor.ledger.trials_since is not None
    conductor.clock.now = conductor.ledger.trials_since + 99  # type: ignore[attr-defined]
    assert not executor.should_stop() and executor.suggest("c") == Searcher.FINISHED
    assert conductor.ledger.trials[1].reason is Reason.BUDGET and conductor.ledger.trials[0].open
    before = len(conductor.journal.history)
    executor.started("pending")  # its machine has come after all
    assert len(conductor.journal.history) == before and conductor.ledger.trials[2].reason is Reason.BUDGET
    last = Report(0, 27, ({"epoch": 27.0, "val/reconstruction_mse": 0.1, "val/jsd_nats": 0.1},), finished=True)
    assert executor.result("a", last.to_result()) and executor.should_stop()
    assert conductor.ledger.trials[0].reason is Reason.COMPLETED


@pytest.fixture
def follow(make: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Executor, Conductor, list[Room]]]:
    monkeypatch.setattr(tune_adapter, "ROOM_SECONDS", 0.0)

    def build(present: int, wanted: int, timeout: float = -1.0) -> tuple[Executor, Conductor, list[Room]]:
        _, conductor = make(gangs=wanted)
        rooms = [Room(present, wanted)]
        return Executor(conductor, lambda: None, timeout, room=lambda: rooms[-1]), conductor, rooms

    return build


Follow = Callable[..., tuple[Executor, Conductor, list[Room]]]


def test_there_are_more_gangs_when_the_cluster_has_grown(follow: Follow) -> None:
    executor, _, rooms = follow(1, 1, timeout=600.0)
    assert isinstance(executor.suggest("a"), dict) and executor.suggest("b") is None
    rooms.append(Room(2, 2))
    executor.should_stop()
    assert isinstance(executor.suggest("b"), dict) and executor.suggest("c") is None


def test_no_trial_fails_for_a_machine_that_is_yet_to_come(follow: Follow) -> None:
    executor, conductor, rooms = follow(1, 3)  # each attempt is out of time where there is a place for it
    executor.suggest("a")
    executor.started("a")
    for name in ("b", "c"):
        executor.suggest(name)
    for _ in range(3):
        assert not executor.should_stop()
    assert not any(trial.failures for trial in conductor.ledger.trials)
    rooms.append(Room(2, 3))  # a place for one of them, whose process does not start in it
    assert not executor.should_stop()
    assert [len(trial.failures) for trial in conductor.ledger.trials] == [0, 1, 0]


def test_fewer_gangs_are_handed_out_when_the_cluster_has_shrunk(follow: Follow) -> None:
    executor, conductor, rooms = follow(2, 2, timeout=600.0)
    for name in ("a", "b"):
        executor.suggest(name)
        executor.started(name)
    rooms.append(Room(1, 1))
    executor.should_stop()
    executor.error("b", None)  # its machine is gone
    assert executor.suggest("c") is None and conductor.ledger.trials[1].state is State.WAITING


@pytest.mark.parametrize("process", ["none", "warm"])
def test_a_study_without_any_machine_waits_for_so_long_and_stops(
    process: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the process of an earlier trial, on a machine without workers, has begun the attempt at once: what it
    waits for are the machines of its gang."""
    monkeypatch.setattr(tune_adapter, "ROOM_SECONDS", 0.0)
    conductor = begin(tmp_path, plan_of(study__capacity_timeout=0.3), 2)
    executor = Executor(conductor, lambda: None, -1.0, room=lambda: Room(0, 2))
    executor.suggest("a")
    if process == "warm":
        executor.started("a")
    assert not executor.should_stop()
    time.sleep(0.4)
    with pytest.raises(SearchOver):
        executor.should_stop()
    assert conductor.ledger.end is StudyEnd.FAILURES and not conductor.ledger.trials[0].failures
    assert "no machine with room for a gang" in (conductor.ledger.end_message or "")


def test_a_node_that_is_to_blame_is_left_out_once_and_that_is_noted(tmp_path: Path) -> None:
    conductor, left_out = begin(tmp_path, plan_of(study__max_failures=9), 2), list[tuple[str, str]]()

    def leave_out(node: str, why: str) -> bool:
        left_out.append((node, why))
        return node != "own"

    executor = Executor(conductor, lambda: None, 600.0, leave_out=leave_out)
    for name, node in (("a", "0ab"), ("b", "0ab"), ("c", "own"), ("d", "")):
        executor.suggest(name)
        executor.started(name)
        failure = Failure(executor.numbers[name], FailureClass.BAD_NODE, "node7 has other data", node=node)
        assert executor.result(name, failure.to_result())
    assert left_out == [("0ab", "node7 has other data"), ("own", "node7 has other data")]
    assert conductor.ledger.notes == ["a node gets no more trials: node7 has other data"]
    assert not any(trial.reason for trial in conductor.ledger.trials)  # all are tried again
