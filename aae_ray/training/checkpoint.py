"""Everything that a run needs to go on, in one file: written atomically, read without running code.

A packed state is the content of that file. It travels between processes as it is: to unpack a state of many tensors and
pack it again takes longer than to train a small trial for an epoch.
"""

import io
from pathlib import Path
from typing import Any

import torch

from aae_ray.errors import UserError

FILE = "state.pt"


def pack(state: dict[str, Any]) -> bytes:
    """A state of tensors and plain values as the content of a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpack(packed: bytes) -> dict[str, Any]:
    """The state in the content of a file, on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    return state


def write(packed: bytes, folder: str | Path) -> Path:
    """Write a packed state into a folder; a crash leaves the old file or the new one."""
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_bytes(packed)
    partial.replace(target)
    return target


def save(state: dict[str, Any], folder: str | Path) -> Path:
    """Pack a state and write it into a folder."""
    return write(pack(state), folder)


def load(folder: str | Path) -> dict[str, Any]:
    """The state in a folder, on the CPU. Raises UserError when there is none or when it cannot be read."""
    path = Path(folder) / FILE
    try:
        state = unpack(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} holds no checkpoint: there is no {FILE} in it") from None
    except Exception as error:  # of an empty file the error says nothing
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise UserError(f"{path} is not a readable checkpoint: {reason}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a checkpoint of aae_ray: it holds a {type(state).__name__}")
    return state
