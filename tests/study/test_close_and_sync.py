"""What can be done with a study without going on with it: close it, and send what MLflow has not taken."""

import shutil
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from rich.console import Console

from aae_ray.errors import UserError
from aae_ray.reporting.html_report import REPORT
from aae_ray.search import events, journal
from aae_ray.search.journal import JOURNAL, Journal, StudyLock, read_events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import StudyEnd
from aae_ray.search.space import Plan
from aae_ray.search.store import Store, pull_journal
from aae_ray.settings import Settings, replace
from aae_ray.study.mirror import Mirror
from aae_ray.study.study import close_study, resume_study, sync
from tests.search.heart import beating
from tests.search.histories import History
from tests.tracking.little_study import DATA, runs_of

NAME = "study-1"


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO())


def said(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a study that has ended, with a figure and a decoder to register, on a machine that is no more."""

    def register(client: Any, run: str, request: dict[str, Any]) -> dict[str, Any]:
        assert (Path(request["folder"]) / "MLmodel").exists()
        return {"name": "decoder", "version": 1, "champion": True, "reason": "the first"}

    monkeypatch.setattr("aae_ray.tracking.writer.register", register)
    monkeypatch.chdir(tmp_path)
    searched: dict[str, BaseDistribution] = {
        "model.latent_dim": IntDistribution(2, 16), "model.prior": CategoricalDistribution(("gaussian", "mixture")),
    }  # fmt: skip
    settings = replace(Settings(), {"study.folder": f"file://{tmp_path}/there"})
    history = History(Plan(settings, searched), study_id=NAME)
    history.finish(0.5, 0.5)
    history.add(events.FileWritten(number=0, path="figures/t0000/a.png", folder="figures"))
    history.add(events.Chosen(number=0, registration={"folder": "decoder", "name": "decoder"}))
    gone = history.write(tmp_path / "gone" / NAME)
    for name in ("figures/t0000/a.png", "decoder/MLmodel"):
        (gone / name).parent.mkdir(parents=True)
        (gone / name).write_bytes(b"content")
    mirror = Mirror(Store(gone, f"file://{tmp_path}/there/{NAME}"))
    mirror.start(Journal.open(gone))
    mirror.close()
    shutil.rmtree(tmp_path / "gone")
    yield f"file://{tmp_path}/there/{NAME}"


def last(uri: str, folder: Path) -> events.Event:
    """The last event of the journal that is elsewhere, as another machine gets it."""
    pull_journal(Store(folder, uri))
    return read_events(folder)[-1]


@pytest.mark.parametrize("left", ["", "half"])
def test_a_study_elsewhere_is_sent_with_its_files_and_keeps_what_came_of_it(
    elsewhere: str, database: str, console: Console, tmp_path: Path, left: str
) -> None:
    if left:  # a machine that was there before has less of it
        here = tmp_path / "runs" / NAME
        here.mkdir(parents=True)
        pull_journal(Store(here, elsewhere))
        content = (here / JOURNAL).read_bytes().splitlines(keepends=True)
        (here / JOURNAL).write_bytes(b"".join(content[:2]))
    assert sync(NAME if left else elsewhere, console, uri=database)
    assert "decoder version 1" in said(console) and "0 left" in said(console)
    assert runs_of(database).keys() == {f"study-{NAME}", "t0000-mixture-z8"}
    assert isinstance(last(elsewhere, tmp_path / "another"), events.Promoted)
    assert not (tmp_path / "there" / NAME / "owner.json").exists()
    assert (tmp_path / "there" / NAME / "mlflow.json").exists()

    assert sync(NAME, console, uri=database) and "1 record sent" in said(console)  # what came of it is one itself
    promoted = [event for event in read_events(tmp_path / "runs" / NAME) if isinstance(event, events.Promoted)]
    assert len(promoted) == 1 and not list((tmp_path / "runs" / NAME).glob("*.diverged-*"))


def test_a_report_that_was_written_before_the_registration_is_written_and_sent_anew(
    elsewhere: str, database: str, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "runs" / NAME / REPORT
    (tmp_path / "there" / NAME / REPORT).write_text("not decided yet")
    assert sync(elsewhere, console, uri=database)
    assert "version 1" in report.read_text() and "not decided yet" not in report.read_text()
    client = MlflowClient(database)
    (parent,) = (run for name, run in runs_of(database).items() if name == f"study-{NAME}")
    sent = Path(client.download_artifacts(parent.info.run_id, REPORT, str(tmp_path)))
    assert sent.read_text() == report.read_text()


def test_a_report_that_cannot_be_written_anew_costs_no_record(
    elsewhere: str, database: str, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    (tmp_path / "there" / NAME / REPORT).write_text("not decided yet")
    monkeypatch.setattr("aae_ray.study.study.write_report", fails)
    assert sync(elsewhere, console, uri=database)
    assert "could not be written anew: the disk is full" in said(console) and "decoder version 1" in said(console)


def test_a_study_elsewhere_is_closed_there_and_its_journal_is_read_once(
    elsewhere: str, database: str, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[Path] = []
    read = journal._read

    def noted(folder: Path) -> tuple[list[events.Event], int]:
        parsed.append(folder)
        return read(folder)

    monkeypatch.setattr(journal, "_read", noted)
    close_study(elsewhere, console, uri=database)
    assert parsed == [tmp_path / "runs" / NAME] and f"{NAME} is closed" in said(console)
    ended, made = read_events(tmp_path / "runs" / NAME)[-2:]
    assert isinstance(ended, events.StudyStopped) and ended.end is StudyEnd.INTERRUPTED
    assert isinstance(made, events.Promoted) and last(elsewhere, tmp_path / "another") == made


def test_a_study_elsewhere_that_another_machine_owns_is_left_alone(
    elsewhere: str, database: str, console: Console, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()}
    owner = tmp_path / "there" / NAME / "owner.json"
    owner.write_text('{"host": "another", "pid": 7}')
    for command in (sync, close_study):
        with beating(owner), pytest.raises(UserError, match="in use by process 7 on another"):
            command(elsewhere, console, uri=database)
    with beating(owner), pytest.raises(UserError, match="in use by process 7 on another"):
        resume_study(elsewhere, [], console)
    assert said(console).count("waiting for its next sign of life, 60 s at most") == 3
    owner.unlink()
    assert {path: path.read_bytes() for path in (tmp_path / "there").rglob("*") if path.is_file()} == before
    lock = StudyLock(tmp_path / "runs" / NAME)
    lock.acquire()  # nobody has kept it
    lock.release()


def test_a_study_that_is_refused_is_let_go_of(elsewhere: str, console: Console, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        resume_study(elsewhere, ["train.epoch=3"], console)
    assert not list(tmp_path.glob("*/*/owner.json"))


def test_a_running_study_is_neither_synced_nor_closed_by_another_process(
    tmp_path: Path, database: str, console: Console
) -> None:
    folder = History(study_id=NAME).write(tmp_path / NAME)
    lock = StudyLock(folder)
    lock.acquire()
    for command in (sync, close_study):
        with pytest.raises(UserError, match="in use by process"):
            command(NAME, console, uri=database, root=tmp_path)
    lock.release()
    assert Ledger.replay(read_events(folder)).end is None


def test_a_folder_without_a_journal_is_a_sentence(tmp_path: Path, console: Console) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is not the folder of a study: there is no {JOURNAL} in it"):
        sync(str(tmp_path), console, root=tmp_path)


def test_an_evaluation_is_sent_and_not_closed(tmp_path: Path, database: str, console: Console) -> None:
    (tmp_path / "sheet.png").write_bytes(b"a picture")
    Journal.create(tmp_path).append(
        events.Evaluated(
            run_name="evaluate-x", experiment="aae/digits", params={}, metrics={}, tags={}, data=DATA, sheet="sheet.png"
        )
    )
    with pytest.raises(UserError, match="is the record of an evaluation"):
        close_study(str(tmp_path), console)
    with pytest.raises(UserError, match="is the record of an evaluation"):
        resume_study(str(tmp_path), [], console)
    assert len(read_events(tmp_path)) == 1
    assert sync(str(tmp_path), console, uri=database) and "0 left" in said(console)


def test_a_broken_journal_is_told_by_its_line(tmp_path: Path, console: Console) -> None:
    folder = History(study_id=NAME).write(tmp_path / NAME)
    (folder / JOURNAL).write_bytes(b"nothing\n" + (folder / JOURNAL).read_bytes())
    with pytest.raises(UserError, match=f"{JOURNAL}, line 1: is not an event of a study"):
        sync(str(folder), console)
    assert not (folder / "owner.json").exists()
