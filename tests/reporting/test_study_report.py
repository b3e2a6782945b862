"""The end of a study on the console: what it was, what was registered, what to type next."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from aae_ray.reporting.console import console_for
from aae_ray.reporting.report import StudyReport, browse, next_commands, print_report
from aae_ray.search import events
from aae_ray.search.outcomes import FailureClass, StudyEnd
from tests.search.histories import History


def closing(
    folder: Path, history: History, made: Mapping[str, Any] | None = None, uri: str = "http://host"
) -> StudyReport:
    return StudyReport(
        folder=folder,
        ledger=history.ledger,
        uri=uri,
        registration=made,
        unsent=0,
        parked=[],
        problem=None,
    )


def ended() -> History:
    history = History()
    number = history.finish(0.1, 0.2).number
    history.fail(history.begin(), FailureClass.BUG, "a worker [1] broke")
    history.add(events.Chosen(number=number, registration={"name": "my decoder"}))
    history.add(events.StudyEnded())
    return history


@pytest.mark.parametrize(("champion", "version"), [(True, ""), (False, " --version 2")])
def test_the_images_that_are_offered_are_those_of_the_decoder_that_was_registered(
    tmp_path: Path, champion: bool, version: str
) -> None:
    made = {"name": "my decoder", "version": 2, "champion": champion, "reason": ""}
    report = closing(tmp_path, ended(), made)
    assert report.promoted is champion and not closing(tmp_path, ended()).promoted
    (command,) = [text for label, text in next_commands(report) if label == "images"]
    assert command.startswith(
        f"python -m aae_ray.generate 'my decoder' --count 64 --out samples.png{version} --tracking-uri"
    )
    tries = [text for label, text in next_commands(report) if label == "promote"]
    assert tries == (
        [] if champion else ["python -m aae_ray.promote 'my decoder' --version 2 --tracking-uri http://host"]
    )


def test_no_password_of_an_address_is_printed(tmp_path: Path) -> None:
    made = {"name": "decoder", "version": 1, "champion": True, "reason": "the first version"}
    out = io.StringIO()
    print_report(console_for(out), closing(tmp_path, ended(), made, "https://ann:secret@host/path"))
    assert "secret" not in out.getvalue() and "https://host/path" in out.getvalue()


def test_the_report_says_how_it_went_and_what_to_type_next(tmp_path: Path) -> None:
    out = io.StringIO()
    print_report(console_for(out), closing(tmp_path, ended()))
    text = out.getvalue()
    for part in ("2 trials in 12 s: 1 complete", "t0000", "a worker [1] broke", "compare     http://host"):
        assert part in text
    assert "--resume" not in text


def test_the_report_tells_what_finalists_came_to_on_new_seeds(tmp_path: Path) -> None:
    history = History()
    first = history.finish(0.1, 0.2).number
    history.add(events.Confirming(numbers=(first,), seeds=2))
    history.another_seed(first, 0.11, 0.2)
    history.another_seed(first, 0.13, 0.2)
    history.add(events.Chosen(number=first, registration=None))
    out = io.StringIO()
    print_report(console_for(out), closing(tmp_path, history))
    assert "confirmed   t0000 on 2 new seeds: val/reconstruction_mse 0.1200 ± 0.0100 (was 0.1000)" in out.getvalue()


def test_a_stopped_study_is_resumed_by_the_command_that_is_offered(tmp_path: Path) -> None:
    history = History()
    history.begin()
    history.stop(StudyEnd.USER)
    out = io.StringIO()
    print_report(console_for(out), closing(tmp_path, history))
    assert "python -m aae_ray.tune --resume" in out.getvalue() and "no new ones" not in out.getvalue()
    assert "1 trial in 1 s: 0 complete, 0 stopped early, 0 failed, 1 unfinished (1 user)" in out.getvalue()
    assert "MLFLOW_TRACKING_PASSWORD" not in out.getvalue()
    print_report(console_for(out), closing(tmp_path, history, uri="https://ann:secret@host/path"))
    assert "MLFLOW_TRACKING_PASSWORD" in out.getvalue() and "secret" not in out.getvalue()


def test_a_study_that_was_stopped_may_go_on_without_new_trials(tmp_path: Path) -> None:
    history = History()
    history.finish(0.1, 0.2)
    history.begin()
    history.stop(StudyEnd.USER)
    report = closing(tmp_path, history)
    commands = dict(next_commands(report))
    assert commands["no new ones"] == f"{commands['resume']} study.budget.trials=2"
    out = io.StringIO()
    print_report(console_for(out), report)
    assert "report.html written, when the study ends" in out.getvalue()


def test_a_database_has_the_command_that_serves_it_and_below_it_the_addresses_that_hold_then() -> None:
    links = {
        name: f"http://localhost:5000/#/{index}" for index, name in enumerate(("study", "leaderboard", "failures"))
    }
    assert browse("sqlite:////a b/mlflow.db", links) == [
        ("compare", "mlflow ui --backend-store-uri 'sqlite:////a b/mlflow.db' --port 5000"),
        ("leaderboard", links["leaderboard"]),
        ("study", links["study"]),
    ]
    assert browse("https://host/mlflow", {}) == [("compare", "https://host/mlflow")]
