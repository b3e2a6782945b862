"""The benchmarks: what they compare is alike, their arithmetic is right, and they run and write their keys."""

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.constants import Constants
from aae_ray.settings import replace
from aae_ray.training.loop import Training

sys.path.insert(0, str(Path(__file__).parent.parent))  # benchmarks are not installed

from benchmarks import evaluation, overhead, step, timing
from benchmarks.arms import Ends

ROOT = Path(__file__).parent.parent
SPREAD = {"median", "low", "high"}


def run(module: str, *flags: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """A benchmark as a user runs it: what it prints, and what it writes."""
    file = folder / "ratios.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", *flags, "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text())


def test_the_hand_written_loop_does_the_same_mathematics() -> None:
    settings = replace(step.settings_for("24-16"), {"train.dtype": "float64"})
    training = Training(settings, step.synthetic(300))
    x_ND = torch.from_numpy(training.dataset.images_NCHW[:300].reshape(300, -1)).double() / 255
    hand = step.HandWritten(settings.model.hidden, settings.optim, x_ND)
    names = {"trunk": hand.encoder[:-1], "style_head": hand.encoder[-1:], "decoder": hand.decoder}
    pairs = [
        (ours, theirs)
        for name, network in (names | {"style_discriminator": hand.discriminator}).items()
        for ours, theirs in zip(training.model.networks[name].parameters(), network.parameters(), strict=True)
    ]
    for ours, theirs in pairs:
        theirs.data.copy_(ours.data)
    before = [ours.detach().clone() for ours, _ in pairs]

    for each in chain(training.batches.epoch(0), training.batches.epoch(1)):
        training.step(each)
        prior_BZ = each.batches[1].prior_BZ
        assert prior_BZ is not None
        hand.step(each.batches[0].x_BD, prior_BZ)

    for (ours, theirs), old in zip(pairs, before, strict=True):
        assert not torch.equal(ours, old)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_an_epoch_without_evaluation_still_trains_all_phases() -> None:
    training = Training(step.settings_for("8"), step.synthetic(200))
    before = {
        name: [p.detach().clone() for p in network.parameters()] for name, network in training.model.networks.items()
    }
    training.evaluation = step.NoHeldOutMetrics(training.settings, training.model, training.dataset, training.images)
    metrics = training.train(until_epoch=1).metrics
    assert not any(name.startswith("val/") for name in metrics)
    for name, network in training.model.networks.items():
        assert any(not torch.equal(old, new) for old, new in zip(before[name], network.parameters(), strict=True)), name


def test_arms_alternate_and_ratios_are_taken_within_a_round() -> None:
    order: list[str] = []
    values = iter([2.0, 1.0, 30.0, 90.0, 8.0, 2.0])

    def arm(name: str) -> float:
        order.append(name)
        return next(values)

    found = timing.interleave({"a": lambda: arm("a"), "b": lambda: arm("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    ratio = timing.paired(found["a"], found["b"])  # 2/1, 90/30, 8/2
    assert ratio.median == 3
    assert (ratio.low, ratio.high) == (2, 4)


def test_a_target_is_judged_by_the_worse_edge_of_the_interval() -> None:
    assert timing.Target(1.3).met(timing.Spread(1.5, 1.3, 1.7))
    assert not timing.Target(1.3).met(timing.Spread(1.5, 1.2, 1.7))
    assert timing.Target(1.05, at_least=False).met(timing.Spread(1.0, 0.9, 1.05))
    assert not timing.Target(1.05, at_least=False).met(timing.Spread(1.0, 0.9, 1.1))


def test_the_interval_of_a_ratio_of_medians_knows_the_spread_of_both_sides() -> None:
    steady = timing.ratio_of_medians([10, 10, 10], [2, 2, 2])
    assert steady == timing.Spread(5, 5, 5)
    shaky = timing.ratio_of_medians([10, 10, 10], [1, 2, 4])
    assert (shaky.median, shaky.low, shaky.high) == (5, 2.5, 10)


def ends(*events: tuple[float, int]) -> Ends:
    found = Ends()
    found.began = 100.0
    found.at = [at for at, _ in events]
    found.results = [{"pid": pid, "at": at} for at, pid in events]
    return found


def test_warm_cycles_begin_when_every_gang_has_ended_a_trial() -> None:
    block = overhead.warm_block(ends((110, 1), (111, 1), (113, 2), (114, 1), (115, 2), (118, 1)))
    assert block.cycles == [4, 2]  # not 110 to 111, nor 111 to 114: the other was starting
    assert [result["at"] for result in block.results] == [118, 115]
    assert block.cold["first_trial_seconds"] == 10
    assert block.cold["trials_per_hour"] == pytest.approx(6 / 18 * 3600)
    assert block.rate(slots=2) == 2 / 3 * 3600


def test_cold_cycles_leave_out_the_first_round_when_there_is_another() -> None:
    assert overhead.cold_block(ends((110, 1), (112, 2), (121, 3), (124, 4)), slots=2).cycles == [11, 12]
    assert overhead.cold_block(ends((110, 1), (112, 2)), slots=2).cycles == [10, 12]


def test_the_parts_of_a_trial_add_up_to_its_cycle() -> None:
    names = {"training": 20, "worker": 23, "reset": 2, "step": 22, "save": 5}
    clocks = {f"clock/{name}": float(seconds) for name, seconds in names.items()}
    block = overhead.Block([30.0, 34.0], [clocks | {"pid": 1}] * 2, {})
    parts = overhead.where_time_goes([block])
    assert sum(parts.values()) == 32
    assert parts["messages, and Ray Tune between its calls"] == 32 - 23 - 5
    assert overhead.overhead(block) == 12


@pytest.mark.slow
def test_step_writes_its_keys(tmp_path: Path) -> None:
    flags = {"--images": "200", "--rounds": "2", "--seconds": "0.01", "--calibration-seconds": "0.2"}
    printed, found = run("step", "--networks", "8", "12-8", *chain(*flags.items()), folder=tmp_path)
    assert "ratio_floor" in printed and "calibration" in printed
    for key in ("ratio_floor", "ratio_pythae"):
        if key == "ratio_pythae" and not step.pythae_is_installed():
            assert found[key] is None
            continue
        assert set(found[key]) == {"8", "12-8"}
        for ratio in found[key].values():
            assert set(ratio) == SPREAD
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    for counted in found["megaflops_per_image"].values():
        assert counted["ours"] == counted["floor"] > 0  # the same products, none more
        assert counted.get("pythae", 0) < counted["floor"]
    assert found["machine"]["cores"] and found["calibration"]["drift"] >= 0


@pytest.mark.parametrize("task", TASKS)
def test_the_share_of_evaluation_can_be_measured_for_every_task(task: str, digits: Dataset) -> None:
    (posterior, *_) = evaluation.POSTERIORS.get(task, ("deterministic",))
    settings = evaluation.settings_for(posterior, 27, task)
    assert settings.task == task and Training(settings, digits).model.phases


def test_evaluation_is_a_small_share_of_a_small_trial(digits: Dataset) -> None:
    """What the benchmark measures, with room for a machine that does something else as well."""
    constants = Constants()
    Training(evaluation.settings_for("deterministic", 1), digits, constants=constants).train()
    settings = evaluation.settings_for("deterministic", 27)
    assert 0 < evaluation.evaluation_share(settings, digits, constants) < 0.15


@pytest.mark.slow
def test_overhead_writes_its_keys(tmp_path: Path) -> None:
    flags = {"--gangs": "1", "--trials-per-gang": "3", "--epochs": "1", "--rounds": "1", "--documented-trials": "1"}
    printed, found = run("overhead", *chain(*flags.items()), folder=tmp_path)
    assert "ratio_documented" in printed and "Trials per hour" in printed
    for key in ("ratio_documented", "ratio_class_trainable", "ratio_serial", "overhead_seconds"):
        assert set(found[key]) == SPREAD
        assert 0 < found[key]["low"] <= found[key]["median"] <= found[key]["high"]
    assert set(found["cold"]) == {"documented", "ours", "plain"}
    assert set(found["warm_trials_per_hour"]) == {"documented", "ours", "plain", "serial"}
    assert found["ratio_documented"]["median"] > 1


@pytest.mark.slow
def test_scale_writes_its_keys(tmp_path: Path) -> None:
    printed, found = run("scale", "--trials", "20", "40", "--real-trials", "0", folder=tmp_path)
    assert "growth" in printed and found["sampler"] == "random"
    assert [row["trials"] for row in found["rows"]] == [20, 40]
    for row in found["rows"]:
        for key in ("driver_seconds_per_trial", "sampler_seconds_per_trial", "wall_seconds"):
            assert row[key] > 0, key
        assert row["memory_mb"] >= 0 and row["journal_mb"] > 0
    last, before = found["rows"][1], found["rows"][0]
    assert found["growth"] == last["driver_seconds_per_trial"] / before["driver_seconds_per_trial"]
    assert found["memory_mb"] == last["memory_mb"]


@pytest.mark.slow
def test_start_writes_its_keys(tmp_path: Path) -> None:
    printed, found = run("start", "--rounds", "1", "--calibration-seconds", "0.2", folder=tmp_path)
    assert "ratio_bare" in printed and "calibration" in printed
    assert set(found["ratio_bare"]) == SPREAD
    assert set(found["seconds"]) == {"ours", "bare"}
    for arm, seconds in found["seconds"].items():
        assert set(seconds) == {"first_epoch", "end"}
        assert all(set(each) == SPREAD for each in seconds.values())
        assert 0 < seconds["first_epoch"]["median"] < seconds["end"]["median"], arm
    ours, bare = (found["seconds"][arm]["first_epoch"]["median"] for arm in ("ours", "bare"))
    assert found["ratio_bare"]["median"] == pytest.approx(ours / bare)


@pytest.mark.slow
def test_nodes_writes_its_keys(tmp_path: Path) -> None:
    printed, found = run("nodes", "--nodes", "2", "--trials-per-node", "3", folder=tmp_path)
    assert "gcs_server_cpu_seconds_per_trial" in printed
    few, many = found["rows"]
    assert few["trials"] == 2 and many["trials"] == 6 and many["gangs_at_once"] == 2
    assert many["reports"] >= 6 and many["driver_cpu_seconds"] > 0 and many["gcs_server_memory_mb"] > 0
