"""The finished trials of earlier studies that a new one starts from."""

import shutil
from pathlib import Path

import pytest

from aae_ray.datasets.dataset import Dataset, split_digest
from aae_ray.errors import UserError
from aae_ray.search.journal import JOURNAL
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, replace
from aae_ray.study.warm_start import prior_trials
from tests.search.histories import START, History, write_evaluation

OLD, NEW, OTHER = "digits-20270115-080000-abcd", "digits-20270116-080000-0123", "mnist-20270117-080000-beef"


@pytest.fixture
def plan(tmp_path: Path, digits: Dataset) -> Plan:
    """Of a study in a folder with two earlier ones of an experiment, one of another, and an evaluation."""
    for index, (name, experiment) in enumerate(((OLD, None), (NEW, None), (OTHER, "other"))):
        history = History(time=START + index, study_id=name, tracking__experiment=experiment)
        started = history.events[0]
        history.events[0] = started.model_copy(
            update={"data": started.data.model_copy(update={"digest": digits.digest})}  # type: ignore[union-attr]
        )
        history.finish(0.1 + index, 0.2)
        history.write(tmp_path / name)
    write_evaluation(tmp_path / "evaluation-20270118-080000")
    return Plan(replace(Settings(), {"study.folder": str(tmp_path)}), {})


def sources(plan: Plan, digits: Dataset, *names: str) -> tuple[list[str], str]:
    """The trials found under some names, and what was said about it."""
    notes: list[str] = []
    prior = prior_trials(names, plan, digits, notes.append)
    return [trial.source for trial in prior], "".join(notes)


def test_a_configuration_with_several_seeds_is_one_earlier_trial_with_their_means(
    plan: Plan, digits: Dataset, tmp_path: Path
) -> None:
    history = History(study_id="seeds-20270119-080000-abcd", study__seeds_per_trial=2)
    started = history.events[0]
    history.events[0] = started.model_copy(
        update={"data": started.data.model_copy(update={"digest": digits.digest})}  # type: ignore[union-attr]
    )
    history.finish(0.1, 0.2)
    history.another_seed(0, 0.2, 0.4)
    history.write(tmp_path / "seeds-20270119-080000-abcd")
    (prior,) = prior_trials(["seeds-20270119-080000-abcd"], plan, digits, lambda note: None)
    assert prior.values == pytest.approx((0.15, 0.3)) and prior.source.endswith("/t0000")


def test_values_of_another_split_are_not_learnt_from(plan: Plan, digits: Dataset, tmp_path: Path) -> None:
    for split, refused in ((split_digest(digits), False), ("", False), ("another", True)):
        history = History(study_id="split-20270119-080000-abcd")
        data = history.events[0].data.model_copy(update={"digest": digits.digest, "split": split})  # type: ignore[union-attr]
        history.events[0] = history.events[0].model_copy(update={"data": data})
        history.finish(0.1, 0.2)
        shutil.rmtree(tmp_path / "split-20270119-080000-abcd", ignore_errors=True)
        history.write(tmp_path / "split-20270119-080000-abcd")
        if not refused:
            assert len(sources(plan, digits, "split-20270119-080000-abcd")[0]) == 1
            continue
        with pytest.raises(UserError, match="was on another split of digits, .* give the same data.split_seed"):
            sources(plan, digits, "split-20270119-080000-abcd")


def break_settings(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / JOURNAL
    path.write_text(path.read_text().replace('"train.epochs"', '"train.eras"'))


def test_an_experiment_stands_for_its_studies_and_an_evaluation_beside_them_is_none(
    plan: Plan, digits: Dataset
) -> None:
    assert sources(plan, digits, "aae/digits") == ([f"{OLD}/t0000", f"{NEW}/t0000"], "")
    assert sources(plan, digits, "other") == ([f"{OTHER}/t0000"], "")
    with pytest.raises(UserError, match="not of a study"):
        sources(plan, digits, "evaluation-20270118-080000")


def test_studies_of_an_experiment_that_cannot_be_read_are_left_out_with_a_sentence(
    plan: Plan, digits: Dataset, tmp_path: Path
) -> None:
    break_settings(tmp_path, OLD)
    found, told = sources(plan, digits, "aae/digits")
    assert found == [f"{NEW}/t0000"]
    assert f"--warm-start aae/digits leaves out {OLD}: " in told and "train.eras" in told


@pytest.mark.parametrize("name", [OTHER, "mnist", "other"])
def test_the_only_study_that_was_asked_for_must_be_readable(
    plan: Plan, digits: Dataset, tmp_path: Path, name: str
) -> None:
    break_settings(tmp_path, OTHER)
    with pytest.raises(UserError, match=f"--warm-start {name}: {OTHER}: .*train.eras"):
        sources(plan, digits, name)
