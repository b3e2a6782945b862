"""A trial on a gang that is made up: what becomes of a suggestion, of reports, of failures, and of what is on disk."""

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aae_ray.execution import orders
from aae_ray.execution.durable import durable_folder
from aae_ray.execution.failures import Failed, GangError, failure_of
from aae_ray.execution.orders import Order, Train, Trained
from aae_ray.execution.trial import Trial
from aae_ray.search.contract import Failure, Progress, Report, Suggestion, from_result
from aae_ray.search.outcomes import FailureClass, Reason
from aae_ray.search.store import TRIALS
from aae_ray.settings import Settings, replace, run_values
from aae_ray.training.loop import Interval

LOST = Failed(FailureClass.LOST_WORKER, "the worker died", "Traceback ...", "last words")


class FakeGang:
    """Answers every order in no time, or fails as it was told to."""

    def __init__(self, *, never_ready: bool = False, closes: bool = True) -> None:
        self.alive, self.under_way, self.closed = True, False, 0
        self.never_ready, self.closes = never_ready, closes
        self.orders: list[Order] = []
        self.answer: Failed | GangError | None = None
        self.stop_reason: str | None = None
        self.epoch = 0
        self.progress: list[orders.Progress] = []  # what it says before its replies

    def wait_until_ready(self) -> None:
        if self.never_ready:
            raise GangError(Failed(FailureClass.CANNOT_START, "no GPU is free"))

    def post(self, order: Order) -> None:
        self.orders.append(order)
        self.under_way = True

    def reply(self) -> Trained | Failed | orders.Progress:
        if self.progress:
            return self.progress.pop(0)
        self.under_way = False
        if isinstance(self.answer, GangError):
            raise self.answer
        if self.answer is not None:
            return self.answer
        order = self.orders[-1]
        assert isinstance(order, Train)
        if order.begin:
            self.epoch = int(order.begin.state.split()[-1]) if order.begin.state else 0
        first, self.epoch = self.epoch, order.until_epoch
        history = tuple({"epoch": float(number + 1)} for number in range(first, self.epoch))
        return Trained(Interval(self.epoch, history, self.stop_reason), b"state %d" % self.epoch, None, 2.0, 0.5)

    def close(self, timeout_s: float = 1) -> bool:
        self.closed += 1
        self.alive = False
        return self.closes


Make = Callable[..., Trial]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A trial that has been set up, with the gangs that it will get one after the other."""

    def build(
        *gangs: FakeGang, suggestion: Suggestion | None = None, folder: str = str(tmp_path), **values: Any
    ) -> Trial:
        waiting = list(gangs)

        class Faked(Trial):
            def new_gang(self) -> Any:
                return waiting.pop(0)

        trial: Trial = object.__new__(Faked)
        settings = replace(Settings(), {"train.epochs": 30, **values})
        trial.setup((suggestion or Suggestion(3, 1, {}, {"train.epochs": 27})).to_config(), settings, folder, None)
        return trial

    return build


def report(trial: Trial) -> Report:
    result = trial.step()
    parsed = from_result(result)
    assert isinstance(parsed, Report) and result["done"] == parsed.last
    return parsed


def failure(trial: Trial) -> Failure:
    result = trial.step()
    parsed = from_result(result)
    assert isinstance(parsed, Failure) and result["done"]
    return parsed


def test_a_trial_reports_at_its_rungs_with_a_state_on_the_disk(make: Make, tmp_path: Path) -> None:
    gang = FakeGang()
    trial = make(gang, suggestion=Suggestion(3, 1, {"model.latent_dim": 5}, {"train.epochs": 27}))
    begin = gang.orders[0]
    assert isinstance(begin, Train) and begin.begin is not None  # training starts before Tune asks
    assert begin.begin.settings.model.latent_dim == 5 and begin.begin.settings.train.epochs == 27
    reports = [report(trial) for _ in range(3)]
    assert [each.epoch for each in reports] == [3, 9, 27]
    assert [each.finished for each in reports] == [False, False, True]
    assert [each.checkpoint for each in reports][-1] == "trials/t0003/epoch_00027"
    assert reports[1].history == tuple({"epoch": float(epoch)} for epoch in range(4, 10))
    assert (reports[1].training_seconds, reports[1].evaluation_seconds) == (2.0, 0.5)
    assert reports[1].checkpoint_bytes == len(b"state 9")
    written = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert written == {f"trials/t0003/epoch_{epoch:05d}/state.pt" for epoch in (3, 9, 27)}
    assert trial.save_checkpoint("anywhere") == {}


def test_a_long_epoch_says_how_far_it_is_and_gets_no_other_order(make: Make) -> None:
    gang = FakeGang()
    trial = make(gang)
    gang.progress = [orders.Progress(0, 100, 469), orders.Progress(0, 200, 469)]
    for done in (100, 200):
        result = trial.step()
        assert from_result(result) == Progress(3, 0, done, 469) and not result["done"]
    assert report(trial).epoch == 3 and len(gang.orders) == 1


def test_a_suggestion_goes_on_from_its_checkpoint(make: Make, tmp_path: Path) -> None:
    report(make(FakeGang()))
    gang = FakeGang()
    suggestion = Suggestion(3, 2, {}, {"train.epochs": 27}, epoch=3, checkpoint="trials/t0003/epoch_00003")
    trial = make(gang, suggestion=suggestion)
    assert isinstance(gang.orders[0], Train) and gang.orders[0].begin is not None
    assert gang.orders[0].begin.state == b"state 3" and gang.orders[0].until_epoch == 9
    assert report(trial).history[0] == {"epoch": 4.0}


def test_the_next_trial_runs_on_the_warm_gang(make: Make) -> None:
    gang = FakeGang()
    trial = make(gang)
    report(trial)
    assert trial.reset_config(Suggestion(4, 1, {}, {"train.epochs": 2}).to_config())
    last = report(trial)
    assert (last.number, last.epoch, last.finished, last.checkpoint) == (4, 2, True, "trials/t0004/epoch_00002")
    assert not gang.closed


def test_a_health_check_ends_a_trial(make: Make) -> None:
    gang = FakeGang()
    gang.stop_reason = "code_collapse"
    last = report(make(gang))
    assert last.stop_reason is Reason.COLLAPSED and last.last and not last.finished


def test_a_gang_that_dies_is_a_failure_and_the_next_trial_gets_a_new_one(make: Make) -> None:
    gang, new = FakeGang(), FakeGang()
    trial = make(gang, new)
    report(trial)
    gang.answer = GangError(LOST)
    failed = failure(trial)
    assert (failed.kind, failed.message, failed.traceback) == (LOST.kind, LOST.message, LOST.traceback)
    assert failed.number == 3 and failed.log_tail == "last words" and gang.closed == 1
    retry = Suggestion(3, 2, {}, {"train.epochs": 27}, epoch=3, checkpoint="trials/t0003/epoch_00003")
    trial.reset_config(retry.to_config())
    assert report(trial).epoch == 9 and new.orders


def test_a_failed_order_leaves_the_gang_as_it_is(make: Make) -> None:
    gang = FakeGang()
    trial = make(gang)
    gang.answer = Failed(FailureClass.BAD_DATA, "model.channels is too deep")
    assert failure(trial).kind is FailureClass.BAD_DATA
    gang.answer = None
    trial.reset_config(Suggestion(4, 1, {}, {"train.epochs": 27}).to_config())
    assert report(trial).number == 4 and not gang.closed


def test_a_gang_that_does_not_start_is_a_failure(make: Make) -> None:
    gang = FakeGang(never_ready=True)
    trial = make(gang, FakeGang(never_ready=True), FakeGang())
    assert failure(trial).kind is FailureClass.CANNOT_START and gang.closed == 1
    trial.reset_config(Suggestion(3, 2, {}, {"train.epochs": 27}).to_config())
    assert failure(trial).message == "no GPU is free"
    trial.reset_config(Suggestion(3, 3, {}, {"train.epochs": 27}).to_config())
    assert report(trial).epoch == 3


def test_a_process_with_a_stuck_worker_refuses_the_next_trial(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    gang = FakeGang(closes=False)
    trial = make(gang)
    gang.answer = GangError(Failed(FailureClass.HUNG, "no answer"))
    with pytest.raises(GangError, match="no answer") as raised:  # so Tune hands no other trial to this process
        trial.step()
    crossed = pickle.loads(pickle.dumps(raised.value))
    assert failure_of(3, crossed) == failure_of(3, raised.value) and failure_of(3, crossed).kind is FailureClass.HUNG
    assert trial.reset_config(Suggestion(4, 1, {}, {"train.epochs": 27}).to_config())
    with pytest.raises(GangError, match="stuck") as refused:
        trial.step()
    assert failure_of(4, refused.value).kind is FailureClass.LOST_WORKER  # and it is tried again
    ended: list[Any] = []

    class Timer:
        def __init__(self, *arguments: Any) -> None:
            ended.append(arguments)

        def start(self) -> None:
            pass

    monkeypatch.setattr("threading.Timer", Timer)
    trial.cleanup()
    assert ended == [(1.0, os._exit, (1,))]


@pytest.mark.parametrize(
    ("suggestion", "text"),
    [
        (Suggestion(3, 1, {"model.latent_dim": 1}, {"train.epochs": 27}), "latent_dim"),
        (Suggestion(3, 1, {"no.such": 1}, {"train.epochs": 27}), "no.such is not a setting"),
        (Suggestion(3, 2, {}, {"train.epochs": 27}, epoch=3, checkpoint="trials/t0003/epoch_00003"), "cannot be read"),
    ],
)
def test_a_suggestion_that_cannot_be_begun_is_bad_data(make: Make, suggestion: Suggestion, text: str) -> None:
    failed = failure(make(FakeGang(), suggestion=suggestion))
    assert failed.kind is FailureClass.BAD_DATA and text in failed.message


def test_a_full_disk_costs_a_checkpoint_and_not_the_trial(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make(FakeGang())
    with monkeypatch.context() as patched:

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr("aae_ray.execution.durable.sync", full)
        first = report(trial)
    assert first.checkpoint is None and first.checkpoint_bytes == 0 and first.epoch == 3
    assert report(trial).checkpoint == "trials/t0003/epoch_00009"


def test_a_last_state_that_cannot_be_written_fails_the_attempt(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make(FakeGang(), suggestion=Suggestion(3, 1, {}, {"train.epochs": 3}))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("aae_ray.execution.durable.sync", full)
    failed = failure(trial)
    assert failed.kind is FailureClass.NOT_SAVED and "last epoch, 3" in failed.message


class Elsewhere:
    """A study's folder at a URI that can be reached or not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, f"file://{folder}"

    def vanish(self) -> None:
        if self.folder.exists():
            self.folder.rename(f"{self.folder}.away")
        self.folder.write_text("a file, below which nothing can be")

    def come_back(self) -> None:
        self.folder.unlink()
        Path(f"{self.folder}.away").rename(self.folder)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    monkeypatch.setattr("aae_ray.execution.trial.RETRY_SECONDS", 0.01)
    (tmp_path / "there").mkdir()
    return Elsewhere(tmp_path / "there")


def nothing_new(trial: Trial) -> bool:
    return isinstance(from_result(trial.step()), Progress)


def said_at_last(trial: Trial) -> Failure:
    said = from_result(trial.step())
    while isinstance(said, Progress):
        said = from_result(trial.step())
    assert isinstance(said, Failure)
    return said


def test_a_last_state_waits_for_a_folder_that_is_elsewhere(make: Make, elsewhere: Elsewhere) -> None:
    gang = FakeGang()
    trial = make(gang, suggestion=Suggestion(3, 1, {}, {"train.epochs": 3}), folder=elsewhere.uri)
    elsewhere.vanish()
    assert nothing_new(trial) and nothing_new(trial)
    elsewhere.come_back()
    last = report(trial)
    assert last.finished and last.epoch == 3 and last.checkpoint == "trials/t0003/epoch_00003"
    assert len(gang.orders) == 1  # it was trained once
    assert (elsewhere.folder / last.checkpoint / "state.pt").read_bytes() == b"state 3"


def test_a_first_state_waits_for_a_folder_that_is_elsewhere(make: Make, elsewhere: Elsewhere) -> None:
    report(make(FakeGang(), folder=elsewhere.uri))
    again = Suggestion(3, 2, {}, {"train.epochs": 27}, epoch=3, checkpoint="trials/t0003/epoch_00003")
    elsewhere.vanish()
    gang = FakeGang()
    trial = make(gang, suggestion=again, folder=elsewhere.uri)
    assert nothing_new(trial) and nothing_new(trial) and not gang.orders
    elsewhere.come_back()
    assert [row["epoch"] for row in report(trial).history] == [4, 5, 6, 7, 8, 9]


def test_a_trial_does_not_wait_for_ever(make: Make, elsewhere: Elsewhere) -> None:
    short = {"study.storage_timeout": 0.02}
    elsewhere.vanish()
    trial = make(FakeGang(), suggestion=Suggestion(3, 1, {}, {"train.epochs": 3}), folder=elsewhere.uri, **short)
    assert said_at_last(trial).kind is FailureClass.NOT_SAVED
    again = Suggestion(3, 2, {}, {"train.epochs": 27}, epoch=3, checkpoint="trials/t0003/epoch_00003")
    trial = make(FakeGang(), suggestion=again, folder=elsewhere.uri, **short)
    failed = said_at_last(trial)
    assert failed.kind is FailureClass.CANNOT_START and "cannot be read: Not a directory" in failed.message


def test_a_process_on_a_node_that_lacks_something_takes_no_other_trial(make: Make, tmp_path: Path) -> None:
    nowhere = make(FakeGang(), folder=str(tmp_path / "not mounted"))
    with pytest.raises(GangError, match="does not see study.folder") as caught:
        nowhere.step()
    assert failure_of(3, caught.value).kind is FailureClass.BAD_NODE
    gang = FakeGang()
    gang.answer = Failed(FailureClass.BAD_NODE, "node7 has other data", node="0ab")
    with pytest.raises(GangError) as caught:
        make(gang).step()
    failed = failure_of(3, caught.value)
    assert (failed.kind, failed.node) == (FailureClass.BAD_NODE, "0ab") and gang.closed == 1


def test_a_trial_trains_with_the_settings_of_its_own_plan(make: Make) -> None:
    """An extension has changed the study's: a trial that goes on keeps those that it was suggested with."""
    gang = FakeGang()
    make(gang, suggestion=Suggestion(3, 1, {}, run_values(replace(Settings(), {"model.hidden": "24-12"}))))
    (order,) = gang.orders
    assert isinstance(order, Train) and order.begin is not None and order.begin.settings.model.hidden == (24, 12)


def test_an_attempt_that_comes_by_again_replaces_what_it_wrote(make: Make, tmp_path: Path) -> None:
    for _ in range(2):
        report(make(FakeGang()))
    assert [path.name for path in (tmp_path / TRIALS / "t0003").iterdir()] == ["epoch_00003"]


def test_no_checkpoint_of_another_name_appears_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "trials" / "t0001" / "epoch_00001"
    with pytest.raises(RuntimeError), durable_folder(target) as partial:
        (partial / "state.pt").write_bytes(b"half")
        assert not target.exists()
        raise RuntimeError
    assert not list(target.parent.iterdir())


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", range(6))
def test_a_folder_that_is_replaced_is_whole_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """A kill before each change of a name, and an attempt that comes by again after it."""
    target = tmp_path / "epoch_00001"

    def write(content: str, *names: str) -> None:
        with durable_folder(target) as partial:
            for name in names:
                (partial / name).write_text(content)

    write("old", "state.pt", "codes.npy", "more.npy")
    done = 0

    def mortal(method: str) -> Callable[..., Any]:
        own = getattr(Path, method)

        def changed(path: Path, *arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > last:
                raise Killed
            return own(path, *arguments, **options)

        return changed

    with monkeypatch.context() as patched:
        for method in ("rename", "replace", "unlink"):
            patched.setattr(Path, method, mortal(method))
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # a process that is killed tidies nothing up
        with contextlib.suppress(Killed):
            write("new", "state.pt", "codes.npy")
    assert (target / "state.pt").read_text() in ("old", "new") and (target / "codes.npy").read_text() in ("old", "new")

    write("newest", "state.pt", "codes.npy")
    assert {path.name: path.read_text() for path in target.iterdir()} == {"state.pt": "newest", "codes.npy": "newest"}
