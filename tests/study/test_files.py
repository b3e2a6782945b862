"""The figures of a study's trials: each is drawn once, whatever is resumed and interrupted."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation import figure_data
from aae_ray.search import events
from aae_ray.search.journal import StudyLock
from aae_ray.search.outcomes import Reason, RungVerdict, StudyEnd
from aae_ray.search.store import Store
from aae_ray.study.files import TrialFiles
from aae_ray.study.study import Session
from tests.search.histories import History

GATE = threading.Event()  # drawing waits for it


@pytest.fixture(autouse=True)
def drawing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Figures that cost nothing."""

    def draw(data: object) -> dict[str, bytes]:
        assert GATE.wait(30)
        return dict.fromkeys(figure_data.FIGURES, b"png")

    GATE.set()
    monkeypatch.setattr(figure_data, "load", lambda content: {"title": content})
    monkeypatch.setattr(figure_data, "draw", draw)
    yield
    GATE.set()


class Counted(Store):
    """A store that counts how often it is asked something that may be far away."""

    asked = 0

    def files(self, relative: str = "") -> list[str]:
        self.asked += 1
        return super().files(relative)


def ended(folder: Path, trials: int) -> History:
    """A study with trials that are complete, equally good, and have their checkpoints."""
    history = History()
    for _ in range(trials):
        trial = history.finish(0.1, 0.2)
        saved = folder / str(trial.checkpoint)
        saved.mkdir(parents=True)
        (saved / "state.pt").write_bytes(b"state")
        (saved / figure_data.FILE).write_bytes(b"data")
    return history


def session(history: History, store: Store, keep: str = "front") -> list[str]:
    """Resume the study and let its files come to an end; what was drawn, which the journal then has."""
    files = TrialFiles(store, keep)
    files.take_up(history.ledger)
    files.close()
    written = files.drain()
    for event in written:
        history.add(event)
    return [event.path for event in written]


def test_a_resume_draws_what_the_journal_does_not_have(tmp_path: Path) -> None:
    history, store = ended(tmp_path, 3), Counted(tmp_path)
    sheet = "figures/t0001/nearest.png"  # of a finalist, and no figure of its training
    history.add(events.FileWritten(number=1, path=sheet, folder="figures"))
    first = session(history, store)
    assert first == [f"figures/t000{number}/27/{name}" for number in range(3) for name in figure_data.FIGURES]
    assert store.asked == 1
    assert session(history, store) == []
    history.finish(0.1, 0.2)
    assert session(history, store) == []  # its checkpoint is gone


def test_of_a_study_elsewhere_nothing_is_fetched_to_draw_but_the_data_of_figures(tmp_path: Path) -> None:
    """The state beside them is many times as large, and would stay here."""
    history, here = ended(tmp_path / "there", 2), tmp_path / "here"
    drawn = session(history, Store(here, f"file://{tmp_path}/there"))
    assert len(drawn) == 2 * len(figure_data.FIGURES)
    assert not list(here.rglob("state.pt")) and not (here / "trials").exists()


def test_a_trial_that_ends_as_a_resume_begins_is_drawn_once(tmp_path: Path) -> None:
    history = ended(tmp_path, 1)
    files = TrialFiles(Store(tmp_path), "all")
    files.handle(history.events[-1], history.ledger)
    files.take_up(history.ledger)
    files.close()
    assert len(files.drain()) == len(figure_data.FIGURES)


def test_a_resume_deletes_the_checkpoints_that_a_crash_left(tmp_path: Path) -> None:
    history = ended(tmp_path, 2)
    history.report(history.begin(), 1, 0.5, 0.5)
    history.end(2, Reason.PRUNED)
    worse = tmp_path / str(history.trial(2).checkpoint)
    worse.mkdir(parents=True)
    (worse / "state.pt").write_bytes(b"state")
    for name, number in (("t0000", 0), ("t0001", 1), ("t0002", 2)):  # as the trials' own checkpoints are named
        trial = history.trial(number)
        (tmp_path / "trials" / str(number)).rename(tmp_path / "trials" / name)
        trial.checkpoint = str(trial.checkpoint).replace(f"trials/{number}/", f"trials/{name}/")
    session(history, Store(tmp_path))
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["t0000", "t0001"]


def test_a_store_that_cannot_be_reached_ends_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Counted(tmp_path, "s3://bucket/study")

    def unreachable(relative: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(store, "_at", unreachable)
    assert session(ended(tmp_path, 3), store) == [] and store.asked == 1
    assert session(History(), store) == [] and store.asked == 1  # of a new study there is nothing to ask


def test_ctrl_c_waits_for_one_figure_at_most(tmp_path: Path, digits: Dataset) -> None:
    history = ended(tmp_path, 5)
    GATE.clear()
    files = TrialFiles(Store(tmp_path), "all")
    files.take_up(history.ledger)
    history.stop(StudyEnd.USER)
    running = Session(
        tmp_path, "sqlite:///unused.db", digits, Console(file=io.StringIO()), False, True, events.StudyEnded(),
        StudyLock(tmp_path), None,
    )  # fmt: skip
    running._finish(cast(Any, SimpleNamespace(ledger=history.ledger)), files, cast(Any, None))
    GATE.set()
    files.close()
    assert {event.number for event in files.drain()} <= {0}


def save(folder: Path, checkpoint: str | None) -> Path:
    """The checkpoint of a trial, as its worker would have written it."""
    saved = folder / str(checkpoint)
    saved.mkdir(parents=True)
    (saved / "state.pt").write_bytes(b"state")
    (saved / figure_data.FILE).write_bytes(b"data")
    return saved


def decided(number: int, verdict: RungVerdict) -> events.Decided:
    return events.Decided(number=number, rung=3, values=(0.9, 0.9), ahead=1, reached=2, verdict=verdict)


def test_a_trial_is_drawn_when_it_pauses_and_keeps_its_checkpoint_when_the_study_ends(tmp_path: Path) -> None:
    history, files = ended(tmp_path, 1), TrialFiles(Store(tmp_path), "front")
    number = history.begin()
    history.report(number, 3, 0.9, 0.9)
    saved = save(tmp_path, history.trial(number).checkpoint)
    files.handle(history.add(decided(number, RungVerdict.PAUSE)), history.ledger)
    files.executor.submit(lambda: None).result()
    assert {event.path for event in files.drain()} == {f"figures/t0001/3/{name}" for name in figure_data.FIGURES}
    files.handle(history.add(events.Ended(number=number, reason=Reason.PAUSED)), history.ledger)
    files.close()
    assert files.drain() == [] and saved.exists()


@pytest.mark.parametrize("crash", [False, True], ids=["in one session", "a crash before the new figures"])
def test_a_trial_that_goes_on_after_a_pause_is_drawn_anew(tmp_path: Path, crash: bool) -> None:
    history, files = ended(tmp_path, 1), TrialFiles(Store(tmp_path), "all")
    number = history.begin()
    history.report(number, 3, 0.9, 0.9)
    save(tmp_path, history.trial(number).checkpoint)
    files.handle(history.add(decided(number, RungVerdict.PAUSE)), history.ledger)
    files.handle(history.add(decided(number, RungVerdict.CONTINUE)), history.ledger)
    files.handle(history.add(events.AttemptStarted(number=number, attempt=2, epoch=3)), history.ledger)
    files.executor.submit(lambda: None).result()
    for event in files.drain():  # drawn when it had gone on already
        history.add(event)
    history.report(number, 27, 0.05, 0.05)
    save(tmp_path, history.trial(number).checkpoint)
    last = history.add(events.Ended(number=number, reason=Reason.COMPLETED))
    if crash:
        files.close()
        files = TrialFiles(Store(tmp_path), "all")
        files.take_up(history.ledger)
    else:
        files.handle(last, history.ledger)
    files.close()
    new = {event.path for event in files.drain() if event.number == number}
    assert new == {f"figures/t0001/27/{name}" for name in figure_data.FIGURES}


def test_who_may_come_back_to_the_front_keeps_its_checkpoint_until_the_end(tmp_path: Path) -> None:
    history = History(study__seeds_per_trial=2)
    files = TrialFiles(Store(tmp_path), "front")

    def end(number: int) -> None:
        trial = history.trial(number)
        trial.checkpoint = f"trials/{trial.name}/epoch_00027"
        save(tmp_path, trial.checkpoint)
        files.handle(history.add(events.Ended(number=number, reason=Reason.COMPLETED)), history.ledger)

    for mse, seed_of in ((0.1, None), (0.11, None), (0.3, None), (0.2, 0)):
        number = len(history.ledger.trials)
        history.add(events.Suggested(number=number, params={}, replicate_of=seed_of))
        history.attempt(number)
        history.report(number, 27, mse, mse)
        end(number)
    assert [trial.number for trial in history.ledger.front()] == [1]  # 0 was before its second seed

    def kept() -> list[str]:
        return sorted(path.name for path in (tmp_path / "trials").iterdir())

    files.close()
    assert kept() == ["t0000", "t0001", "t0002"]
    files.handle(history.add(events.StudyEnded()), history.ledger)
    assert kept() == ["t0001"]


def test_all_checkpoints_stay_until_all_trials_were_measured_where_a_study_asks_for_that(tmp_path: Path) -> None:
    history = History(study__finalists="all")
    files = TrialFiles(Store(tmp_path), "front")
    for mse in (0.3, 0.1, 0.2):
        number = len(history.ledger.trials)
        history.add(events.Suggested(number=number, params={}))
        history.attempt(number)
        history.report(number, 27, mse, mse)
        trial = history.trial(number)
        trial.checkpoint = f"trials/{trial.name}/epoch_00027"
        save(tmp_path, trial.checkpoint)
        files.handle(history.add(events.Ended(number=number, reason=Reason.COMPLETED)), history.ledger)
    files.close()
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["t0000", "t0001", "t0002"]
    files.handle(history.add(events.StudyEnded()), history.ledger)
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["t0001"]


def test_a_population_keeps_the_checkpoints_that_others_go_on_from(tmp_path: Path) -> None:
    history = History(study__pruner__type="pbt")
    files = TrialFiles(Store(tmp_path), "front")
    for number, mse in enumerate((0.1, 0.9)):
        history.begin()
        history.report(number, 3, mse, mse)
        history.trial(number).checkpoint = f"trials/t000{number}/epoch_00003"
        save(tmp_path, history.trial(number).checkpoint)
        files.handle(history.add(decided(number, RungVerdict.PAUSE)), history.ledger)
    donated = str(history.trial(0).checkpoint)
    history.add(events.Exploited(number=1, donor=0, epoch=3, checkpoint=donated, params={}))
    files.handle(history.add(decided(0, RungVerdict.CONTINUE)), history.ledger)
    history.attempt(0)
    saved = save(tmp_path, "trials/t0000/epoch_00006")
    report = history.report(0, 6, 0.05, 0.05).model_copy(update={"checkpoint": "trials/t0000/epoch_00006"})
    history.trial(0).checkpoint = "trials/t0000/epoch_00006"
    files.handle(report, history.ledger)
    files.close()
    assert saved.exists() and (tmp_path / donated).exists()
    assert files.drain() == []  # it goes on as a whole, and is drawn at its end
