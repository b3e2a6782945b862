"""Evaluating a checkpoint outside of its study: the study's figures again, and no other data by mistake."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from aae_ray.datasets.dataset import Dataset, load, split_digest
from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.contract import Report
from aae_ray.settings import Settings, replace
from aae_ray.study.loading import checkpoint_of, load_model
from aae_ray.study.standalone_evaluation import StandaloneEvaluation, checkpoint_name, measure, record
from aae_ray.tracking import registry
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training
from tests.datasets.small_sets import write_idx
from tests.search.test_conductor import begin, begin_trial, plan_of
from tests.tracking.test_registry import NAME, client_of, new_run, request_of

VALUES = {"task": "semi_supervised", "data.labels": 100, "train.dtype": "float32", "model.hidden": "32-16"}


@pytest.fixture
def saved(tmp_path: Path, small_run: Settings, digits: Dataset) -> Path:
    training = Training(replace(small_run, VALUES), digits)
    training.train(2)
    checkpoint.save(training.state_dict(), tmp_path / "saved")
    return tmp_path / "saved"


def evaluate(folder: Path, *overrides: str, any_data: bool = False) -> StandaloneEvaluation:
    return measure(str(folder), overrides, version="champion", uri="sqlite:///unused.db", any_data=any_data)


def test_a_checkpoint_is_measured_on_the_test_images_and_recorded(
    saved: Path, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluate(saved)
    metrics = found.result.metrics
    assert {"test/classification_error", "test/jsd_nats", "quality/fid_local", "quality/reencoding_error"} <= set(
        metrics
    )
    assert evaluate(saved).result.metrics == metrics  # one protocol, fixed seeds
    recorded = record(found, database)
    assert (recorded.unsent, recorded.refused) == (0, []) and recorded.folder.parent == Path("runs")

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("aae/digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.tags["aae.data_digest"] == found.dataset.digest and found.judge is not None
    assert run.data.tags["aae.judge"] == found.judge.digest and run.data.tags["aae.class_shares"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["quality/fid_local"] == pytest.approx(metrics["quality/fid_local"])
    figures = [item.path for item in client.list_artifacts(run.info.run_id, "figures")]
    assert figures == ["figures/confusion.png", "figures/nearest.png"]
    assert found.result.confusion is not None and found.result.confusion.counts_CC.sum() == len(found.dataset.test)
    assert found.result.confusion.error == pytest.approx(metrics["test/classification_error"])
    assert run.data.tags["aae.class_errors"] == "; ".join(found.result.confusion.lines())
    assert run.data.params["task"] == "semi_supervised" and run.data.params["model.hidden"] == "32-16"
    assert record(found, database).folder != recorded.folder, "two of one second are two"
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_checkpoint_is_named_after_its_study_and_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "digits-1" / "trials" / "t0003" / "epoch_00027"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for place in (folder, Path(".")):
        assert checkpoint_name(place) == "digits-1/t0003/epoch_00027"
    assert checkpoint_name(tmp_path) == tmp_path.name


@pytest.mark.slow
def test_other_data_are_refused_unless_asked_for(saved: Path, tmp_path: Path, digits: Dataset, cache: Path) -> None:
    assert digits.labels_N is not None
    own = write_idx(tmp_path / "own", 255 - digits.images_NCHW[:, 0], np.asarray(digits.labels_N))
    data = ("data.name=own", f"data.path={own}", f"data.cache={cache}")
    with pytest.raises(UserError, match=re.escape("was trained on data with digest")):
        evaluate(saved, *data)
    assert "quality/fid_local" in evaluate(saved, *data, any_data=True).result.metrics
    small = write_idx(tmp_path / "small", digits.images_NCHW[:, 0, :6, :6], np.asarray(digits.labels_N))
    with pytest.raises(UserError, match="makes images of 1x8x8, and those of data.name small are 1x6x6"):
        evaluate(saved, "data.name=small", f"data.path={small}", f"data.cache={cache}", any_data=True)


def test_another_split_would_test_on_training_images(saved: Path) -> None:
    with pytest.raises(UserError, match=r"data.split_seed=1 instead of 0: .* was trained on \d+ of the 359"):
        evaluate(saved, "data.split_seed=1")
    assert "quality/fid_local" in evaluate(saved, "data.split_seed=1", any_data=True).result.metrics


def test_a_set_with_a_test_part_of_its_own_has_the_same_test_in_any_split(
    small_run: Settings, tmp_path: Path, digits: Dataset, cache: Path
) -> None:
    assert digits.labels_N is not None
    own = write_idx(tmp_path / "own", digits.images_NCHW[:, 0], np.asarray(digits.labels_N), 300)
    data = {"data.name": "own", "data.path": str(own), "data.cache": str(cache)}
    run = replace(small_run, data)
    training = Training(run, load(run.data))
    training.train(1)
    checkpoint.save(training.state_dict(), tmp_path / "other")
    assert evaluate(tmp_path / "other", "data.test_fraction=0.3").result.metrics


def test_the_same_images_in_parts_of_a_column_or_drawn_are_two_splits(
    small_run: Settings, tmp_path: Path, digits: Dataset, cache: Path
) -> None:
    rows = np.arange(0, 1797, 6)
    words = np.where(np.arange(len(rows)) < 200, "train", "test")
    file = tmp_path / "own.parquet"
    columns = {f"pixel{index}": digits.images_NCHW[rows].reshape(len(rows), -1)[:, index] for index in range(64)}
    pq.write_table(pa.table(columns | {"label": np.asarray(digits.labels_N)[rows], "split": words}), file)
    data = {"data.name": "own", "data.path": str(file), "data.cache": str(cache)}
    run = replace(small_run, data)
    training = Training(run, load(run.data))
    training.train(1)
    checkpoint.save(training.state_dict(), tmp_path / "saved")
    said = r"data.split_column=none instead of none given: .* was trained on \d+ of the 60 images"
    with pytest.raises(UserError, match=said):
        evaluate(tmp_path / "saved", "data.split_column=none")
    drawn = load(replace(run, {"data.split_column": "none"}).data)
    assert drawn.digest == training.dataset.digest and split_digest(drawn) != split_digest(training.dataset)
    assert events.DataRecord.of(training.dataset).split == split_digest(training.dataset)

    pq.write_table(pa.table(columns | {"label": np.asarray(digits.labels_N)[rows], "split": words[::-1]}), file)
    with pytest.raises(UserError, match="the source of data.name own gives other parts than it did: .* may have been"):
        evaluate(tmp_path / "saved")
    assert evaluate(tmp_path / "saved", any_data=True).result.metrics


def test_a_model_is_evaluated_as_it_was_trained(saved: Path) -> None:
    with pytest.raises(UserError, match="model.prior_scale, train.epochs: a model is evaluated as it was trained"):
        evaluate(saved, "model.prior_scale=5", "train.epochs=3", "data.split_seed=0")
    with pytest.raises(UserError, match="Did you mean data.path"):
        evaluate(saved, "dta.path=x")


def test_data_of_other_classes_are_refused_before_a_judge_is_trained(
    saved: Path, tmp_path: Path, digits: Dataset
) -> None:
    assert digits.labels_N is not None
    few = write_idx(tmp_path / "few", digits.images_NCHW[:, 0], np.asarray(digits.labels_N) % 5)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="with task semi_supervised on 10 classes, and data.name few has 5"):
        evaluate(saved, "data.name=few", f"data.path={few}", f"data.cache={cache}", any_data=True)
    assert not (cache / "judges").exists()
    old = {name: part for name, part in checkpoint.load(saved).items() if name != "classes"}  # of an earlier version
    checkpoint.save(old, tmp_path / "old")
    with pytest.raises(UserError, match="its weights do not fit"):
        evaluate(tmp_path / "old", "data.name=few", f"data.path={few}", f"data.cache={cache}", any_data=True)


def test_as_many_classes_of_other_names_are_refused(saved: Path, tmp_path: Path, digits: Dataset) -> None:
    file = tmp_path / "own.parquet"
    columns = {f"pixel{index}": digits.images_NCHW.reshape(1797, -1)[:, index] for index in range(64)}
    pq.write_table(pa.table(columns | {"label": [f"class {label}" for label in np.asarray(digits.labels_N)]}), file)
    data = ("data.name=own", f"data.path={file}", f"data.cache={tmp_path / 'cache'}")
    with pytest.raises(UserError, match="was trained on the classes 0, 1, .* and data.name own has class 0, class 1"):
        evaluate(saved, *data, any_data=True)


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model: there is no state.pt of a checkpoint"):
        evaluate(tmp_path)
    states: tuple[Any, ...] = ({}, {1: 2})
    for state in states:
        checkpoint.save(state, tmp_path / "strange")
        with pytest.raises(UserError, match="is not a checkpoint of aae_ray"):
            evaluate(tmp_path / "strange")


def test_a_study_is_evaluated_by_its_best_trial(
    saved: Path, small_run: Settings, digits: Dataset, tmp_path: Path
) -> None:
    """By its checkpoint; where it is gone, by the models that were exported, of which less can be measured."""
    study = tmp_path / "study"
    study.mkdir()
    conductor = begin(study, plan_of())
    with pytest.raises(UserError, match="has not chosen its best trial yet"):
        evaluate(study)
    kept = study / "trials" / "t0000" / "epoch_00002"
    kept.parent.mkdir(parents=True)
    saved.rename(kept)
    exported = study / "decoder" / "t0000_epoch_00002"
    training = Training(replace(small_run, VALUES), digits)
    training.load_state_dict(checkpoint.load(kept))
    about = {"task": "semi_supervised", "prior": "gaussian", "prior_scale": "1", "latent_dim": "3", "classes": "10"}
    about |= {"image_shape": "1x8x8", "data.name": "digits", "data.digest": digits.digest}
    about |= {"data.cache": str(small_run.data.cache)}
    for kind in ("decoder", "encoder"):
        registry.export(training.evaluation.model, study / kind / exported.name, about, kind)
    begin_trial(conductor)
    history = ({"epoch": 27.0, "val/reconstruction_mse": 0.1, "val/jsd_nats": 0.5},)
    conductor.reported(Report(0, 27, history, True, checkpoint=str(kept.relative_to(study))))
    conductor.record(events.Chosen(number=0, registration={"folder": str(exported.relative_to(study))}))
    found = evaluate(study)
    assert found.name == "study/t0000/epoch_00002" and "quality/reencoding_error" in found.result.metrics
    less = evaluate(exported)
    assert less.name == exported.name and "quality/reencoding_error" not in less.result.metrics
    assert less.result.confusion is not None
    shutil.rmtree(kept)
    assert checkpoint_of(str(study)) is None and load_model(str(study)).encoder is not None


@pytest.mark.parametrize("alone", [False, True])
def test_a_registered_classifier_tells_its_errors(
    alone: bool, small_run: Settings, digits: Dataset, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its encoder; a decoder that was registered alone is measured without."""
    monkeypatch.chdir(tmp_path)
    training = Training(replace(small_run, {"task": "semi_supervised", "train.dtype": "float32"}), digits)
    training.train(1)
    about = {"task": "semi_supervised", "prior": "gaussian", "prior_scale": "1", "latent_dim": "3", "classes": "10"}
    about |= {"image_shape": "1x8x8", "data.name": "digits", "data.cache": str(small_run.data.cache)}
    for kind in ("decoder", "encoder"):
        registry.export(training.evaluation.model, tmp_path / kind / "m", about, kind)
    request = request_of(
        "s/t/1", [[0.1, 0.1]], folder=tmp_path / "decoder/m", encoder=None if alone else tmp_path / "encoder/m"
    )
    request["tags"] |= about | {"data.digest": digits.digest}
    client = client_of(database)
    registry.register(client, new_run(client), request)
    result = measure(NAME, [], version="champion", uri=database, any_data=False).result
    assert "quality/fid_local" in result.metrics and (result.confusion is None) is alone
    if result.confusion:
        own = training.evaluation.confusion("test")
        assert own is not None and np.array_equal(result.confusion.counts_CC, own.counts_CC)
