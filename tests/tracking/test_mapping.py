"""What MLflow is told of each event, without MLflow."""

import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.search import events
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict, StudyEnd
from aae_ray.tracking.mapping import STUDY, Call, CreateRun, LogMetrics, LogParams, MlflowMapping, SetStatus, SetTags
from tests.search.histories import History


def told(history: History) -> list[list[Call]]:
    """The calls of each event."""
    mapping = MlflowMapping()
    return [mapping.calls(event) for event in history.events]


def progress(history: History) -> list[LogMetrics]:
    calls = [call for some in told(history) for call in some]
    return [
        call
        for call in calls
        if isinstance(call, LogMetrics) and call.run == STUDY and "study/front_size" in call.metrics
    ]


def test_a_study_s_run_says_what_was_read(digits: Dataset) -> None:
    history = History()
    record = events.DataRecord.of(digits)
    assert record.class_names == tuple("0123456789")
    (started, *_) = history.events
    assert isinstance(started, events.StudyStarted)
    created = MlflowMapping().calls(started.model_copy(update={"data": record}))[0]
    assert isinstance(created, CreateRun)
    assert created.tags["aae.data.classes"].startswith("10 classes: 0 178, 1 182")
    assert created.tags["aae.data.parts"] == "training 1,079, validation 359, test 359; drawn"
    assert created.tags["aae.data.values"] == "0 to 16 before scaling"


def tags_of(calls: list[Call], tag: str) -> list[tuple[str, str]]:
    """The runs that were given this tag, each time with its value."""
    given = [call for call in calls if isinstance(call, SetTags | CreateRun) and tag in call.tags]
    return [(call.run, call.tags[tag]) for call in given]


def test_the_best_of_a_study_are_means_over_seeds_and_each_end_is_a_step() -> None:
    history = History(study__seeds_per_trial=2)
    history.finish(0.1, 0.2)
    history.finish(0.3, 0.1)
    history.another_seed(0, 0.2, 0.4)
    calls = progress(history)
    assert [call.step for call in calls] == [1, 2, 3]  # the third end is of no new configuration
    assert [call.metrics["study/best_reconstruction_mse"] for call in calls] == pytest.approx([0.1, 0.1, 0.15])


def test_a_run_says_while_its_trial_is_paused_where() -> None:
    history = History()
    number = history.begin()
    history.report(number, 3, 0.2, 0.2)
    history.pause(number, RungVerdict.CONTINUE)  # it was let go on at once: there was no pause
    assert told(history)[-1] == []
    history.report(number, 9, 0.2, 0.2)
    history.pause(number)
    assert told(history)[-1] == [SetTags("t0000", {"aae.paused_at_epoch": 9, "aae.outcome": "paused"})]
    history.pause(number, RungVerdict.CONTINUE)
    assert told(history)[-1] == [SetTags("t0000", {"aae.paused_at_epoch": "", "aae.outcome": "running"})]


def test_objectives_and_searched_settings_come_first_as_mlflow_shows_what_came_first() -> None:
    history = History()
    number = history.begin({"optim.lr_decay": 0.5, "model.latent_dim": 3})
    history.report(number, 1, 0.2, 0.1, adv__loss=1.0, train__loss=2.0)
    calls = [call for some in told(history) for call in some if call.run == "t0000"]
    (params,) = [call.params for call in calls if isinstance(call, LogParams)]
    assert list(params)[:3] == ["optim.lr_decay", "model.latent_dim", "seed"]
    (metrics,) = [call.metrics for call in calls if isinstance(call, LogMetrics)]
    assert list(metrics) == ["val/reconstruction_mse", "val/jsd_nats", "adv/loss", "train/loss"]


def test_what_became_of_a_trial_is_a_word_and_only_what_broke_has_failed() -> None:
    history = History()
    history.finish(0.1, 0.2)
    history.end(history.begin(), Reason.COLLAPSED)
    history.fail(history.begin(), FailureClass.BUG, "it broke")
    number = history.begin()
    history.report(number, 9, 0.2, 0.2)
    history.pause(number)
    history.begin()
    history.stop(StudyEnd.USER)
    calls = [call for some in told(history) for call in some]
    latest = dict(tags_of(calls, "aae.outcome"))
    assert list(latest.values()) == ["complete", "stopped", "failed", "paused", "unfinished"]
    statuses = [call.status for call in calls if isinstance(call, SetStatus) and call.run != STUDY]
    assert sorted(statuses) == ["FAILED", "FINISHED", "FINISHED", "FINISHED", "KILLED"]


def test_runs_on_the_front_say_so_when_the_study_ends_and_no_more_when_better_ones_have_come() -> None:
    history = History()
    history.finish(0.3, 0.3)
    history.add(events.StudyEnded())
    history.resume()
    history.finish(0.2, 0.2)
    history.add(events.StudyEnded())
    calls = [call for some in told(history) for call in some]
    assert tags_of(calls, "aae.front") == [("t0000", "yes"), ("t0001", "yes"), ("t0000", "")]
