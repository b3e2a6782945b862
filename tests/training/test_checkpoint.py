"""Checkpoints are written whole or not at all, and read without running code."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from aae_ray.errors import UserError
from aae_ray.training import checkpoint


def test_a_state_comes_back_as_it_went(tmp_path: Path) -> None:
    state: dict[str, Any] = {"weights": torch.arange(3.0), "epoch": 4, "history": [{"a": 0.5}]}
    checkpoint.save(state, tmp_path / "new" / "folder")
    again = checkpoint.load(tmp_path / "new" / "folder")
    assert torch.equal(again.pop("weights"), state.pop("weights")) and again == state


def test_a_crash_while_writing_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save({"epoch": 1}, tmp_path)

    def crash(file: Path, content: bytes) -> None:
        with file.open("wb") as half:
            half.write(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", crash)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save({"epoch": 2}, tmp_path)
    assert checkpoint.load(tmp_path) == {"epoch": 1}


def test_missing_and_broken_checkpoints_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    for content in (b"not a checkpoint", b""):
        (tmp_path / checkpoint.FILE).write_bytes(content)
        with pytest.raises(UserError, match="not a readable checkpoint: .+"):
            checkpoint.load(tmp_path)
    torch.save([1, 2], tmp_path / checkpoint.FILE)
    with pytest.raises(UserError, match="it holds a list"):
        checkpoint.load(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"epoch": Evil()}, tmp_path / checkpoint.FILE)
    with pytest.raises(UserError):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "ran").exists()
