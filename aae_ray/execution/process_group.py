"""The process group of a gang's workers, without a socket that listens on every interface."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import torch
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import _rendezvous_handlers

from aae_ray.execution.failures import BadNode


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(listen_on_own_address)
        if backend_config.backend == "nccl":
            worker_group.execute(require_gpu)  # before NCCL is asked, which names neither the node nor a way out
        super().on_start(worker_group, backend_config)


class GroupConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's own, whose workers meet at the address of the first one's node and nowhere else."""

    def __init__(self, device: Literal["cpu", "cuda"], timeout_s: int) -> None:
        # Ray's own choice is NCCL for whoever holds a GPU, also where train.device=cpu keeps it from training there.
        super().__init__(backend={"cpu": "gloo", "cuda": "nccl"}[device], init_method="tcp", timeout_s=timeout_s)

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def require_gpu() -> None:
    """Raises BadNode in a process that holds a GPU of Ray's and has none that PyTorch sees: on the CPU it would train
    at a GPU's price."""
    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise BadNode.here(
            f"has a GPU for Ray and none for PyTorch, whose version {torch.__version__} {build}; "
            "install a build that fits the node's driver, or set train.device=cpu"
        )


def listen_on_own_address() -> None:
    """In this process, groups that meet by `tcp://HOST:PORT` do so at that host's address: PyTorch's store listens on
    every interface of the machine, unless it is handed a socket."""
    _rendezvous_handlers["tcp"] = _meet


def _meet(url: str, timeout: timedelta, **others: Any) -> Iterator[tuple[TCPStore, int, int]]:
    """What PyTorch calls to find the other workers: the store, the rank, the size of the world."""
    address = urlsplit(url)
    query = parse_qs(address.query)
    rank, size = int(query["rank"][0]), int(query["world_size"][0])
    assert address.hostname is not None and address.port is not None
    listening: int | None = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in address.hostname else socket.AF_INET
        listening = socket.create_server((address.hostname, address.port), family=family).detach()
    yield (
        TCPStore(
            address.hostname, address.port, size, rank == 0, timeout, multi_tenant=True,
            master_listen_fd=listening,
        ),
        rank,
        size,
    )  # fmt: skip
    raise RuntimeError("a process group meets once")
