"""How far an epoch is: told by time, and never of a short one."""

import pytest

from aae_ray.datasets.dataset import Dataset
from aae_ray.settings import Settings
from aae_ray.training import progress
from aae_ray.training.loop import Training
from aae_ray.training.progress import TELL_SECONDS, TELL_SHARE, EpochProgress

BATCHES = 200


@pytest.mark.parametrize("batch_seconds", [0.001, 0.1, 6.0])
def test_it_is_told_by_time_and_of_a_long_epoch_no_more_often_than_of_a_short_one(
    monkeypatch: pytest.MonkeyPatch, batch_seconds: float
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    told: list[tuple[float, int, int]] = []
    epoch = EpochProgress(lambda done, batches: told.append((now, done, batches)))
    for _ in range(2):
        start, first = now, len(told)
        epoch.begin(BATCHES)
        for _ in range(BATCHES):
            now += batch_seconds
            epoch.step()
        mine, length = told[first:], BATCHES * batch_seconds
        if length < TELL_SECONDS:
            assert not mine
            continue
        assert 1 <= len(mine) <= min(1 / TELL_SHARE, length / TELL_SECONDS)
        assert mine[0][0] - start == pytest.approx(TELL_SECONDS, abs=2 * batch_seconds)
        assert all(done == round((at - start) / batch_seconds) < batches == BATCHES for at, done, batches in mine)


def test_training_counts_the_batches_of_its_epochs(
    small_run: Settings, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TELL_SHARE", 0.0)
    told: list[tuple[int, int]] = []
    training = Training(small_run, digits, tell=lambda done, batches: told.append((done, batches)))
    training.progress.seconds = -1.0  # at every batch
    training.train(2)
    steps = -(-len(digits.train) // small_run.train.batch_size)
    assert told == [(done, steps) for done in range(1, steps)] * 2 and training.batches.steps == steps
