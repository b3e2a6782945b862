"""The live screen: on a terminal it shows where the study stands, in a log it says what happens."""

import io
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from rich.console import Console

from aae_ray.reporting.screen import Screen
from aae_ray.reporting.status import StudyStatus
from aae_ray.search import events
from aae_ray.search.outcomes import FailureClass, Reason, State, StudyEnd
from tests.search.histories import JSD, MSE, History


def history_of_all_states(*objectives: str) -> History:
    """Two complete trials, one that the user stopped, one that failed, and one that runs since its second attempt."""
    asked: dict[str, Any] = {"study__objectives": objectives} if objectives else {}
    history = History(time=time.time() - 3600, study__name="digits", study__budget__trials=24, train__epochs=9, **asked)
    more: dict[str, Any] = {name.replace("/", "__"): 0.5 for name in objectives[2:]}
    for _ in range(5):
        history.begin()
    history.report(0, 9, 0.03, 0.3, **more)
    history.report(1, 9, 0.02, 0.3, **more)
    history.report(2, 3, 0.05, 0.3, **more)
    history.report(4, 4, 0.04, 0.3, **more)
    history.end(0)
    history.end(1)
    history.end(2, Reason.PRUNED)
    history.fail(3, FailureClass.OUT_OF_MEMORY, "CUDA out of memory\nTraceback of a page")
    history.fail(4, FailureClass.LOST_WORKER, "node 10.0.0.3 is gone", retry=True)
    history.attempt(4)
    return history


def on_terminal(history: History, width: int = 120, height: int = 40) -> Screen:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    screen = Screen(console, Path("runs/digits-1"), history.plan)
    assert screen.live is not None
    return screen


def shown(screen: Screen, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, height=40).print(screen.render())
    return out.getvalue()


def status_of(history: History) -> StudyStatus:
    return StudyStatus.of(Path("runs/digits-1"), history.ledger, None, history.now)


def in_log(history: History, **options: Any) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, width=200), Path("runs/digits-1"), history.plan, **options), out


def replayed(history: History, screen: Screen) -> None:
    """What a study does with each event: the ledger takes it, and then the screen."""
    from aae_ray.search.ledger import Ledger

    ledger = Ledger()
    for event in history.events:
        ledger.apply(event)
        screen.handle(event, ledger)


# ------------------------------------------------------------------------------------------------------- on a terminal


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_screen_shows_every_trial_the_front_the_best_and_the_pace(width: int) -> None:
    history = history_of_all_states()
    screen = on_terminal(history, width)
    replayed(history, screen)
    text = shown(screen, width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert "4/24" in text and "1 running  2 complete" in text
    if width >= 80:
        assert "1 running  2 complete  1 stopped  1 failed" in text
        assert "4 trials/h" in text and "left" in text and "hours" in text
    assert "front: 1 trial" in text
    assert any("best" in line and "0.0200" in line and "t0001" in line for line in lines)
    for name, state, epoch in (
        ("t0000", "complete", "9/9"),
        ("t0002", "stopped: pruned", "3/9"),
        ("t0003", "failed: out_of_memory", "0/9"),
        ("t0004", "running, attempt 2", "4/9"),
    ):
        (line,) = [line for line in lines if line.startswith(name)]
        assert width < 80 or (state in line and epoch in line)
    assert text.index("t0004 ") < text.index("t0003 ")  # what runs comes first
    assert "1 out_of_memory" in text and "CUDA out of memory" in text and "Traceback" not in text


def test_before_the_first_trial_the_screen_says_what_it_waits_for() -> None:
    history = History(study__budget__trials=24)
    text = shown(on_terminal(history))
    assert "starting Ray" in text and "24 trials" in text and "front" not in text
    screen = on_terminal(history)
    replayed(history, screen)
    text = shown(screen)
    assert "starting Ray" in text and "0/24" in text and "front" not in text


def test_the_screen_keeps_notes_and_says_what_keeps_mlflow() -> None:
    history = history_of_all_states()
    screen = on_terminal(history)
    replayed(history, screen)
    screen.note("give each trial a GPU")
    screen.note_tracking("MLflow is unreachable: connection refused", 17)
    screen.say("measuring t0001 on the test images")
    text = shown(screen)
    assert "note: give each trial a GPU" in text and "measuring t0001 on the test images" in text
    assert "MLflow: MLflow is unreachable: connection refused; 17 records pending" in text
    screen.note_tracking(None, 3)
    assert "records pending" not in shown(screen)
    screen.note_storage("ExpiredToken: The provided token has expired. (UploadPart)")
    assert "study.folder: ExpiredToken: The provided token has expired. (UploadPart); tried again" in shown(screen)
    screen.note_storage(None)
    assert "study.folder:" not in shown(screen)


def test_the_screen_fits_a_low_terminal() -> None:
    history = history_of_all_states()
    for _ in range(20):
        history.finish(0.1, 0.1)
    screen = on_terminal(history, height=24)
    replayed(history, screen)
    assert len(shown(screen).splitlines()) <= 24


def test_drawing_costs_no_more_when_there_are_more_trials() -> None:
    def seconds(trials: int) -> float:
        history = History(study__budget__trials=20_000)
        for index in range(trials):
            history.finish(0.1 + index % 7, 0.1 + index % 5)
        history.begin()
        screen = on_terminal(history)
        screen.handle(history.events[-1], history.ledger)
        shown(screen)
        times = []
        for _ in range(7):
            began = time.perf_counter()
            shown(screen)
            times.append(time.perf_counter() - began)
        return min(times)

    assert seconds(10_000) < 2 * seconds(100)


def everything(history: History, chance: random.Random) -> Iterator[None]:
    """A study of three trials that go on and on, in which all happens that takes something away from a ledger."""
    numbers = [history.begin() for _ in range(3)]
    while True:
        trial = history.trial(chance.choice(numbers))
        if history.ledger.end is not None:
            history.resume()
        elif trial.state is State.WAITING:
            history.attempt(trial.number)
        else:
            match chance.randrange(20):
                case 0:
                    history.stop(StudyEnd.DISK, "the disk is full")
                case 1:
                    history.add(events.Chosen(number=trial.number, registration=None))
                case 2:
                    history.add(events.Promoted(name="decoder", version=1, champion=True, reason="it is better"))
                case 3 | 4 | 5 | 6 | 7:
                    history.fail(trial.number, chance.choice(list(FailureClass)), retry=True)
                case _:  # an objective that is costly is not measured after every epoch
                    history.report(trial.number, trial.epoch + 1, 0.1, chance.choice((0.4, None)))
        yield


@pytest.mark.parametrize("seed", range(30))
def test_the_screen_is_drawn_while_the_study_goes_on(seed: int) -> None:
    """Its thread and the study's may take turns after any instruction: here they do after every one."""
    history = History(study__budget__trials=10_000, study__budget__worker_hours=1000.0)
    for mse in (0.3, 0.2, 0.1):
        history.finish(mse, 0.5 - mse)
    screen, study = on_terminal(history), everything(history, random.Random(seed))
    next(study)
    screen.handle(history.events[-1], history.ledger)

    def instruction(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if "aae_ray" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            next(study)
            screen.note_tracking(None if screen.tracking else "MLflow is unreachable", 1)
        return instruction

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 traces instructions where one frame asked for it before
    sys.settrace(instruction)
    try:
        drawn = screen.render()
    finally:
        sys.settrace(before)
    assert len(history.events) > 1000
    shown = io.StringIO()
    Console(file=shown, width=120).print(drawn)
    assert "None" not in shown.getvalue()


# -------------------------------------------------------------------------------------------------------------- a log


def test_a_log_has_a_line_for_each_event_and_nothing_that_moves() -> None:
    history = history_of_all_states()
    history.stop(StudyEnd.USER)
    screen, out = in_log(history)
    with screen:
        screen.say("starting 2 gangs")
        replayed(history, screen)
    title, *lines = out.getvalue().splitlines()
    assert title.startswith("digits: digits, 24 trials of 9 epochs, val/reconstruction_mse") and "\x1b" not in title
    assert [line.partition("] ")[2] for line in lines] == [
        "starting 2 gangs",
        *(f"t000{number} begins: mixture-z8" for number in range(5)),
        f"t0000 complete after 9 epochs  {MSE}=0.0300  {JSD}=0.3000  [1/24]",
        f"t0001 complete after 9 epochs  {MSE}=0.0200  {JSD}=0.3000  [2/24]",
        f"t0002 stopped (pruned) after 3 epochs  {MSE}=0.0500  {JSD}=0.3000  [3/24]",
        "t0003 attempt 1 failed (out_of_memory): CUDA out of memory; it is not tried again",
        "t0003 failed (out_of_memory) after 0 epochs  [4/24]  CUDA out of memory",
        "t0004 attempt 1 failed (lost_worker): node 10.0.0.3 is gone; it is tried again",
        "t0004 begins, attempt 2 at epoch 4: mixture-z8",
        "stopped (user); a resume goes on with 1 open trial",
    ]


def test_a_log_tells_the_best_trial_by_its_means_over_seeds() -> None:
    history = History(study__seeds_per_trial=2)
    history.finish(0.1, 0.2)
    history.another_seed(0, 0.2, 0.4)
    history.add(events.Chosen(number=0, registration={}))
    screen, out = in_log(history)
    replayed(history, screen)
    *_, seed, best = [line.partition("] ")[2] for line in out.getvalue().splitlines()]
    assert seed.startswith(f"t0001 complete after 27 epochs  {MSE}=0.2000  {JSD}=0.4000")
    assert best == f"t0000 is the best trial  {MSE}=0.1500  {JSD}=0.3000"


def test_a_log_says_how_a_study_ends() -> None:
    history = History(train__epochs=3)
    number = history.finish(0.1, 0.2).number
    history.add(events.Noted(text="a plot could not be drawn"))
    metrics = {"test/reconstruction_mse": 0.11, "test/jsd_nats": 0.21}
    history.add(events.Measured(number=number, metrics=metrics, remarks=(), tags={}))
    history.add(events.Chosen(number=number, registration={}))
    history.add(events.Promoted(name="aae-digits-decoder", version=3, champion=True, reason="the first version"))
    history.add(events.StudyEnded())
    history.resume()
    screen, out = in_log(history)
    replayed(history, screen)
    text = [line.partition("] ")[2] for line in out.getvalue().splitlines()]
    assert text[2:] == [
        "note: a plot could not be drawn",
        "t0000 on the test images  test/reconstruction_mse=0.1100  test/jsd_nats=0.2100",
        f"t0000 is the best trial  {MSE}=0.1000  {JSD}=0.2000",
        "registered as aae-digits-decoder version 3, champion: the first version",
        "ended",
        "resumed, with 0 of 1 trial open",
    ]


def test_a_log_says_once_what_is_said_often() -> None:
    screen, out = in_log(History())
    for _ in range(3):
        screen.note("[not markup]")
        screen.say("sending the last records")
        screen.note_tracking("MLflow is unreachable", 5)
    for operation in ("PutObject", "UploadPart"):
        screen.note_storage(f"Access Denied ({operation})")
    for _ in range(3):
        screen.note_tracking(None, 0)
        screen.note_storage(None)
    assert [line.partition("] ")[2] for line in out.getvalue().splitlines()] == [
        "note: [not markup]",
        "sending the last records",
        "MLflow: MLflow is unreachable; 5 records pending",
        "study.folder: Access Denied (PutObject)",
        "MLflow takes records again",
        "study.folder takes what happens again",
    ]


def test_a_log_says_once_a_minute_how_far_a_long_trial_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    history = history_of_all_states()
    screen, out = in_log(history)
    start = history.events[-1]
    with screen:
        screen.handle(start, history.ledger)
        for now[0] in (130.0, 159.0, 161.0, 190.0, 222.0):
            report = history.report(4, history.trial(4).epoch + 1, 0.04, wait=1)
            screen.handle(report, history.ledger)
    _, _, *lines = out.getvalue().splitlines()
    assert [line[:11] for line in lines] == ["[  61.0 s] ", "[ 122.0 s] "]
    assert f"t0004 at epoch 7 of 9  {MSE}=0.0400" in lines[0] and "t0004 at epoch 9 of 9" in lines[1]


def test_a_log_says_once_a_minute_how_far_a_long_epoch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    history = history_of_all_states()
    screen, out = in_log(history)
    screen.handle(history.events[-1], history.ledger)
    for index, now[0] in enumerate((130.0, 161.0, 190.0, 222.0)):
        screen.handle(history.progress(4, 100 * (index + 1)), history.ledger)
    _, *lines = out.getvalue().splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        f"t0004 in epoch 5 of 9, batch 200 of 469 (43%)  {MSE}=0.0400  {JSD}=0.3000",
        f"t0004 in epoch 5 of 9, batch 400 of 469 (85%)  {MSE}=0.0400  {JSD}=0.3000",
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_screen_shows_how_far_a_long_epoch_is(width: int) -> None:
    history = history_of_all_states()
    screen = on_terminal(history, width)
    for done, text in ((1, "4.00/9"), (176, "4.37/9"), (468, "4.99/9")):
        history.progress(4, done)
        screen.ledger = history.ledger
        (line,) = [line for line in shown(screen, width).splitlines() if line.startswith("t0004 ")]
        assert text in line and "running, attempt 2" in line and "0.0400" in line and "0.3000" in line
    assert status_of(history).to_json()["latest"][0]["batches"] == {"done": 468, "of": 469}
    history.report(4, 5, 0.04, 0.3)
    (line,) = [line for line in shown(screen, width).splitlines() if line.startswith("t0004 ")]
    assert "5/9" in line and "." not in line.partition("/9")[0]
    history.progress(4, 100)
    history.fail(4, FailureClass.LOST_WORKER, retry=True)  # its next attempt begins the epoch anew
    assert history.trial(4).batches is None


def test_the_last_words_are_printed_as_they_are() -> None:
    screen, out = in_log(History())
    screen.end("Ray has ended [sic]; go on with\n  python -m aae_ray.tune --resume runs/x")
    assert out.getvalue() == "Ray has ended [sic]; go on with\n  python -m aae_ray.tune --resume runs/x\n"


def test_that_finalists_are_confirmed_is_told() -> None:
    history = History(time=time.time() - 60)
    history.finish(0.02, 0.3)
    history.finish(0.03, 0.2)
    history.add(events.Confirming(numbers=(1, 0), seeds=1))
    log, out = in_log(history)
    replayed(history, log)
    assert "confirming t0001, t0000 on 1 new seed each" in out.getvalue()
    screen = on_terminal(history)
    screen.ledger = history.ledger
    assert "confirming t0001, t0000 on new seeds" in shown(screen)
    history.another_seed(1, 0.03, 0.2)
    assert "confirming t0000 on new seeds" in shown(screen)
    history.another_seed(0, 0.03, 0.2)
    assert "confirming" not in shown(screen)
