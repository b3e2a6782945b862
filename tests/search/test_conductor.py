"""The decisions of a study, without Ray and MLflow: plain functions over a journal in a folder."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aae_ray.search import events
from aae_ray.search.conductor import Conductor, Continue, GiveUp, NoSuggestion, Pause, Retry, Stop
from aae_ray.search.contract import Failure, Report, Suggestion
from aae_ray.search.journal import JOURNAL, Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import RETRIES, FailureClass, Reason, RungVerdict, State, StudyEnd
from aae_ray.search.pruner import rungs
from aae_ray.search.space import Plan, record_plan
from aae_ray.settings import Settings, StudySettings, replace
from aae_ray.study.signals import Signals

SPACE = {
    "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2, log=True),
    "model.latent_dim": CategoricalDistribution([2, 4, 8]),
}


def plan_of(**changes: object) -> Plan:
    values = {"study.budget.trials": 8, "train.epochs": 27, "study.sampler.type": "random"}
    return Plan(replace(Settings(), values | {key.replace("__", "."): value for key, value in changes.items()}), SPACE)


class Clock:
    """A second for each event."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def begin(folder: Path, plan: Plan, gangs: int = 1) -> Conductor:
    data = events.DataRecord(name="digits", digest="d", shape=(1, 8, 8), classes=10, train=9, val=9, test=9)
    clock = Clock()
    journal = Journal.create(folder, clock)
    ledger = Ledger()
    started = events.StudyStarted(
        study_id="s1", plan=record_plan(plan), data=data, versions={}, provenance={}, host="h", pid=1
    )
    for event in journal.append(started):
        ledger.apply(event)
    return Conductor(journal, ledger, gangs, clock=clock)


def resume(folder: Path, gangs: int = 1) -> Conductor:
    clock = Clock()
    journal = Journal.open(folder, clock)
    clock.now = journal.history[-1].time
    ledger = Ledger.replay(journal.history)
    for event in journal.append(events.StudyResumed(host="h", pid=2)):
        ledger.apply(event)
    return Conductor(journal, ledger, gangs, clock=clock)


def quality(suggestion: Suggestion, epoch: int) -> dict[str, float]:
    """What a trial of these parameters is worth after so many epochs: a function of both, as training is."""
    luck = random.Random(repr(sorted(suggestion.params.items())))
    base, other = luck.random(), luck.random()
    return {
        "epoch": float(epoch),
        "val/reconstruction_mse": base + 1 / epoch,
        "val/jsd_nats": other + 0.5 / epoch,
    }


def interval(suggestion: Suggestion, epoch: int, settings: Settings) -> Report:
    """One step of a trial from this epoch: up to the next rung, or the end."""
    until = next(
        (rung for rung in rungs(settings.study.pruner, suggestion.settings["train.epochs"]) if rung > epoch),
        suggestion.settings["train.epochs"],
    )
    history = tuple(quality(suggestion, each) for each in range(epoch + 1, until + 1))
    return Report(
        suggestion.number,
        until,
        history,
        finished=until == suggestion.settings["train.epochs"],
        checkpoint=f"{suggestion.name}/{until}",
    )


def asked(conductor: Conductor) -> Suggestion | NoSuggestion:
    """What an executor gets, which asks only as long as there is more to do."""
    more = conductor.more_to_suggest
    suggestion = conductor.suggest()
    assert more or not isinstance(suggestion, Suggestion), "an executor would not have asked"
    return suggestion


def run(conductor: Conductor, crash: Callable[[], None] = lambda: None) -> None:
    """An executor with one gang."""
    settings = conductor.ledger.current_plan.settings
    while isinstance(suggestion := asked(conductor), Suggestion):
        crash()
        conductor.started(suggestion.number)
        epoch = suggestion.epoch
        answer: Continue | Pause | Stop = Continue()
        while isinstance(answer, Continue):
            crash()
            report = interval(suggestion, epoch, settings)
            answer, epoch = conductor.reported(report), report.epoch
    assert suggestion is NoSuggestion.DONE


def outcome(ledger: Ledger) -> list[tuple[object, ...]]:
    return [(t.number, t.params, t.state, t.reason, t.epoch, t.metrics, t.best) for t in ledger.trials]


# ------------------------------------------------------------------------------------------------------------ a study


def test_a_study_ends_with_its_budget_of_trials(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    run(conductor)
    ledger = conductor.ledger
    assert len(ledger.trials) == 8 and not ledger.open and ledger.ended == 8
    assert {trial.state for trial in ledger.trials} <= {State.COMPLETE, State.STOPPED}
    assert all(trial.epoch == 27 for trial in ledger.complete())
    assert ledger.count(State.STOPPED) == sum(trial.reason is Reason.PAUSED for trial in ledger.trials) > 0
    for trial in ledger.complete():
        assert (
            not any(
                other.metrics["val/reconstruction_mse"] <= trial.metrics["val/reconstruction_mse"]
                and other.metrics["val/jsd_nats"] <= trial.metrics["val/jsd_nats"]
                and other is not trial
                for other in ledger.complete()
            )
            or trial not in ledger.front()
        )


class Crash(Exception):
    pass


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2"])
def test_a_study_that_is_killed_again_and_again_ends_as_the_unbroken_one(tmp_path: Path, sampler: str) -> None:
    plan = plan_of(study__sampler__type=sampler, study__budget__trials=14)
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = begin(tmp_path / "whole", plan)
    run(whole)
    luck = random.Random(1)

    def crash() -> None:
        if luck.random() < 0.2:
            raise Crash

    conductor, crashes = begin(tmp_path / "broken", plan), 0
    while True:
        try:
            run(conductor, crash)
            break
        except Crash:
            crashes += 1
            conductor.journal.close()
            conductor = resume(tmp_path / "broken")
    assert crashes > 5
    assert outcome(conductor.ledger) == outcome(whole.ledger)


@given(cut=st.floats(0, 1))
@hypothesis_settings(max_examples=40, deadline=None)
def test_any_prefix_of_a_journal_resumes_to_the_same_end(cut: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also one that was cut in the middle of a line."""
    folder = tmp_path_factory.mktemp("study")
    conductor = begin(folder, plan_of())
    run(conductor)
    content = (folder / JOURNAL).read_bytes()
    first = content.index(b"\n") + 1
    (folder / JOURNAL).write_bytes(content[: first + int(cut * (len(content) - first))])
    resumed = resume(folder)
    run(resumed)
    assert outcome(resumed.ledger) == outcome(conductor.ledger)
    assert outcome(Ledger.replay(resumed.journal.history)) == outcome(resumed.ledger)


def test_replaying_twice_changes_nothing(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    run(conductor)
    again = Ledger.replay(conductor.journal.history)
    assert outcome(again) == outcome(conductor.ledger) and again.counts == conductor.ledger.counts
    assert again.worker_seconds == conductor.ledger.worker_seconds
    assert [t.number for t in again.front()] == [t.number for t in conductor.ledger.front()]


# ----------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("kind", FailureClass)
def test_each_class_of_failure_has_its_own_number_of_attempts(tmp_path: Path, kind: FailureClass) -> None:
    conductor = begin(tmp_path, plan_of(study__max_failures=2))
    most = RETRIES[kind].most
    most = getattr(StudySettings(), most) if isinstance(most, str) else most
    for attempt in range(most + 1):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion) and suggestion.number == 0 and suggestion.attempt == attempt + 1
        conductor.started(0)
        answer = conductor.failed(Failure(0, kind, "it broke", "Traceback ..."))
        assert isinstance(answer, Retry) == (attempt < most)
    (trial,) = conductor.ledger.trials
    assert (trial.state, trial.reason, trial.attempts) == (State.FAILED, Reason(kind), most + 1)
    assert "it broke" in (trial.message or "") and len(trial.failures) == most + 1


def test_one_class_does_not_use_up_the_attempts_of_another(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__max_failures=1))
    for kind in (FailureClass.PREEMPTED, FailureClass.LOST_WORKER, FailureClass.PREEMPTED, FailureClass.HUNG):
        conductor.suggest()
        conductor.started(0)
        assert isinstance(conductor.failed(Failure(0, kind, "away")), Retry)
    conductor.suggest()
    conductor.started(0)
    assert isinstance(conductor.failed(Failure(0, FailureClass.LOST_WORKER, "away")), GiveUp)


def test_preemptions_have_a_budget_of_their_own(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__max_failures=0, study__max_preemptions=3))
    for attempt in range(4):
        conductor.suggest()
        conductor.started(0)
        answer = conductor.failed(Failure(0, FailureClass.PREEMPTED, "its node has died"))
        assert isinstance(answer, Retry) == (attempt < 3)


def test_a_retry_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(0)
    conductor.reported(interval(suggestion, 0, conductor.ledger.current_plan.settings))
    conductor.failed(Failure(0, FailureClass.LOST_WORKER, "away"))
    again = conductor.suggest()
    assert isinstance(again, Suggestion)
    assert (again.number, again.attempt, again.epoch, again.checkpoint) == (0, 2, 3, "t0000/3")


def test_a_trial_that_ran_out_of_memory_is_tried_again_alone(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(), gangs=2)
    for number in (0, 1):
        conductor.suggest()
        conductor.started(number)
    assert conductor.suggest() is NoSuggestion.WAIT
    conductor.failed(Failure(0, FailureClass.OUT_OF_MEMORY, "CUDA out of memory"))
    assert conductor.suggest() is NoSuggestion.WAIT  # the other one is still there
    conductor.failed(Failure(1, FailureClass.DIVERGED, "nan"))
    alone = conductor.suggest()
    assert isinstance(alone, Suggestion) and alone.number == 0 and alone.alone
    assert conductor.suggest() is NoSuggestion.WAIT  # nobody joins it
    conductor.started(0)
    assert isinstance(conductor.failed(Failure(0, FailureClass.OUT_OF_MEMORY, "CUDA out of memory")), GiveUp)
    assert "batch_size" in (conductor.ledger.trials[0].message or "")


def test_a_trial_with_a_gpu_of_its_own_keeps_nobody_waiting(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__resources_per_worker={"GPU": 1}), gangs=2)
    for number in (0, 1):
        conductor.suggest()
        conductor.started(number)
    conductor.failed(Failure(0, FailureClass.OUT_OF_MEMORY, "CUDA out of memory"))
    again = conductor.suggest()
    assert isinstance(again, Suggestion) and again.number == 0 and not again.alone


def test_attempts_that_never_began_are_counted(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    for attempt in (1, 2):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion) and suggestion.attempt == attempt
        conductor.failed(Failure(0, FailureClass.CANNOT_START, "no GPU is free"))
    assert [failure.attempt for failure in conductor.ledger.trials[0].failures] == [1, 2]


def test_a_retry_goes_on_from_the_last_state_that_was_written(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    conductor.suggest()
    conductor.started(0)
    history = tuple({"epoch": float(epoch)} for epoch in range(1, 3))
    conductor.reported(Report(0, 1, history[:1], checkpoint="t0000/1"))
    conductor.reported(Report(0, 2, history[1:]))  # the disk was full for a moment
    conductor.failed(Failure(0, FailureClass.LOST_WORKER, "away"))
    again = conductor.suggest()
    assert isinstance(again, Suggestion) and (again.epoch, again.checkpoint) == (1, "t0000/1")


def test_what_comes_after_the_end_of_a_study_changes_nothing(tmp_path: Path) -> None:
    """Ray has died: a thread closes the study while another still hears of failing attempts."""
    conductor = begin(tmp_path, plan_of())
    conductor.suggest()
    conductor.started(0)
    conductor.journal.append(
        events.StudyStopped(end=StudyEnd.RAY),
        events.AttemptFailed(number=0, attempt=1, failure=FailureClass.LOST_WORKER, message="", retry=True),
    )
    again = resume(tmp_path)
    run(again)
    assert again.ledger.trials[0].state is State.COMPLETE or again.ledger.trials[0].reason is Reason.PAUSED


def test_an_interrupt_comes_before_or_after_an_event_and_never_within(tmp_path: Path) -> None:
    signals = Signals(lambda text: None, lambda: None)
    conductor = begin(tmp_path, plan_of())
    conductor.uninterrupted = signals.deferred

    def interrupt(event: events.Event, ledger: Ledger) -> None:
        if not signals.requested:
            signals._handle(signal.SIGINT, None)

    conductor.sinks.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        conductor.record(events.Noted(text="a"), events.Noted(text="b"))
    assert conductor.ledger.notes == ["a", "b"]


def test_the_same_bug_in_the_first_trials_stops_the_study(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    for number in range(3):
        conductor.suggest()
        conductor.started(number)
        conductor.failed(Failure(number, FailureClass.BUG, "ZeroDivisionError: division by zero"))
    assert conductor.suggest() is NoSuggestion.DONE
    assert conductor.ledger.end is StudyEnd.FAILURES and "division by zero" in (conductor.ledger.end_message or "")


def test_no_password_of_an_error_reaches_the_journal(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    conductor.suggest()
    conductor.started(0)
    text = "cannot reach https://user:pa55@host"
    conductor.failed(Failure(0, FailureClass.BUG, text, text, text))
    assert b"pa55" not in (tmp_path / JOURNAL).read_bytes() and b"https://host" in (tmp_path / JOURNAL).read_bytes()


def test_different_bugs_do_not_stop_it_until_there_are_too_many_in_a_row(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__failures_in_a_row=4))
    for number in range(4):
        assert isinstance(conductor.suggest(), Suggestion)
        conductor.started(number)
        conductor.failed(Failure(number, FailureClass.BUG, f"error {number}"))
    assert conductor.suggest() is NoSuggestion.DONE and conductor.ledger.end is StudyEnd.FAILURES


# -------------------------------------------------------------------------------------------------------------- pauses


def step(conductor: Conductor, number: int, epoch: int, mse: float, *, finished: bool = False) -> object:
    """A report of one epoch, by a trial whose divergence says nothing."""
    history = ({"epoch": float(epoch), "val/reconstruction_mse": mse, "val/jsd_nats": 0.5},)
    return conductor.reported(Report(number, epoch, history, finished, checkpoint=f"t{number}/{epoch}"))


def begin_trial(conductor: Conductor) -> Suggestion:
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(suggestion.number)
    return suggestion


def paused_study(folder: Path, **changes: object) -> Conductor:
    """Trial 0 has gone on and come to its end, 1 to 3 wait at the first rung; 1 may go on."""
    conductor = begin(folder, plan_of(**{"study__budget__trials": 4, **changes}))
    for number, mse in enumerate((0.1, 0.2, 0.3, 0.4)):
        assert begin_trial(conductor).number == number
        answer = step(conductor, number, 3, mse)
        assert answer == (Continue() if number == 0 else Pause())
        if number == 0:
            assert step(conductor, 0, 9, mse) == Continue()
            assert step(conductor, 0, 27, mse, finished=True) == Stop(Reason.COMPLETED)
    return conductor


def test_a_paused_trial_goes_on_from_its_checkpoint_before_a_new_one_begins(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path, study__budget__trials=9)
    assert [trial.state for trial in conductor.ledger.trials[1:]] == [State.PAUSED] * 3 and not conductor.ledger.open
    again = begin_trial(conductor)
    assert (again.number, again.epoch, again.checkpoint, again.attempt) == (1, 3, "t1/3", 2)
    assert conductor.ledger.trials[1].state is State.RUNNING
    assert step(conductor, 1, 9, 0.2) == Pause()  # behind trial 0 there
    assert begin_trial(conductor).number == 4  # of four at the first rung two have gone on


def test_a_report_that_comes_late_does_not_wake_a_paused_trial(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path)
    assert step(conductor, 3, 4, 0.0) == Pause() and conductor.ledger.trials[3].epoch == 3


def test_the_highest_rung_comes_first(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(), gangs=2)
    assert [begin_trial(conductor).number for _ in range(2)] == [0, 1]
    on, wait = RungVerdict.CONTINUE, RungVerdict.PAUSE
    for number, rung, mse, verdict in ((0, 3, 0.5, on), (0, 9, 0.2, wait), (1, 3, 0.3, wait)):
        history = ({"epoch": float(rung), "val/reconstruction_mse": mse},)
        conductor.record(
            events.Reported(
                number=number,
                epoch=rung,
                history=history,
                checkpoint=f"t{number}/{rung}",
                training_seconds=1,
                evaluation_seconds=1,
            ),
            events.Decided(number=number, rung=rung, values=(mse, 0.5), ahead=0, reached=1, verdict=verdict),
        )
    conductor.suggested.clear()
    assert begin_trial(conductor).epoch == 9  # and trial 1 may go on at the first rung
    assert conductor.ledger.pruner.promote(3, conductor.ledger.rungs[3]) is not None


def test_what_is_paused_when_a_study_ends_is_kept_for_an_extension(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path)
    assert begin_trial(conductor).number == 1 and step(conductor, 1, 9, 0.2) == Pause()
    assert conductor.suggest() is NoSuggestion.DONE and not conductor.ledger.paused
    assert [trial.reason for trial in conductor.ledger.trials[1:]] == [Reason.PAUSED] * 3
    conductor.record(events.StudyEnded())
    conductor.journal.close()
    journal = Journal.open(tmp_path)
    ledger = Ledger.replay(journal.history)
    larger = record_plan(plan_of(study__budget__trials=5))
    for event in journal.append(events.StudyResumed(plan=larger, host="h", pid=2)):
        ledger.apply(event)
    assert list(ledger.paused) == [1, 2, 3] and not ledger.open
    again = Conductor(journal, ledger, 1)
    assert begin_trial(again).number == 4 and step(again, 4, 3, 0.9) == Pause()
    assert again.suggest() is NoSuggestion.DONE  # five at the rung: two places, both taken
    assert outcome(Ledger.replay(Journal.open(tmp_path).history)) == outcome(ledger)


def test_where_only_the_best_checkpoint_is_kept_a_paused_trial_ends_for_good(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path, study__keep="best")
    assert begin_trial(conductor).number == 1 and step(conductor, 1, 9, 0.2) == Pause()
    assert conductor.suggest() is NoSuggestion.DONE
    assert [trial.reason for trial in conductor.ledger.trials[1:]] == [Reason.PRUNED] * 3


def test_a_study_that_is_stopped_keeps_its_paused_trials(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path)
    conductor.stop(StudyEnd.USER)
    assert [trial.reason for trial in conductor.ledger.trials[1:]] == [Reason.PAUSED] * 3
    conductor.journal.close()
    again = resume(tmp_path)
    assert begin_trial(again).number == 1


def test_the_time_that_paused_trials_took_is_counted_once(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path)
    assert conductor.ledger.ended_seconds[0] == 4
    begin_trial(conductor)
    assert conductor.ledger.ended_seconds[0] == 3
    step(conductor, 1, 9, 0.2)
    conductor.suggest()
    assert conductor.ledger.ended_seconds[0] == 4
    held = sum(trial.worker_time.held for trial in conductor.ledger.trials)
    assert conductor.ledger.ended_seconds[1] == pytest.approx(held)


def test_a_trial_that_violates_a_constraint_is_not_on_the_front_while_one_fulfils_it(tmp_path: Path) -> None:
    plan = plan_of(study__constraints=["val/reconstruction_mse <= 0.3"], study__pruner__type="none")
    conductor = begin(tmp_path, plan)
    for mse, front in ((0.5, [0]), (0.4, [1]), (0.3, [2]), (0.2, [3]), (0.9, [3])):
        number = begin_trial(conductor).number
        step(conductor, number, 27, mse, finished=True)
        assert [trial.number for trial in conductor.ledger.front()] == front


def test_a_pause_ends_a_row_of_failures(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=20, study__budget__failures_in_a_row=3))
    for turn in range(6):
        number = begin_trial(conductor).number
        if turn % 2:
            conductor.failed(Failure(number, FailureClass.DIVERGED, "nan"))
        else:
            step(conductor, number, 3, 0.1 + 0.1 * turn)
            if conductor.ledger.trials[number].open and number in conductor.suggested:
                conductor.taken_back(number)
    assert conductor.ledger.end is None and conductor.ledger.failures_in_a_row == 1


def test_a_study_that_was_killed_as_it_ended_ends_its_paused_trials(tmp_path: Path) -> None:
    conductor = paused_study(tmp_path)
    assert begin_trial(conductor).number == 1 and step(conductor, 1, 9, 0.2) == Pause()
    conductor.journal.close()
    again = resume(tmp_path)
    assert not again.more_to_suggest and len(again.ledger.paused) == 3
    again.end_all()  # as the study does before it is over
    assert not again.ledger.paused and again.ledger.reasons[Reason.PAUSED] == 3


def test_other_constraints_rank_what_is_complete_anew(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__pruner__type="none"))
    for mse, jsd in ((0.5, 0.1), (0.2, 0.4)):
        number = begin_trial(conductor).number
        history = ({"epoch": 27.0, "val/reconstruction_mse": mse, "val/jsd_nats": jsd},)
        conductor.reported(Report(number, 27, history, finished=True, checkpoint="t/27"))
    assert [trial.number for trial in conductor.ledger.front()] == [1, 0]
    bound = plan_of(study__pruner__type="none", study__constraints=["val/reconstruction_mse <= 0.3"])
    conductor.record(events.StudyResumed(plan=record_plan(bound), host="h", pid=2))
    assert [trial.number for trial in conductor.ledger.front()] == [1]
    assert conductor.ledger.best_of(1) is conductor.ledger.trials[1]


def test_a_population_whose_space_is_exhausted_goes_on(tmp_path: Path) -> None:
    space = {
        "model.latent_dim": CategoricalDistribution([2, 4, 8]),
        "train.input_noise": FloatDistribution(0, 1, step=0.5),
    }
    changes = {"study__pruner__type": "pbt", "study__sampler__type": "grid", "study__budget__trials": 30}
    conductor = begin(tmp_path, Plan(plan_of(**changes).settings, space))
    run(conductor)
    assert len(conductor.ledger.trials) == 9 and len(conductor.ledger.complete()) == 9


# ------------------------------------------------------------------------------------------------------- end and resume


def test_what_was_open_when_the_user_stopped_goes_on_after_a_resume(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(), gangs=2)
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(0)
    conductor.reported(interval(suggestion, 0, conductor.ledger.current_plan.settings))
    conductor.suggest()
    conductor.stop(StudyEnd.USER)
    assert [(t.state, t.reason) for t in conductor.ledger.trials] == [(State.STOPPED, Reason.USER)] * 2
    assert not conductor.ledger.open and conductor.suggest() is NoSuggestion.DONE
    assert isinstance(conductor.reported(interval(suggestion, 3, conductor.ledger.current_plan.settings)), Stop)
    conductor.journal.close()
    again = resume(tmp_path)
    first = again.suggest()
    assert isinstance(first, Suggestion) and (first.number, first.epoch) == (0, 3)
    run_out = resume
    assert run_out is resume and [t.state for t in again.ledger.trials] == [State.WAITING] * 2


def test_a_resumed_study_waits_for_no_more_gangs_than_it_has_trials_left(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=3), gangs=2)
    assert conductor.gangs_needed == 2
    for number in range(3):
        conductor.suggest()
        conductor.started(number)
        if number < 2:
            conductor.failed(Failure(number, FailureClass.DIVERGED, "nan"))
    conductor.stop(StudyEnd.USER)
    conductor.journal.close()
    assert resume(tmp_path, gangs=2).gangs_needed == 1


def test_a_wall_clock_counts_the_sessions_and_not_the_night_between(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__wall_clock=100))
    conductor.suggest()
    assert conductor.time_left == 100  # Ray and the first gang are starting
    conductor.started(0)
    assert 90 < (conductor.time_left or 0) < 100
    conductor.stop(StudyEnd.USER)
    used = conductor.ledger.trial_seconds
    assert 0 < used < conductor.ledger.active_seconds
    conductor.journal.close()
    clock = Clock()
    clock.now = 1e6
    journal = Journal.open(tmp_path, clock)
    ledger = Ledger.replay(journal.history)
    for event in journal.append(events.StudyResumed(host="h", pid=2)):
        ledger.apply(event)
    again = Conductor(journal, ledger, 1, clock=clock)
    assert again.time_left == pytest.approx(100 - used)
    again.suggest()
    again.out_of_time()
    assert ledger.trials[0].reason is Reason.BUDGET and again.suggest() is NoSuggestion.DONE


@pytest.mark.parametrize(
    ("epoch", "seconds", "goes_on"),
    [
        (26, 80.0, True),  # an epoch of some 3 s is left, of at most 5
        (26, 200.0, False),  # one of some 8 s
        (20, 10.0, True),
        (8, 1.0, False),  # whether it goes on is still to be decided, at the rung of 9
        (0, 0.0, False),  # nobody knows how long it takes
    ],
)
def test_when_time_is_up_a_trial_that_is_about_to_end_does(
    epoch: int, seconds: float, goes_on: bool, tmp_path: Path
) -> None:
    """It may be the best one: what is lost is not the last epoch but the whole trial."""
    conductor = begin(tmp_path, plan_of(study__budget__wall_clock=100), gangs=2)
    (first, second) = (begin_trial(conductor), begin_trial(conductor))
    if epoch:
        metrics = (quality(first, epoch),)
        conductor.reported(Report(first.number, epoch, metrics, finished=False, training_seconds=seconds))
    conductor.out_of_time()
    trials = conductor.ledger.trials
    assert trials[second.number].reason is Reason.BUDGET and conductor.suggest() is NoSuggestion.DONE
    assert conductor.suggested == ({first.number} if goes_on else set())
    assert trials[first.number].reason is (None if goes_on else Reason.BUDGET)
    if goes_on:
        report = Report(first.number, 27, (quality(first, 27),), finished=True, training_seconds=3)
        assert conductor.reported(report) == Stop(Reason.COMPLETED) and not conductor.suggested


def test_the_time_beyond_the_wall_clock_has_an_end(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__wall_clock=100))
    trial = begin_trial(conductor)
    report = Report(trial.number, 26, (quality(trial, 26),), finished=False, training_seconds=80)
    conductor.reported(report)
    assert conductor.ledger.trials_since is not None
    conductor.clock.now = conductor.ledger.trials_since + 100  # type: ignore[attr-defined]
    conductor.out_of_time()
    assert conductor.suggested == {trial.number}
    conductor.clock.now = conductor.ledger.trials_since + 105  # type: ignore[attr-defined]
    conductor.out_of_time()
    assert not conductor.suggested and conductor.ledger.trials[0].reason is Reason.BUDGET


def test_worker_hours_end_a_study_when_what_is_under_way_has_ended(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__worker_hours=0.01))
    while isinstance(suggestion := conductor.suggest(), Suggestion):
        conductor.started(suggestion.number)
        report = Report(suggestion.number, 27, (quality(suggestion, 27),), finished=True, training_seconds=30)
        conductor.reported(report)
    assert len(conductor.ledger.trials) == 2 and "worker_hours=0.01" in (conductor.message or "")


def test_a_configuration_is_not_trained_twice(tmp_path: Path) -> None:
    space = {"model.latent_dim": CategoricalDistribution([2, 4, 8])}
    plan = plan_of(study__budget__trials=9)
    conductor = begin(tmp_path, Plan(plan.settings, space))
    run(conductor)
    sizes = [trial.params["model.latent_dim"] for trial in conductor.ledger.trials]
    assert len(sizes) == 3 and set(sizes) == {2, 4, 8} and "no untried point" in (conductor.message or "")


def test_every_point_of_a_small_space_is_tried(tmp_path: Path) -> None:
    space = {"model.latent_dim": IntDistribution(2, 40), "train.input_noise": FloatDistribution(0.0, 0.3, step=0.1)}
    conductor = begin(tmp_path, Plan(plan_of(study__budget__trials=200, study__pruner__type="none").settings, space))
    run(conductor)
    assert len({tuple(trial.params.values()) for trial in conductor.ledger.trials}) == 39 * 4


def test_a_diverged_trial_has_failed_and_a_sick_one_was_stopped(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of())
    for reason, state in ((Reason.DIVERGED, State.FAILED), (Reason.COLLAPSED, State.STOPPED)):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion)
        conductor.started(suggestion.number)
        history = ({"epoch": 1.0, "val/reconstruction_mse": float("nan")},)
        assert conductor.reported(Report(suggestion.number, 1, history, stop_reason=reason)) == Stop(reason)
        assert conductor.ledger.trials[-1].state is state
    assert Ledger.replay(Journal.open(tmp_path).history).trials[0].reason is Reason.DIVERGED
