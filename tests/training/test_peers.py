"""Faults that other implementations of adversarial autoencoders have had, each with the test that ours has not.

Faults of a single loss are in tests/autoencoder/test_phases.py, those of data-parallel training in test_loop.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aae_ray.autoencoder import networks, phases
from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.figure_data import figure_data
from aae_ray.settings import Settings, replace
from aae_ray.training.loop import Training

LABELLED = {"data.labels": 100, "model.prior": "mixture"}


def training_of(task: str, settings: Settings, dataset: Dataset, **more: Any) -> Training:
    values = {"task": task, **(LABELLED if TASKS[task].labels == "some" else {})}
    if task == "vae":
        values["model.posterior"] = "gaussian"
    return Training(replace(settings, values | more), dataset)


@pytest.mark.parametrize("task", TASKS)
def test_no_network_but_the_encoders_trunk_has_batch_norm_and_none_has_dropout(
    task: str, small_run: Settings, digits: Dataset
) -> None:
    """BatchNorm in a discriminator breaks the training and hides the mismatch on a code; dropout shows the phases
    different codes."""
    model = training_of(task, small_run, digits, **{"model.normalization": "batch"}).model

    def networks_with(*kinds: type[nn.Module]) -> set[str]:
        return {
            name for name, network in model.networks.items() for part in network.modules() if isinstance(part, kinds)
        }

    assert networks_with(nn.modules.batchnorm._NormBase, networks.BatchNorm) == {"trunk"}
    assert networks_with(nn.modules.dropout._DropoutNd) == set()


def test_all_phases_of_a_step_see_their_images_in_the_same_mode(small_run: Settings, digits: Dataset) -> None:
    training = training_of("semi_supervised", small_run, digits, **{"model.normalization": "batch"})
    modes: list[bool] = []
    training.model.networks["trunk"].register_forward_hook(lambda module, *_: modes.append(module.training))
    training.step(next(training.batches.epoch(0)))
    assert modes == [True] * 4
    training.evaluation.cheap("val")
    assert not any(modes[4:]) and len(modes) > 4
    training.step(next(training.batches.epoch(0)))
    assert modes[-4:] == [True] * 4


def test_the_discriminator_is_shown_codes_of_the_encoder_as_it_is_now(small_run: Settings, digits: Dataset) -> None:
    """Not those of before the reconstruction step, and the regularization not those of before it either."""
    training = training_of("unsupervised", small_run, digits)
    step = next(training.batches.epoch(0))
    seen: list[torch.Tensor] = []
    weights: list[dict[str, torch.Tensor]] = []

    def look(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())
        trained = training.model.networks
        weights.append({f"{n}.{k}": v.clone() for n in phases.ENCODER for k, v in trained[n].state_dict().items()})

    training.model.networks["style_discriminator"].register_forward_pre_hook(look)
    training.step(step)
    for inputs, state in zip(seen, weights, strict=True):
        other = training_of("unsupervised", small_run, digits)
        before = other.model.encode(step.batches[0].x_BD, None).z_BZ
        for name in phases.ENCODER:
            other.model.networks[name].load_state_dict(
                {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{name}.")}
            )
        fake_BZ = inputs[-len(step.batches[0].x_BD) :]
        assert torch.equal(fake_BZ, other.model.encode(step.batches[0].x_BD, None).z_BZ)
        assert not torch.equal(fake_BZ, before)  # the reconstruction has moved the encoder


@pytest.mark.parametrize("network", ["style_discriminator", "label_discriminator"])
def test_an_encoder_step_raises_each_discriminators_score_of_its_codes(
    network: str, small_run: Settings, digits: Dataset
) -> None:
    settings = replace(
        small_run, {"optim.algorithm": "sgd", "optim.regularization_lr": 0.01, "optim.adversarial_momentum": 0}
    )
    training = training_of("semi_supervised", settings, digits)
    step = next(training.batches.epoch(0))
    regularize = training.model.phases[2]
    scores: list[float] = []
    training.model.networks[network].register_forward_hook(lambda *arguments: scores.append(arguments[2].mean().item()))
    optimizer = training.optimizers["regularize"]
    regularize.loss(training.model.networks, step.batches[2], settings).loss_B.mean().backward()
    optimizer.step()
    regularize.loss(training.model.networks, step.batches[2], settings)
    assert scores[1] > scores[0]


def test_the_adversary_has_a_share_of_the_encoders_gradient(small_run: Settings, digits: Dataset) -> None:
    """Weights or reductions that leave it next to nothing turn the model into a plain autoencoder, unseen: so the share
    is measured, as that of the phase's gradient on the trunk in the first step of the epoch."""
    for task in ("unsupervised", "semi_supervised"):
        training, other = (training_of(task, small_run, digits) for _ in range(2))
        norms: dict[str, float] = {}
        step = next(other.batches.epoch(0))
        for phase, batch, count in zip(other.model.phases, step.batches, step.examples, strict=True):
            other.optimizers[phase.name].zero_grad()
            loss = phase.loss(other.model.networks, batch, other.settings).loss_B.sum() / count
            trunk = list(other.model.networks["trunk"].parameters())
            if "trunk" in phase.updates:
                gradients = torch.autograd.grad(loss, trunk, retain_graph=True)
                norms[phase.name] = sum(float(gradient.square().sum()) for gradient in gradients) ** 0.5
            loss.backward()
            other.optimizers[phase.name].step()
        metrics = training.train(1).metrics
        for name, norm in norms.items():
            assert metrics[f"train/{name}_gradient_share"] == pytest.approx(norm / sum(norms.values()), rel=1e-6)
        assert metrics["train/regularize_gradient_share"] > 0.02


def test_pictures_name_what_their_points_are(small_run: Settings, digits: Dataset, tmp_path: Path) -> None:
    """Noisy training codes once looked off-centre in a picture that did not say what it showed."""
    titles = [
        str(figure_data(training_of(task, small_run, digits).evaluation)["title"])
        for task in ("unsupervised", "reduction")
    ]
    assert titles[0].startswith("unsupervised: held-out codes\ndeterministic posterior")
    assert titles[1].startswith("reduction: held-out codes W y + z\ndeterministic posterior")
