"""How the workers of a gang meet, by the device on which they train."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aae_ray.errors import UserError
from aae_ray.execution.process_group import GroupConfig


class OneProcess:
    """As much of Ray Train's worker group as is asked before the workers meet."""

    def execute(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return [function(*arguments)]


def test_workers_that_hold_a_gpu_and_train_on_the_cpu_meet_without_nccl() -> None:
    assert GroupConfig("cpu", 10).to_dict() == {"backend": "gloo", "init_method": "tcp", "timeout_s": 10}
    assert GroupConfig("cuda", 10).backend == "nccl"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_node_whose_pytorch_sees_no_gpu_is_told_by_name() -> None:
    config = GroupConfig("cuda", 10)
    with pytest.raises(UserError, match=r"has a GPU for Ray and none for PyTorch, whose version .*train.device=cpu"):
        config.backend_cls().on_start(OneProcess(), config)
