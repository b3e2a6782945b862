"""What depends on data and priors alone is measured once in a process, and what it depends on tells it apart."""

import dataclasses

import pytest

from aae_ray.autoencoder.priors import Prior
from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation import constants
from aae_ray.evaluation.constants import Constants, data_key, prior_key
from aae_ray.settings import Settings, replace
from aae_ray.training.loop import Training


def test_a_value_is_measured_once_and_the_least_recent_goes() -> None:
    kept, measured = Constants(), []

    def value_of(number: int) -> int:
        return kept.once(("number", number), lambda: measured.append(number) or number)  # type: ignore[func-returns-value]

    assert [value_of(0), value_of(0), value_of(1)] == [0, 0, 1] and measured == [0, 1]
    for number in range(2, constants.MOST + 1):
        value_of(0)
        value_of(number)
    assert value_of(0) == 0 and measured.count(0) == 1
    assert value_of(1) == 1 and measured.count(1) == 2


def test_keys_tell_data_splits_and_priors_apart(digits: Dataset) -> None:
    other_split = dataclasses.replace(digits, val=digits.test, test=digits.val)
    assert data_key(digits) == data_key(dataclasses.replace(digits)) != data_key(other_split)
    priors = [Prior("gaussian", 2), Prior("gaussian", 3), Prior("gaussian", 2, 5.0), Prior("mixture", 2)]
    keys = {prior_key(prior) for prior in [*priors, Prior("mixture", 2, parts=4)]}
    assert len(keys) == 4 and prior_key(Prior("gaussian", 2)) in keys


def test_a_second_trial_finds_what_the_first_has_measured(small_run: Settings, digits: Dataset) -> None:
    """Its metrics are those that it would have had alone, and of prior and data nothing is measured again."""
    alone = Training(replace(small_run, {"seed": 1}), digits).train(1).metrics
    shared = Constants()
    Training(small_run, digits, constants=shared).train(1)
    held = dict(shared._values)
    second = Training(replace(small_run, {"seed": 1}), digits, constants=shared).train(1).metrics
    assert {**second, "perf/images_per_second": 0} == {**alone, "perf/images_per_second": 0}
    assert len(held) == 5 and shared._values.keys() == held.keys()
    assert all(shared._values[key] is value for key, value in held.items())


def test_of_a_prior_at_another_scale_nothing_is_measured_again(small_run: Settings, digits: Dataset) -> None:
    """Codes and prior that are stretched alike are as far apart as before."""
    shared, results = Constants(), []
    for scale in (1.0, 4.0):
        evaluation = Training(replace(small_run, {"model.prior_scale": scale}), digits, constants=shared).evaluation
        z_NZ = scale * evaluation.unit_prior_codes(len(digits.val), 7)
        evaluation._encodings["val"] = evaluation._look_at("val")._replace(z_NZ=z_NZ)
        results.append(evaluation.costly("val"))
    assert results[0] == pytest.approx(results[1])
    assert len(shared._values) == 4


def test_label_priors_have_bounds_of_their_own(small_run: Settings, digits: Dataset) -> None:
    """Two models in one process whose p(y) differ are each held against draws of their own p(y)."""
    task = {"task": "clustering", "model.clusters": 2}
    shared = Constants()
    for shares in ("uniform", [0.9, 0.1], [0.6, 0.4]):
        settings = replace(small_run, task | {"model.label_prior": shares})
        result = Training(settings, digits, constants=shared).evaluation.costly("val")
        assert result == Training(settings, digits).evaluation.costly("val")
    names = [next(iter(key)) for key in shared._values if isinstance(key, tuple)]
    assert names.count("joint_jsd_nats") == 3 and names.count("jsd_nats") == 1
