"""The training loop: who is updated when, exact resume, N workers equal to one, and that it learns."""

import dataclasses
import math
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from aae_ray.autoencoder.networks import BatchNorm
from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.errors import UserError
from aae_ray.evaluation.held_out import diagnosed, measured
from aae_ray.evaluation.judge import Judge, is_judged
from aae_ray.evaluation.metrics import METRICS
from aae_ray.settings import Settings, epoch_at, replace
from aae_ray.training import checkpoint
from aae_ray.training.batches import Step
from aae_ray.training.loop import Interval, Training

MORE: dict[str, dict[str, Any]] = {  # what a task needs, or what makes its test a harder one
    "label_informed": {"model.prior": "mixture", "data.labels": 200},
    "supervised": {"optim.reencoding_lr": 1e-3, "model.label_prior": "labels"},
    "semi_supervised": {
        "data.labels": 150,
        "train.labelled_batch_size": 31,
        "train.input_noise": 0.3,
        "train.label_noise": 0.2,
        "model.normalization": "batch",
        "optim.reencoding_lr": 1e-3,
        "model.label_prior": tuple(range(1, 11)),
    },
    "clustering": {
        "model.clusters": 12,
        "model.normalization": "batch",
        "train.input_dropout": 0.2,
        "train.input_warp": 0.2,
        "train.style_noise": 0.1,
        "optim.reencoding_lr": 1e-3,
    },
    "reduction": {  # 1079 images: one worker of two has none of the last batch
        "model.clusters": 12,
        "train.batch_size": 77,
        "model.network": "convolutional",
        "model.channels": (4, 8),
        "model.normalization": "batch",
    },
    "semi_supervised_reduction": {  # one worker of two has no labelled image in a step
        "data.labels": 30,
        "train.labelled_batch_size": 1,
        "model.normalization": "layer",
    },
}
VARIANTS = [
    {"task": task, "model.posterior": posterior} | MORE.get(task, {})
    for task, posterior in product(TASKS, ("deterministic", "gaussian", "universal"))
    if task != "vae" or posterior == "gaussian"
]
STABLE = {  # all that is to steady a discriminator, and the average of the weights
    "train.r1_penalty": 0.5,
    "train.discriminator_steps": 2,
    "train.ema_decay": 0.9,
    "model.discriminator_spectral_norm": True,
    "model.discriminator_slope": 0.2,
}
VARIANTS += [
    {"task": "unsupervised", "model.posterior": "deterministic"} | STABLE,
    {"task": "semi_supervised", "model.posterior": "gaussian"} | MORE["semi_supervised"] | STABLE,
]
IDS = [
    "-".join([values["task"], values["model.posterior"], *(["stable"] if STABLE.items() <= values.items() else [])])
    for values in VARIANTS
]


def weights(training: Training) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, network in training.model.networks.items()
        for key, value in network.state_dict().items()
    }


def flat(networks: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value for name, state in networks.items() for key, value in state.items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def without_clock(interval: Interval) -> list[dict[str, float]]:
    return [
        {name: value for name, value in metrics.items() if not name.startswith("perf/")} for metrics in interval.history
    ]


@pytest.mark.parametrize("values", VARIANTS, ids=IDS)
@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_exactly_the_named_networks_are_updated_in_each_phase(
    values: dict[str, Any], algorithm: str, small_run: Settings, digits: Dataset
) -> None:
    training = Training(replace(small_run, values | {"optim.algorithm": algorithm}), digits)
    step = next(training.batches.epoch(0))
    for phase, batch in zip(training.model.phases, step.batches, strict=True):
        before = weights(training)
        everyone = training.model.phases
        object.__setattr__(training.model, "phases", (phase,))
        training.step(Step([batch], [len(batch.x_BD)]))
        object.__setattr__(training.model, "phases", everyone)
        updated = {
            key.partition(".")[0] for key, value in weights(training).items() if not torch.equal(value, before[key])
        }
        assert updated == set(phase.updates), phase.name


@pytest.mark.parametrize("task", ["unsupervised", "supervised", "semi_supervised", "reduction"])
@pytest.mark.parametrize(
    ("drawn", "saved"),
    [
        ({}, 1),
        ({"train.discriminator_steps": 3}, 3),
        ({"train.input_noise": 0.1}, 0),
        ({"model.posterior": "gaussian"}, 0),
    ],
)
def test_a_lent_pass_saves_one_and_changes_nothing(
    task: str, drawn: dict[str, Any], saved: int, small_run: Settings, digits: Dataset
) -> None:
    """Both halves of the regularization phase see the same codes, where nothing is drawn on the way to them."""
    labels = {"data.labels": 150} if TASKS[task].labels == "some" else {}
    settings = replace(small_run, {"task": task, "train.dtype": "float32"} | labels | drawn)
    alone = TASKS[task]._replace(phases=tuple(phase._replace(shares_encoding=()) for phase in TASKS[task].phases))
    trainings, passes = [], []
    for row in (TASKS[task], alone):
        with patch.dict(TASKS, {task: row}):
            training = Training(settings, digits)
        seen: list[Any] = []
        training.model.networks["trunk"].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        for step, _ in zip(training.batches.epoch(0), range(3), strict=False):
            training.step(step)
        trainings.append(training)
        passes.append(len(seen) // 3)
    shared, own = map(weights, trainings)
    assert all(torch.equal(value, own[key]) for key, value in shared.items())
    phases = len(trainings[0].model.phases)
    assert passes == [phases - saved, phases]


@pytest.mark.parametrize("task", ["unsupervised", "semi_supervised"])
def test_a_phase_that_is_off_is_as_if_there_were_none(task: str, small_run: Settings, digits: Dataset) -> None:
    """And one that is on changes the numbers of no other."""
    values: dict[str, Any] = {"task": task, "model.posterior": "universal", "train.input_noise": 0.1}
    values |= {"data.labels": 150} if TASKS[task].labels == "some" else {}
    settings = replace(small_run, values)
    phases = tuple(phase for phase in TASKS[task].phases if phase.name != "reencode")
    with patch.dict(TASKS, {task: TASKS[task]._replace(phases=phases)}):
        without = Training(settings, digits)
    off, on = Training(settings, digits), Training(replace(settings, {"optim.reencoding_lr": 1e-3}), digits)
    for number, steps in enumerate(zip(*(training.batches.epoch(0) for training in (without, off, on)), strict=True)):
        if number == 3:
            break
        for training, step in zip((without, off), steps, strict=False):
            training.step(step)
        for batch, other in zip(steps[0].batches, steps[2].batches, strict=False):
            assert all(a is None or torch.equal(a, b) for a, b in zip(batch, other, strict=True))
    assert len(on.model.phases) == len(off.model.phases) + 1 == len(without.model.phases) + 1
    assert all(torch.equal(value, weights(off)[key]) for key, value in weights(without).items())


def test_decoded_samples_are_not_in_the_statistics_of_images(small_run: Settings, digits: Dataset) -> None:
    """The phase reencode, which comes last, moves the encoder and leaves the running statistics to the other phases."""
    values = {"model.normalization": "batch", "optim.reconstruction_lr": 1e-10, "optim.regularization_lr": 1e-10}
    settings = replace(small_run, values | {"optim.algorithm": "sgd"})
    statistics = []
    for rate in (0.0, 1e-10):
        training = Training(replace(settings, {"optim.reencoding_lr": rate}), digits)
        training.step(next(training.batches.epoch(0)))
        (norm, *_) = (part for part in training.model.networks["trunk"].modules() if isinstance(part, BatchNorm))
        assert (norm.mean != 0).all()
        statistics.append(torch.cat([norm.mean, norm.variance]))
    torch.testing.assert_close(*statistics)


@pytest.mark.parametrize("values", VARIANTS, ids=IDS)
def test_resume_in_mid_training_is_bit_for_bit(
    values: dict[str, Any], small_run: Settings, digits: Dataset, tmp_path: Path
) -> None:
    settings = replace(small_run, values | {"train.dtype": "float32", "optim.lr_milestones": (0.3, 0.8)})
    unbroken = Training(settings, digits)
    whole = without_clock(unbroken.train(4))

    first = Training(settings, digits)
    halves = without_clock(first.train(2))  # as at a rung: with the costly metrics
    checkpoint.save(first.state_dict(), tmp_path)
    second = Training(settings, digits)
    second.load_state_dict(checkpoint.load(tmp_path))
    assert second.epoch == 2
    halves += without_clock(second.train(4))

    assert [{name: value for name, value in metrics.items() if name in whole[0]} for metrics in halves[:3]] == whole[:3]
    assert halves[3] == whole[3] and "val/jsd_nats" in halves[1].keys() - whole[1].keys()
    for key, value in weights(unbroken).items():
        assert torch.equal(value, weights(second)[key]), key
    if unbroken.average and second.average:
        averages = (flat(each.average.state_dict()["networks"]) for each in (unbroken, second) if each.average)
        assert_same(*averages)


@pytest.mark.parametrize("values", VARIANTS, ids=IDS)
def test_what_a_study_may_search_on_is_known_before(
    values: dict[str, Any], small_run: Settings, digits: Dataset, judge: Judge
) -> None:
    for dataset in (digits, dataclasses.replace(digits, labels_N=None)):
        settings = replace(small_run, values)
        if dataset.labels_N is None and TASKS[settings.task].labels:
            continue  # refused
        evaluation = Training(settings, dataset, judge=judge if is_judged(dataset) else None).evaluation
        metrics = evaluation.cheap("val").keys() | evaluation.costly("val").keys()
        assert {name for name in metrics if METRICS[name].direction} == measured(settings, dataset)
        assert {name for name in metrics if not METRICS[name].direction} == diagnosed(settings, dataset)


def test_intervals_do_not_change_the_result(small_run: Settings, digits: Dataset) -> None:
    at_once, in_pieces = Training(small_run, digits), Training(small_run, digits)
    at_once.train()
    for until in (1, 3, 4):
        in_pieces.train(until)
    for key, value in weights(at_once).items():
        assert torch.equal(value, weights(in_pieces)[key]), key


def test_an_interval_ends_when_its_time_is_up_and_measures_costly_metrics_only_as_planned(
    small_run: Settings, digits: Dataset
) -> None:
    training = Training(small_run, digits)
    early = training.train(4, at_most_seconds=0)
    assert early.epoch == 1 and "val/jsd_nats" not in early.metrics
    planned = training.train(4)
    assert planned.epoch == 4 and len(planned.history) == 3
    assert "val/jsd_nats" in planned.metrics and "val/jsd_nats" not in planned.history[0]
    assert set(planned.metrics) - {"epoch"} <= set(METRICS)


def test_a_training_learns_to_reconstruct_and_to_match_the_prior(small_run: Settings, digits: Dataset) -> None:
    settings = replace(
        small_run,
        {
            "train.dtype": "float32",
            "train.epochs": 30,
            "train.batch_size": 50,
            "model.hidden": (64, 32),
            "optim.reconstruction_lr": 3e-3,
            "optim.discrimination_lr": 1e-3,
            "optim.regularization_lr": 1e-3,
        },
    )
    training = Training(settings, digits)
    first = training.train(1).metrics
    last = training.train().metrics
    assert last["val/reconstruction_mse"] < 0.6 * last["val/mean_image_mse"]
    assert last["val/scaled_sliced_wasserstein"] < first["val/scaled_sliced_wasserstein"]
    assert last["val/jsd_nats"] < 0.35 < math.log(2)


def test_learning_rates_drop_at_fractions_of_the_budget(small_run: Settings, digits: Dataset) -> None:
    training = Training(
        replace(small_run, {"train.epochs": 10, "optim.lr_milestones": (0.2, 0.5), "optim.lr_decay": 0.1}),
        digits,
    )
    seen = []
    for _ in range(6):
        training.train(training.epoch + 1)
        seen.append(
            training.optimizers["discriminate"].param_groups[0]["lr"] / training.settings.optim.discrimination_lr
        )
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("algorithm", ["adam", "sgd"])
def test_a_state_under_other_settings_keeps_its_moments_and_takes_their_hyperparameters(
    algorithm: str, small_run: Settings, digits: Dataset
) -> None:
    settings = replace(small_run, {"optim.algorithm": algorithm})
    donor = Training(settings, digits)
    donor.train(1)
    changed = {
        "optim.reconstruction_lr": 5e-3,
        "optim.discrimination_lr": 3e-4,
        "optim.reconstruction_momentum": 0.8,
        "optim.adversarial_momentum": 0.2,
        "optim.beta2": 0.99,
    }
    heir = Training(replace(settings, changed), digits)
    heir.load_state_dict(checkpoint.unpack(checkpoint.pack(donor.state_dict())))

    def check(rate: float, momentum: float, phase: str) -> None:
        (group,) = heir.optimizers[phase].param_groups
        obeyed = group["betas"] if algorithm == "adam" else group["momentum"]
        assert group["lr"] == rate and obeyed == ((momentum, 0.99) if algorithm == "adam" else momentum)

    for _ in range(2):  # after loading, and in the epoch that follows
        check(5e-3, 0.8, "reconstruct")
        check(3e-4, 0.2, "discriminate")
        check(small_run.optim.regularization_lr, 0.2, "regularize")
        if heir.epoch == 1:
            for name, optimizer in donor.optimizers.items():
                for mine, theirs in zip(
                    heir.optimizers[name].state_dict()["state"].values(),
                    optimizer.state_dict()["state"].values(),
                    strict=True,
                ):
                    assert all(torch.equal(mine[key], theirs[key]) for key in theirs) and theirs
            heir.train(2)


def test_the_average_of_the_weights_is_what_is_measured_and_kept(small_run: Settings, digits: Dataset) -> None:
    settings = replace(small_run, {"train.ema_decay": 0.8, "task": "clustering", "model.normalization": "batch"})
    training, plain = Training(settings, digits), Training(replace(settings, {"train.ema_decay": 0}), digits)
    expected = weights(training)
    for count, (step, same) in enumerate(zip(training.batches.epoch(0), plain.batches.epoch(0), strict=True), 1):
        training.step(step)
        plain.step(same)
        decay = min(0.8, (1 + count) / (10 + count))
        expected = {key: decay * expected[key] + (1 - decay) * value for key, value in weights(training).items()}
    assert_same(weights(training), weights(plain))  # the training itself goes on without it
    assert training.average is not None and training.evaluation.model is training.average.model
    found = flat(training.state_dict()["average"]["networks"])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)
    assert training.evaluation.cheap("val") != plain.evaluation.cheap("val")

    heir = Training(settings, digits)  # of a run without an average
    heir.load_state_dict(plain.state_dict())
    assert heir.average is not None and heir.evaluation.cheap("val") == plain.evaluation.cheap("val")


def test_each_of_several_discriminator_steps_has_draws_of_its_own(small_run: Settings, digits: Dataset) -> None:
    values = {"train.discriminator_steps": 3, "train.input_noise": 0.1, "model.posterior": "gaussian"}
    several, one = (
        next(Training(replace(small_run, values | {"train.discriminator_steps": steps}), digits).batches.epoch(0))
        for steps in (3, 1)
    )
    assert len(several.batches) == 5 and len(one.batches) == 3
    for name in ("prior_BZ", "posterior_noise_BE", "input_noise_BD"):
        first, second, third = (getattr(batch, name) for batch in several.batches[1:4])
        assert torch.equal(first, getattr(one.batches[1], name))
        assert not torch.equal(first, second) and not torch.equal(second, third)
    assert all(torch.equal(batch.x_BD, one.batches[0].x_BD) for batch in several.batches)


def test_a_fraction_of_the_budget_is_a_whole_number_of_epochs() -> None:
    """0.55 of 100 is above 55 in floating point, and 0.29 of 100 below 29."""
    assert [epoch_at(fraction, 100) for fraction in (0.55, 0.29, 0.07, 0.5, 0.0)] == [55, 29, 7, 50, 0]
    assert epoch_at(0.3, 27) == 9


def test_a_batch_larger_than_the_data_is_all_of_them(small_run: Settings, digits: Dataset) -> None:
    """Noise is drawn for images that there are: a batch of 10**11 would not fit into memory."""
    training = Training(replace(small_run, {"train.batch_size": 10**11, "model.posterior": "gaussian"}), digits)
    (step,) = training.batches.epoch(0)
    assert step.examples == [len(digits.train)] * 3


def test_a_diverged_trial_says_so(small_run: Settings, digits: Dataset) -> None:
    settings = replace(
        small_run,
        {
            "optim.algorithm": "sgd",
            "optim.reconstruction_lr": 10.0,
            "train.reconstruction_reduction": "sum",
            "model.output": "linear",
        },
    )
    interval = Training(settings, digits).train()
    assert interval.stop_reason == "diverged" and interval.epoch < 4


def test_a_checkpoint_of_other_data_is_refused(small_run: Settings, digits: Dataset) -> None:
    training = Training(small_run, digits)
    with pytest.raises(UserError, match="trained on data with digest other"):
        training.load_state_dict(training.state_dict() | {"data_digest": "other"})


# ------------------------------------------------------------------------------------------------- several workers


def averaged(training: Training) -> dict[str, torch.Tensor]:
    """The averaged weights, none where there is no average."""
    return flat(training.average.state_dict()["networks"]) if training.average else {}


def _worker(rank: int, workers: int, folder: str, runs: dict[int, Settings]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    for index, settings in runs.items():
        training = Training(
            settings,
            load(settings.data),
            rank=rank,
            workers=workers,
            wrap=lambda network: DistributedDataParallel(network, forward_sync_buffers=False),
        )
        interval = training.train()
        result = {
            "weights": weights(training),
            "average": averaged(training),
            "history": [dict(m) for m in interval.history],
        }
        torch.save(result, f"{folder}/{index}-{rank}.pt")
    # In order: while a wrapped network lives the group lives on, into the end of the interpreter and its threads.
    del training
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared_out(
    request: pytest.FixtureRequest, small_run: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[int, Settings], Path]:
    """Every variant that a test asks for, trained by one pair of workers, one after the other."""
    functions = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked: set[Any] = {each.callspec.params["index"] for each in functions if "shared_out" in each.fixturenames}
    # 1,079 images in batches of 99: slices of unequal size, and a short last batch.
    sizes = {"train.epochs": 2, "train.batch_size": 99}
    rule = {"optim.algorithm": "sgd", "optim.reconstruction_momentum": 0.5}
    runs = {index: replace(small_run, VARIANTS[index] | sizes | rule) for index in sorted(asked)}
    folder = tmp_path_factory.mktemp("workers")
    spawn(_worker, args=(2, str(folder), runs), nprocs=2)
    return runs, folder


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(
            index, id=name, marks=() if name.endswith(("universal", "stable", "vae-gaussian")) else pytest.mark.slow
        )
        for index, name in enumerate(IDS)
    ],
)
def test_two_workers_equal_one_and_agree_exactly(
    index: int, shared_out: tuple[dict[int, Settings], Path], digits: Dataset
) -> None:
    runs, folder = shared_out
    first, second = (torch.load(folder / f"{index}-{rank}.pt") for rank in range(2))
    for kind in ("weights", "average"):
        for key, value in first[kind].items():
            assert torch.equal(value, second[kind][key]), f"{kind}: {key} differs between the workers"

    alone = Training(runs[index], digits)
    history = alone.train(2).history
    assert len(history) == len(first["history"]) == 2
    for kind, mine in (("weights", weights(alone)), ("average", averaged(alone))):
        assert mine.keys() == first[kind].keys()
        for key, value in mine.items():
            torch.testing.assert_close(
                value, first[kind][key], rtol=1e-9, atol=1e-12, msg=f"{kind}: {key} differs from one worker"
            )
    for one, two in zip(history, first["history"], strict=True):
        for name in one:
            if not name.startswith(("perf/", "val/jsd")):
                assert one[name] == pytest.approx(two[name], rel=1e-6, abs=1e-9), name
