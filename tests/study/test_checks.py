"""What a study will need, told before its start: memory and room on the disk."""

import dataclasses
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from aae_ray.autoencoder.model import build_model, weight_bytes
from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import SettingsError, UserError
from aae_ray.evaluation.judge import Judge
from aae_ray.search import events
from aae_ray.search.choice import select
from aae_ray.search.conditions import Conditions
from aae_ray.search.distributions import Space
from aae_ray.search.space import Plan
from aae_ray.search.store import Store
from aae_ray.settings import Settings, replace
from aae_ray.study import checks
from aae_ray.training.loop import Training, state_bytes
from tests.search import test_conductor as studies
from tests.search.histories import History
from tests.study.commands import command

LIMIT = 1_000_000_000


def plan_of(space: Space | None = None, **changes: object) -> Plan:
    return Plan(replace(Settings(), {key.replace("__", "."): value for key, value in changes.items()}), space or {})


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_counted_without_being_made(task: str, digits: Dataset) -> None:
    changes: dict[str, object] = {"task": task, "model.posterior": "gaussian", "train.dtype": "float64"}
    if task == "label_informed":
        changes["model.prior"] = "mixture"
    settings = replace(Settings(), changes)
    networks = build_model(settings, digits.kind, classes=digits.classes).networks.values()
    made = sum(weight.numel() * 8 for network in networks for weight in network.parameters())
    assert sum(weight_bytes(settings, digits.kind, digits.classes).values()) == made
    assert torch.zeros(()).device.type == "cpu"


def test_the_largest_networks_of_a_space_are_found(digits: Dataset) -> None:
    space: Space = {
        "model.network": CategoricalDistribution(["dense", "convolutional"]),
        "model.hidden": CategoricalDistribution(["64-32", "2000-2000", "3000"]),
        "model.posterior": CategoricalDistribution(["deterministic", "universal", "gaussian"]),
        "model.latent_dim": IntDistribution(2, 64),
        "model.discriminator_hidden": CategoricalDistribution(["512-512", "16"]),
        "optim.reconstruction_lr": FloatDistribution(1e-4, 1e-2),
    }
    largest = plan_of(model__hidden="2000-2000", model__posterior="universal", model__latent_dim=64,
                      model__discriminator_hidden="512-512")  # fmt: skip
    alone = checks.largest_state(largest, digits)
    assert checks.largest_state(plan_of(space), digits) == alone
    twice = checks.memory_needed(plan_of(space, study__workers_per_trial=2), digits)
    assert twice == 2 * (2 * alone.weights + alone.optimizers)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"train.ema_decay": 0.9, "optim.reencoding_lr": 1e-3, "train.discriminator_steps": 2},
        {"optim.algorithm": "sgd", "optim.adversarial_momentum": 0.0},
        {"task": "semi_supervised", "data.labels": 50, "train.ema_decay": 0.9},
        {"task": "wae_mmd", "train.dtype": "float32"},
    ],
)
def test_the_state_of_a_training_is_counted_without_being_made(
    values: dict[str, object], small_run: Settings, digits: Dataset
) -> None:
    """Weights, their average, and moments for every phase: an encoder is updated by several."""
    training = Training(replace(small_run, values), digits)
    training.step(next(training.batches.epoch(0)))

    def held(part: object) -> int:
        if isinstance(part, torch.Tensor):
            return part.nbytes if part.dim() else 0  # an optimizer counts its steps
        parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return sum(map(held, parts))

    state, counted = training.state_dict(), state_bytes(training.settings, digits.kind, digits.classes)
    assert counted == (held(state["networks"]), held(state.get("average")), held(state["optimizers"]))


def test_searched_settings_that_take_memory_count(digits: Dataset) -> None:
    space: Space = {
        "train.ema_decay": FloatDistribution(0.0, 0.999),
        "optim.algorithm": CategoricalDistribution(["sgd", "adam"]),
        "optim.reencoding_lr": FloatDistribution(0.0, 1e-3),
    }
    most = plan_of(train__ema_decay=0.999, optim__reencoding_lr=1e-3)
    assert checks.largest_state(plan_of(space), digits) == checks.largest_state(most, digits)
    assert checks.memory_needed(most, digits) > checks.memory_needed(plan_of(), digits)
    assert checks.disk_needed(most, digits) > checks.disk_needed(plan_of(), digits)


def test_data_and_memory_are_checked_for_the_combinations_that_there_are(digits: Dataset) -> None:
    """The others may break rules, so that no settings can be made of them."""
    space: Space = {
        "model.prior": CategoricalDistribution(["uniform", "swiss_roll"]),
        "task": CategoricalDistribution(["unsupervised", "vae"]),
        "model.latent_dim": CategoricalDistribution([2, 64]),
    }
    conditions: Conditions = {
        "model.prior": {"task": ("unsupervised",)},
        "model.latent_dim": {"model.prior": ("swiss_roll",)},
    }
    searched = dataclasses.replace(plan_of(space, model__posterior="gaussian"), conditions=conditions)
    checked, _, _ = checks.checked(searched)
    assert checked.conditions == conditions
    largest = plan_of(model__posterior="gaussian", model__latent_dim=64)
    assert checks.largest_state(searched, digits) == checks.largest_state(largest, digits)


def test_a_network_of_3_gb_is_told_at_once_and_takes_no_memory(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(model__hidden="20000-20000", study__budget__trials=8)
    monkeypatch.setattr(checks, "memory_available", lambda: 24 * LIMIT)
    start = time.monotonic()
    told = checks.memory_advice(plan, digits, 2)
    assert told == (
        "a trial of the largest networks needs at least 16.1 GB of memory, 2 at a time 32.1 GB, "
        "and this machine has 24.0 GB left: trials may run out of memory; lower study.concurrent_trials"
    )
    monkeypatch.setattr(checks, "memory_available", lambda: 12 * LIMIT)
    assert str(checks.memory_advice(plan, digits, 1)).endswith(
        "needs at least 16.1 GB of memory, and this machine has 12.0 GB left: trials may run out of memory; "
        "lower model.hidden, model.discriminator_hidden"
    )
    assert time.monotonic() - start < 5
    assert checks.memory_advice(plan_of(model__hidden="20000-20000", train__device="cuda"), digits, 2) is None
    assert checks.memory_advice(plan_of(), digits, 2) is None


def test_trials_at_a_time_are_what_the_cores_or_the_user_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    counts = [
        checks.trials_at_a_time(plan_of(**changes).settings)
        for changes in (
            {},
            {"study__budget__trials": 3},
            {"study__concurrent_trials": 5},
            {"study__workers_per_trial": 3},
            {"study__workers_per_trial": 9},
            {"study__resources_per_worker": {"CPU": 4}},
        )
    ]
    assert counts == [8, 3, 5, 2, 1, 2]


@pytest.mark.parametrize(
    ("changes", "stay", "paused"),
    [
        ({"study__pruner__type": "none"}, 12, 0),
        ({"study__pruner__type": "none", "study__keep": "all"}, 30, 0),
        ({"study__pruner__type": "median"}, 12, 0),
        ({}, 10, 20),  # one trial in three goes on from the first rung
        ({"study__keep": "all"}, 10, 20),
        ({"study__pruner__reduction_factor": 2}, 12, 15),
        ({"study__pruner__grace_period": 27}, 12, 0),  # no rung below the budget of epochs
        ({"study__pruner__type": "pbt"}, 0, 30),
        ({"study__pruner__type": "none", "study__seeds_per_trial": 2}, 30, 0),
    ],
)
def test_the_disk_holds_what_is_under_way_what_is_paused_and_what_stays(
    changes: dict[str, Any], stay: int, paused: int, digits: Dataset
) -> None:
    plan = plan_of(study__concurrent_trials=1, study__budget__trials=30, **changes)
    size = checks.largest_state(plan, digits)
    assert checks.disk_needed(plan, digits) == size.published * stay + size.total * (2 + paused)


@pytest.mark.parametrize(
    ("key", "value"), [("study.pruner.type", "median"), ("study.pruner.metric", "val/jsd_nats"), ("data.labels", 100)]
)
def test_an_extension_changes_nothing_by_which_earlier_trials_were_judged(
    key: str, value: object, digits: Dataset
) -> None:
    history = History()
    changed = Plan(replace(history.plan.settings, {key: value}), {})
    with pytest.raises(UserError, match=f"(?s){key}: .* -> {value}.*type and metric of its pruner.*--warm-start old"):
        checks.check_resume("old", history.ledger, changed, digits, extend=True, any_version=True)


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({"proc/meminfo": "MemTotal:  9 kB\nMemAvailable:   700000 kB\n"}, 716_800_000),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{LIMIT}\n"}, LIMIT),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": f"{LIMIT}\n",
          "sys/fs/cgroup/a/b/memory.max": "max\n"}, LIMIT),
        ({"proc/self/cgroup": "5:cpu:/x\n4:memory:/x/y\n0::/\n",
          "sys/fs/cgroup/memory/x/y/memory.limit_in_bytes": "9223372036854771712\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{LIMIT}\n"}, LIMIT),
    ],
)  # fmt: skip
def test_the_memory_of_a_container_is_what_it_may_use(files: dict[str, str], available: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert checks.memory_available(tmp_path) == available


def test_memory_is_known_here() -> None:
    assert 10_000_000 < checks.memory_available() < 1e14


@pytest.mark.slow
def test_commands_work_under_a_strict_umask_and_in_ascii(tmp_path: Path, environment: dict[str, str]) -> None:
    plain = {key: value for key, value in environment.items() if value} | {"LANG": "C", "PYTHONIOENCODING": "ascii"}
    for asked in (command("tune", "--dry-run", f"data.cache={tmp_path}/cache"), command("status")):
        done = subprocess.run(
            asked, cwd=tmp_path, env=plain, umask=0o077, capture_output=True, text=True, encoding="ascii", timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "") and done.stdout
    written = list((tmp_path / "cache").rglob("*"))
    assert written and not [path for path in written if path.stat().st_mode & 0o077]


def test_a_dry_run_says_what_was_read(tmp_path: Path, environment: dict[str, str], cache: Path) -> None:
    asked = command("tune", "--dry-run", f"data.cache={cache}")
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert "# images: 1,797 of 1 x 8 x 8 (channels x height x width)" in lines
    assert "# values: 0 to 16 before scaling" in lines
    assert "# parts: training 1,079, validation 359, test 359; drawn" in lines


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.check_writable(str(tmp_path / "new" / "runs"))
    assert not list((tmp_path / "new" / "runs").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written to: Not a directory"):
        checks.check_writable(str(tmp_path / "file" / "runs"))

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(UserError, match="Read-only file system"):
        checks.check_writable(str(tmp_path))


def test_samples_cannot_be_judged_without_a_judge(digits: Dataset) -> None:
    """Its objective is told before the start, with those that there are."""
    plan = plan_of(study__objectives=("val/reconstruction_mse", "val/kid_local"))
    checks._check_data(plan, digits)
    without = dataclasses.replace(digits, labels_N=None)
    with pytest.raises(
        SettingsError, match="val/kid_local is not measured by task unsupervised on data.name digits .*needs a judge"
    ):
        checks._check_data(plan, without)
    clustering = plan_of(task="clustering", study__objectives=("val/nmi", "val/part_error"))
    told = [problem.text for problem in checks._unmeasured(clustering.settings, without)]
    assert "val/nmi is not measured" in told[0] and "as it needs labels of held-out images" in told[0]
    assert "val/part_error is not measured" in told[1] and "labels" not in told[1]  # with labels neither


def test_a_constraint_may_be_on_what_tells_of_an_illness(digits: Dataset) -> None:
    """As long as the task measures it."""
    bounds = ("val/clusters_used >= 12", "val/code_std >= 0.5", "val/jsd_nats_se <= 0.1", "val/noise_use >= 0.1")
    clustering = plan_of(task="clustering", model__posterior="gaussian", study__constraints=bounds).settings
    assert not checks._unmeasured(clustering, digits)
    told = checks._unmeasured(replace(clustering, {"task": "unsupervised", "model.posterior": "deterministic"}), digits)
    names = ["val/clusters_used", "val/noise_use"]
    assert [problem.text.split()[:5] for problem in told] == [
        ["study.constraints:", name, "is", "not", "measured"] for name in names
    ]


def test_a_poor_judge_is_told_before_a_study_decides_by_it(judge: Judge) -> None:
    assert checks.judge_advice(judge, Settings()) is None and checks.judge_advice(None, Settings()) is None
    advice = checks.judge_advice(dataclasses.replace(judge, accuracy=0.5), Settings())
    assert advice is not None and "val/kid_local" in advice and "right on 50%" in advice


def test_finalists_without_a_checkpoint_are_told_before_they_are_trained(tmp_path: Path) -> None:
    """With study.keep=best those of all but the best trial are gone when the study has ended."""
    conductor = studies.begin(
        tmp_path, studies.plan_of(study__keep="best", study__pruner__type="none", study__budget__trials=6)
    )
    studies.run(conductor)
    conductor.record(events.StudyEnded())
    ledger, store = conductor.ledger, Store(tmp_path)
    front = ledger.front()
    first = front[select([ledger.judged(trial) for trial in front], ledger.objectives, "nearest_to_ideal")]
    assert len(front) > 1 and first.checkpoint is not None
    store.write_bytes(f"{first.checkpoint}/state", b"x")

    def more(**changes: object) -> Plan:
        settings = {key.replace("__", "."): value for key, value in changes.items()}
        return dataclasses.replace(ledger.current_plan, settings=replace(ledger.current_plan.settings, settings))

    checks.check_finalists("s1", ledger, more(study__confirm__finalists=1), store)
    checks.check_finalists("s1", ledger, more(), store)
    checks.check_finalists("s1", ledger, more(study__confirm__finalists=2, study__budget__trials=9), store)
    with pytest.raises(
        UserError, match=r"study.confirm.finalists=2 would train t\d+ again, whose checkpoint is not kept"
    ):
        checks.check_finalists("s1", ledger, more(study__confirm__finalists=2), store)
