"""The judge: good enough to judge, made once, the same each time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aae_ray.datasets.classes import UNKNOWN
from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import UserError
from aae_ray.evaluation import judge as module
from aae_ray.evaluation.judge import judge_for


def test_the_judge_of_the_digits(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    steps: list[int] = []
    judge = judge_for(digits, tmp_path, lambda what, done, total: steps.append(done))
    assert judge.accuracy > 0.97 and steps and steps[-1] <= module.STEPS
    x_NCHW = torch.from_numpy(digits.images_NCHW[digits.test]).float() / 255
    probabilities_NK = judge.probabilities(x_NCHW)
    assert judge.features(x_NCHW).shape == (len(x_NCHW), module.FEATURES) and probabilities_NK.shape[1] == 10
    assert digits.labels_N is not None
    right = probabilities_NK.argmax(1).numpy() == digits.labels_N[digits.test]
    assert right.mean() == pytest.approx(judge.accuracy)
    assert torch.equal(before, torch.get_rng_state())

    def never(*_: object) -> None:
        raise AssertionError("it is in the cache")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_train", never)
        again = judge_for(digits, tmp_path)
    assert (again.digest, again.accuracy) == (judge.digest, judge.accuracy)
    assert torch.equal(again.features(x_NCHW), judge.features(x_NCHW))

    (file,) = tmp_path.glob("judges/*.pt")
    file.write_bytes(file.read_bytes()[:100])
    assert judge_for(digits, tmp_path).digest == judge.digest  # damaged: made again, the same


def test_another_split_has_another_judge(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 3)
    first = judge_for(digits, tmp_path)
    other = judge_for(replace(digits, train=digits.val, val=digits.train), tmp_path)
    assert first.digest != other.digest and len(list(tmp_path.glob("judges/*.pt"))) == 2
    same_training = judge_for(replace(digits, val=digits.test, test=digits.val), tmp_path)
    assert same_training.digest == first.digest and same_training.accuracy != first.accuracy


def test_the_judge_is_the_same_on_any_number_of_threads(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 30)
    first = judge_for(digits, tmp_path / "one")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert judge_for(digits, tmp_path / "two").digest == first.digest
    finally:
        torch.set_num_threads(threads)


def test_what_no_judge_can_be_made_of(digits: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no labels"):
        judge_for(replace(digits, labels_N=None), tmp_path)
    with pytest.raises(UserError, match="images of 2 x 2 are too small"):
        judge_for(replace(digits, examples_NX=np.zeros((1797, 1, 2, 2), np.uint8)), tmp_path)


def test_a_judge_learns_from_labelled_images_and_is_tested_by_them(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STEPS", 20)
    assert digits.labels_N is not None
    labels_N = np.where(np.arange(len(digits.labels_N)) % 2, digits.labels_N, UNKNOWN)
    partly = replace(digits, labels_N=labels_N)
    labelled = replace(digits, train=partly.labelled(digits.train), test=partly.labelled(digits.test))
    first, second = judge_for(partly, tmp_path), judge_for(labelled, tmp_path)
    assert (first.digest, first.accuracy) == (second.digest, second.accuracy)
    for part in (digits.train, digits.test):
        bare = replace(digits, labels_N=np.where(np.isin(np.arange(len(labels_N)), part), UNKNOWN, digits.labels_N))
        assert not module.is_judged(bare) and module.judge_if_any(bare, tmp_path) is None
