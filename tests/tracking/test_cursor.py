"""The note of how far a lane has come, where it and the journal do not agree; and values too long for MLflow."""

import json
from pathlib import Path
from typing import Any

import pytest

from aae_ray.search import events
from aae_ray.search.outcomes import Reason
from aae_ray.tracking.cursor import CURSOR, left_to_send
from aae_ray.tracking.sender import Tracker
from tests.tracking.little_study import PATIENCE, LittleStudy, runs_of, steps_of


def goes_on(study: LittleStudy, database: str) -> LittleStudy:
    again = LittleStudy.__new__(LittleStudy)
    again.folder, again.now, again.journal = study.folder, 2000.0, study.journal
    again.tracker = Tracker(study.folder, study.journal.history, database)
    again.add(events.StudyResumed(host="h", pid=2))
    again.attempt(0, 2)
    for epoch in (1, 2, 3):
        again.report({"epoch": float(epoch), "val/reconstruction_mse": 1 / epoch, "val/jsd_nats": 0.5})
    return again


def test_a_study_that_goes_on_behind_a_note_that_outlived_its_events_loses_none(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    assert study.tracker.close(PATIENCE) == 0
    note = json.loads((tmp_path / CURSOR).read_text())
    note[database] |= {"records": 6, "files": 6}  # the journal has three
    (tmp_path / CURSOR).write_text(json.dumps(note))
    again = goes_on(study, database)
    assert again.tracker.close(PATIENCE) == 0
    run = runs_of(database)["t0000-z3"]
    assert [step for step, _ in steps_of(database, run, "val/reconstruction_mse")] == [1, 2, 3]


def test_a_parked_record_whose_event_is_another_one_now_ends_no_lane(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    assert study.tracker.close(PATIENCE) == 0
    note = json.loads((tmp_path / CURSOR).read_text())
    note[database]["parked"] = [{"lane": "records", "event": 1, "call": 2, "why": "LogMetrics: refused"}]
    (tmp_path / CURSOR).write_text(json.dumps(note))
    again = goes_on(study, database)
    assert again.tracker.close(PATIENCE) == 0 and again.tracker.parked == [], again.tracker.problem


def test_of_epochs_that_go_together_only_the_bad_ones_are_refused(database: str, tmp_path: Path) -> None:
    study = LittleStudy(tmp_path, database)
    study.begin()
    for epoch in range(1, 6):
        study.report({"epoch": float(epoch), "no good?" if epoch in (2, 4) else "m": 1.0})
    study.report({"epoch": 6.0, "val/reconstruction_mse": 0.5, "val/jsd_nats": 0.5})
    study.add(events.Ended(number=0, reason=Reason.COMPLETED), events.StudyEnded())
    assert study.tracker.close(PATIENCE) == 0 and len(study.tracker.parked) == 2
    assert [step for step, _ in steps_of(database, runs_of(database)["t0000-z3"], "m")] == [1, 3, 5]


def test_long_and_many_params(database: str, tmp_path: Path) -> None:
    data = events.DataRecord(name="digits", digest="d" * 32, shape=(1, 8, 8), classes=10, train=10, val=5, test=5)
    (tmp_path / "sheet.png").write_bytes(b"x")
    from aae_ray.search.journal import Journal

    journal = Journal.create(tmp_path)
    params = {f"p{index}": "x" * 7000 for index in range(130)} | {"none": None, "empty": ""}
    journal.append(
        events.Evaluated(
            run_name="long",
            experiment="aae/digits",
            params=params,
            metrics={},
            data=data,
            tags={"aae.study_id": "x", "aae.run_kind": "evaluation"},
            sheet="sheet.png",
        )
    )
    tracker = Tracker(tmp_path, journal.history, database)
    assert tracker.close(PATIENCE) == 0 and tracker.parked == []
    run = runs_of(database)["long"]
    assert len(run.data.params) == 131 and {len(run.data.params[f"p{index}"]) for index in range(130)} == {6000}
    assert run.data.params["empty"] == ""


@pytest.mark.parametrize(
    ("noted", "left"),
    [
        (None, None),
        ({}, None),
        ("no note", None),
        ({"a": {"records": 1, "files": 2}}, None),  # of another version
        ({"a": {"records": 3, "files": 2, "parked": []}}, (2, 0)),
        ({"a": {"records": 4, "files": 4, "parked": [{}]}, "b": {"records": 0, "files": 9, "parked": []}}, (0, 1)),
    ],
)
def test_what_is_left_to_send_is_known_from_the_note(tmp_path: Path, noted: Any, left: tuple[int, int] | None) -> None:
    if noted is not None:
        (tmp_path / CURSOR).write_text(json.dumps(noted))
    history = [events.Noted(text=str(number)) for number in range(4)]
    promoted = events.Promoted(name="decoder", version=1, champion=True, reason="the first version")
    assert left_to_send(tmp_path, [*history, promoted]) == left  # MLflow itself has said what became of a registration
