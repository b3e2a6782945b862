"""Everything that a run needs to go on, in one file: written atomically, read without running code."""

from pathlib import Path
from typing import Any

import torch

from aae_ray.settings import UserError

FILE = "state.pt"


def save(state: dict[str, Any], folder: str | Path) -> Path:
    """Write a state of tensors and plain values into a folder; a crash leaves the old file or the new one."""
    target = Path(folder) / FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(target)
    return target


def load(folder: str | Path) -> dict[str, Any]:
    """The state in a folder, on the CPU. Raises UserError when there is none or when it cannot be read."""
    path = Path(folder) / FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no checkpoint: there is no {FILE} in it") from None
    except Exception as error:
        raise UserError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0]}") from None
    return state
