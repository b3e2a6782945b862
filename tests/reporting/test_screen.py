"""The live screen: on a terminal it shows where the study stands, in a log it says what happens."""

import io
from typing import Any

import pytest
from rich.console import Console

from aae_ray.reporting.screen import Screen
from aae_ray.search.ledger import USER, Ledger
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, replace

MSE, JSD = "val/reconstruction_mse", "val/jsd_nats"


def plan() -> Plan:
    return Plan(replace(Settings(), {"study.budget.trials": 24, "train.epochs": 9}), {})


def ledger_of_all_states(plan: Plan) -> Ledger:
    ledger = Ledger(plan)
    for name in ("complete", "better", "stopped", "failed", "running"):
        ledger.begin(name, {"model.latent_dim": 8, "model.prior": "mixture"})
    for name, epoch, mse, more in (
        ("complete", 9, 0.03, {"finished": True}),
        ("better", 9, 0.02, {"finished": True}),
        ("stopped", 3, 0.05, {}),
        ("running", 4, 0.04, {}),
    ):
        metrics = {"epoch": float(epoch), MSE: mse, JSD: 0.3}
        ledger.report(name, {"history": [metrics], **more})
    for name in ("complete", "better"):
        ledger.end(name)
    ledger.end("stopped", USER)
    ledger.end("failed", failed=True, message="it broke")
    return ledger


def shown(screen: Screen, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, height=40).print(screen.render())
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_shows_every_trial_the_front_the_best_and_the_pace(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    given = plan()
    ledger = ledger_of_all_states(given)
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    screen = Screen(console, ledger, given, "digits: mnist")
    assert screen.live is not None
    now[0] = 110.0
    screen.trial_ended(ledger.trials["complete"])
    now[0] = 140.0
    text = shown(screen, width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert "4/24" in text and "1 running  2 complete  1 stopped  1 failed" in text
    assert "6 trials/min" in text and "left" in text  # three more ends in thirty seconds
    assert "front: 1 trial" in text
    assert any("best" in line and "0.0200" in line and "t0001" in line for line in lines)
    for name, state, epoch in (
        ("t0000", "complete", "9/9"),
        ("t0002", "stopped: user", "3/9"),
        ("t0003", "failed: error", "0/9"),
        ("t0004", "running", "4/9"),
    ):
        (line,) = [line for line in lines if line.startswith(name)]
        assert state in line and epoch in line
    assert text.index("t0004") < text.index("t0003")  # what runs comes first


def test_before_the_first_trial_the_screen_says_what_it_waits_for() -> None:
    given = plan()
    text = shown(Screen(Console(file=io.StringIO(), force_terminal=True), Ledger(given), given, "digits"), 80)
    assert "starting Ray" in text and "0/24" in text and "front" not in text


def test_a_log_has_a_line_for_each_event_and_nothing_that_moves() -> None:
    out, given = io.StringIO(), plan()
    ledger: Any = ledger_of_all_states(given)
    with Screen(Console(file=out, width=200), ledger, given, "digits: 24 trials") as screen:
        screen.say("warming up")
        screen.trial_began(ledger.trials["running"])
        screen.trial_ended(ledger.trials["stopped"])
    title, *lines = out.getvalue().splitlines()
    assert title == "digits: 24 trials" and len(lines) == 3 and "\x1b" not in out.getvalue()
    assert "warming up" in lines[0] and "t0004 begins" in lines[1]
    assert "t0002 stopped (user) after 3 epochs" in lines[2] and "[4/24]" in lines[2]


def test_a_log_says_once_a_minute_how_far_a_long_trial_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    out, given = io.StringIO(), plan()
    ledger = ledger_of_all_states(given)
    running = ledger.trials["running"]
    with Screen(Console(file=out, width=200), ledger, given, "digits: 24 trials") as screen:
        screen.trial_began(running)
        for now[0] in (130.0, 159.0, 161.0, 190.0, 222.0):
            screen.trial_reported(running)
            screen.trial_reported(ledger.trials["complete"])  # its end is told
    _, _, *lines = out.getvalue().splitlines()
    assert [line[:11] for line in lines] == ["[  61.0 s] ", "[ 122.0 s] "]
    assert all(f"t0004 at epoch 4 of 9  {MSE}=0.0400" in line for line in lines)
