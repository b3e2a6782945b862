"""What a trial and the workers of its gang say to each other, and how it travels."""

import pickle
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from aae_ray.evaluation.figure_data import FigureData
from aae_ray.execution.failures import Failed
from aae_ray.settings import Settings
from aae_ray.training.loop import Interval

READY = -1  # what the first message of a gang is a reply to: orders are counted from 0
INLINE_BYTES = 50_000  # that Ray carries with a call, without its object store
CALL_SECONDS = 60.0  # for an answer of the mailbox itself


@dataclass(frozen=True)
class Begin:
    """A trial to begin, from a packed state if there is one, on data of this digest where it is known."""

    settings: Settings
    state: bytes | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Train:
    """Train up to an epoch, but report earlier when the time is up; begin another trial first, if there is one."""

    until_epoch: int
    at_most_seconds: float
    begin: Begin | None = None


@dataclass(frozen=True)
class Quit:
    """End the gang."""


@dataclass(frozen=True)
class Ready:
    """The workers have been started: what a gang says first."""


@dataclass(frozen=True)
class Trained:
    """An interval, the packed state behind it, and the data of its figures where trials are compared."""

    interval: Interval
    state: bytes
    figures: FigureData | None
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How many batches of an epoch that takes long are done: the order is still being carried out."""

    epoch: int  # epochs before it
    done: int
    batches: int


@dataclass(frozen=True)
class Ended:
    """The gang is no more."""

    failed: Failed


@dataclass(frozen=True)
class Member:
    """A worker process of a gang, as it introduces itself."""

    actor: ActorHandle | None
    pid: int
    node_id: str


Order = Train | Quit
Reply = Ready | Trained | Failed | Progress | Ended


def pack(message: Order | Reply | None) -> bytes | list[ray.ObjectRef] | None:
    """A message as the mailbox carries it, unopened: its bytes, or a reference to them where they are many."""
    if message is None:
        return None
    packed = pickle.dumps(message)
    return packed if len(packed) <= INLINE_BYTES else [ray.put(packed)]


def unpack(packed: ray.ObjectRef, timeout: float) -> Any:
    """The message behind a call of the mailbox. Raises GetTimeoutError, and RayError for what went wrong there."""
    message = ray.get(packed, timeout=timeout)
    return pickle.loads(message if isinstance(message, bytes) else ray.get(message[0], timeout=CALL_SECONDS))
