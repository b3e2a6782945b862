"""On a GPU the whole set lies in its memory where it fits, and training gives what it gives on a CPU."""

from typing import Any

import numpy as np
import pytest
import torch

from aae_ray.datasets.dataset import Dataset
from aae_ray.datasets.images import Images
from aae_ray.settings import Settings, replace
from aae_ray.training.loop import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("free", [None, 1000])
def test_images_are_the_same_whether_they_lie_on_the_gpu_or_not(
    free: int | None, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    if free is not None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    there = Images(digits, torch.device("cuda"), torch.float64)
    here = Images(digits, torch.device("cpu"), torch.float64)
    assert (there.resident_ND is None) == (free is not None)
    assert there[np.arange(9)].device.type == "cuda"
    assert torch.equal(there[np.array([7, 3, 700])].cpu(), here[np.array([7, 3, 700])])


@pytest.mark.parametrize(
    "values", [{}, {"task": "clustering", "model.normalization": "batch", "train.input_warp": 0.1}]
)
def test_training_on_a_gpu_equals_training_on_a_cpu(
    values: dict[str, Any], small_run: Settings, digits: Dataset
) -> None:
    settings = replace(small_run, {"model.posterior": "gaussian", "optim.algorithm": "sgd"} | values)
    here, there = (Training(settings, digits, device=torch.device(name)) for name in ("cpu", "cuda"))
    for training in (here, there):
        training.train(2)
    for name, network in here.model.networks.items():
        for key, value in network.state_dict().items():
            other = there.model.networks[name].state_dict()[key].cpu()
            torch.testing.assert_close(other, value, rtol=1e-6, atol=1e-9, msg=f"{name}.{key}")
