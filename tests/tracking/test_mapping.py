"""What MLflow is told of each event, without MLflow."""

import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.search import events
from aae_ray.search.outcomes import RungVerdict
from aae_ray.tracking.mapping import STUDY, Call, CreateRun, LogMetrics, MlflowMapping, SetTags
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
    assert told(history)[-1] == [SetTags("t0000", {"aae.paused_at_epoch": 9})]
    history.pause(number, RungVerdict.CONTINUE)
    assert told(history)[-1] == [SetTags("t0000", {"aae.paused_at_epoch": ""})]
