"""Rows of numbers from a CSV file to a model that others load: what networks see is standardised, all else is in the
user's units. Needs no Ray."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from aae_ray import generate as generate_command
from aae_ray.autoencoder.kinds import RowKind
from aae_ray.datasets.dataset import load
from aae_ray.errors import SettingsError, UserError
from aae_ray.evaluation import figure_data, generation, sample_quality
from aae_ray.evaluation.encoding import write_codes
from aae_ray.evaluation.final_evaluation import COLUMNS_SHEET, evaluate_model, evaluate_samples
from aae_ray.evaluation.held_out import measured
from aae_ray.evaluation.judge import is_judged
from aae_ray.reading import Entry, build
from aae_ray.search.space import Plan
from aae_ray.settings import Settings
from aae_ray.study.checks import _check_data
from aae_ray.study.inputs import read_data, read_pictures
from aae_ray.study.loading import load_model
from aae_ray.study.standalone_evaluation import measure
from aae_ray.tracking import registry
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training


def settings_of(folder: Path, **more: Any) -> Settings:
    values = {
        "data.name": "cancer",
        "data.path": str(folder / "cancer.csv"),
        "data.cache": str(folder / "cache"),
        "model.latent_dim": 4,
        "train.epochs": 25,
        "train.batch_size": 32,
        "optim.reconstruction_lr": 3e-3,
    }
    return build({key: Entry(value, "test") for key, value in (values | more).items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    known = load_breast_cancer(as_frame=True)
    names = [str(known.target_names[label]) for label in known.target]
    known.data.assign(label=names).to_csv(path / "cancer.csv", index=False)
    return path


@pytest.fixture(scope="module")
def trained(folder: Path) -> Training:
    run = settings_of(folder)
    training = Training(run, load(run.data))
    training.train()
    checkpoint.save(training.state_dict(), folder / "checkpoint")
    return training


def test_training_reconstructs_far_better_than_the_mean_row(trained: Training) -> None:
    metrics = trained.history[-1]
    assert metrics["val/mean_image_mse"] == pytest.approx(1, abs=0.35)  # in standard deviations
    assert metrics["val/reconstruction_mse"] < 0.4 * metrics["val/mean_image_mse"]


def test_answers_of_the_decoder_are_not_held_to_the_range_of_pixels(trained: Training) -> None:
    x_ND = trained.model.sample(500, torch.Generator().manual_seed(0))
    assert x_ND.min() < -0.5 and x_ND.max() > 1.5


def test_metrics_of_images_do_not_apply(trained: Training) -> None:
    assert not is_judged(trained.dataset) and "val/kid_local" not in measured(trained.settings, trained.dataset)
    result = evaluate_model(trained.evaluation, None, trained.history[-1])
    quality = {name for name in result.metrics if name.startswith("quality/")}
    assert {"quality/column_wasserstein", "quality/correlation_error"} <= quality
    assert not {name for name in quality if "fid" in name or "kid" in name or "parzen" in name or "coverage" in name}
    assert list(result.sheets) == [COLUMNS_SHEET]
    assert any("samples differ from test rows most in" in remark for remark in result.remarks)


def test_real_rows_are_nearer_to_the_floor_than_shifted_or_shuffled_ones(trained: Training) -> None:
    dataset = trained.dataset
    rows = torch.from_numpy(np.asarray(dataset.examples_NX[dataset.train]))
    real_ND = dataset.kind.scaled(rows, torch.float32)
    generator = torch.Generator().manual_seed(0)
    shuffled_ND = torch.stack([x_N[torch.randperm(len(x_N), generator=generator)] for x_N in real_ND.T], 1)
    found = [evaluate_samples(lambda n, x=x: x[:n], dataset, None).metrics for x in (real_ND, real_ND + 1, shuffled_ND)]  # type: ignore[misc]
    real, shifted, shuffled = found
    assert shifted["quality/column_wasserstein"] == pytest.approx(1, abs=0.3)
    assert shifted["quality/column_wasserstein"] > 3 * real["quality/column_wasserstein"]
    assert shuffled["quality/correlation_error"] > 3 * real["quality/correlation_error"]
    assert real["quality/column_wasserstein"] < 3 * real["quality/column_wasserstein_floor"]


def test_column_distances_are_those_of_sorted_values() -> None:
    real_ND = torch.tensor([[0.0, 5.0], [1.0, 6.0], [2.0, 7.0]])
    moved_ND = torch.tensor([[3.0, 7.0], [1.0, 5.0], [2.0, 6.0]])
    torch.testing.assert_close(
        sample_quality.column_distances(real_ND, moved_ND), torch.tensor([1.0, 0.0], dtype=torch.float64)
    )
    assert sample_quality.correlation_error(real_ND, -real_ND * torch.tensor([1.0, -1.0])) == pytest.approx(2)


def test_figures_are_pictures_and_travel_without_pickle(trained: Training, tmp_path: Path) -> None:
    figure_data.save(figure_data.figure_data(trained.evaluation), tmp_path)
    data = figure_data.load((tmp_path / figure_data.FILE).read_bytes())
    assert data is not None
    for png in figure_data.draw(data).values():
        with Image.open(io.BytesIO(png)) as image:
            assert image.width > 300 and len(image.convert("L").getcolors(256) or []) > 20
    np.testing.assert_allclose(  # held-out rows in the user's units
        np.sort(data["originals"][:, 3].astype(float)),
        np.sort(trained.dataset.examples_NX[trained.dataset.val][:, 3]),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model.network": "convolutional"},
            "model.network=convolutional is for images, and data.name cancer holds rows",
        ),
        ({"train.input_warp": 0.1}, "train.input_warp=0.1 turns and moves images, and data.name cancer holds rows"),
    ],
)
def test_settings_of_images_are_refused_before_the_start(folder: Path, values: dict[str, Any], message: str) -> None:
    run = settings_of(folder, **values)
    with pytest.raises(SettingsError) as error:
        _check_data(Plan(run, {}), load(run.data))
    assert message in str(error.value)


def published_units(trained: Training, rows_ND: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Code and reconstruction by the bare networks, standardised by hand."""
    mean_D = trained.dataset.examples_NX[trained.dataset.train].mean(0)
    std_D = trained.dataset.examples_NX[trained.dataset.train].std(0)
    with torch.no_grad():
        code = trained.model.encode(torch.from_numpy((rows_ND - mean_D) / std_D).float(), None).z_BZ
        answer = trained.model.decode(code).double() * torch.from_numpy(std_D) + torch.from_numpy(mean_D)
    return code, answer


def test_a_checkpoint_and_its_export_answer_in_the_users_units(trained: Training, folder: Path, tmp_path: Path) -> None:
    dataset = trained.dataset
    rows_ND = np.array(dataset.examples_NX[dataset.test])
    code_NZ, answer_ND = published_units(trained, rows_ND)
    model = load_model(str(folder / "checkpoint"))
    encoded = model.encode(torch.from_numpy(rows_ND))
    torch.testing.assert_close(encoded.z_NZ, code_NZ, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.reconstruct(encoded), answer_ND, rtol=1e-3, atol=1e-3)

    import mlflow.pyfunc

    assert isinstance(dataset.kind, RowKind)
    about = {"prior": "gaussian", "latent_dim": "4", "prior_scale": "1", "image_shape": "30", "data.name": "cancer"}
    about |= {registry.ROWS: json.dumps(dataset.kind.record()), registry.RECONSTRUCTION: "0.3"}
    for kind in (registry.DECODER, registry.ENCODER):
        registry.export(trained.evaluation.model, tmp_path / kind / "t", about, kind)
    exported = registry.load_exported(tmp_path / "decoder" / "t", encoder=True)
    assert exported.kind == dataset.kind
    again = exported.encode(torch.from_numpy(rows_ND))
    torch.testing.assert_close(again.z_NZ, encoded.z_NZ, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(exported.reconstruct(again), model.reconstruct(encoded), rtol=1e-4, atol=1e-3)

    encoder = mlflow.pyfunc.load_model(str(tmp_path / "encoder" / "t"))
    frame = pd.DataFrame(rows_ND, columns=dataset.kind.columns)
    mixed = frame[frame.columns[::-1]].assign(other="x")  # columns go by their names
    for given in (frame, mixed):
        np.testing.assert_allclose(encoder.predict(given)["code"], code_NZ.numpy(), rtol=1e-3, atol=1e-3)
    assert encoder.metadata.signature.inputs.input_names() == list(dataset.kind.columns)
    whole = frame.assign(**{"mean area": frame["mean area"].round().astype("int64")})
    assert encoder.predict(whole)["code"].shape == (len(frame), 4)
    with pytest.raises(Exception, match="missing inputs.*mean radius"):
        encoder.predict(frame.drop(columns="mean radius"))
    answer = mlflow.pyfunc.load_model(str(tmp_path / "decoder" / "t")).predict(encoded.z_NZ.numpy())
    assert list(answer.columns) == list(dataset.kind.columns)
    np.testing.assert_allclose(answer.to_numpy(), answer_ND.numpy(), rtol=1e-3, atol=1e-3)


def test_codes_and_scores_of_a_table_in_another_order(trained: Training, folder: Path, tmp_path: Path) -> None:
    model = load_model(str(folder / "checkpoint"))
    known = load_breast_cancer(as_frame=True).data
    outliers = known.sample(60, random_state=0)
    outliers = outliers + np.random.default_rng(0).choice([-4, 4], outliers.shape) * known.std().to_numpy()
    both = pd.concat([known, outliers])[known.columns[::-1]].assign(label=["in"] * len(known) + ["out"] * 60, extra=7)
    both.to_csv(tmp_path / "other.csv", index=False)
    dataset = read_data(str(tmp_path / "other.csv"), [f"data.cache={tmp_path}"], model)
    assert dataset.kind == model.kind  # standardised as the training rows were, and not by its own outliers
    write_codes(model, dataset, tmp_path / "codes.parquet")
    table = pq.read_table(tmp_path / "codes.parquet").to_pandas()
    assert roc_auc_score(table["class"] == "out", table["anomaly_score"]) > 0.95
    own = read_data(None, [], model)
    write_codes(model, own, tmp_path / "own.parquet")
    mse = (
        pq.read_table(tmp_path / "own.parquet").to_pandas().query("part == 'validation'")["reconstruction_error"].mean()
    )
    assert mse == pytest.approx(trained.history[-1]["val/reconstruction_mse"], rel=1e-3)
    known.drop(columns="mean radius").to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(UserError, match=r"data\.columns: .* has no column mean radius"):
        read_data(str(tmp_path / "less.csv"), [f"data.cache={tmp_path}"], model)
    frame = known[known.columns[::-1]]
    assert torch.equal(model.encode(frame).z_NZ, model.encode(known.to_numpy()).z_NZ)
    nullable = known.astype("Float64")
    for given in (frame[::-1][::-1], nullable, known.to_numpy()[::-1][::-1], known.to_numpy()[:, ::-1][:, ::-1]):
        assert torch.equal(model.encode(given).z_NZ, model.encode(known.to_numpy()).z_NZ)
    with pytest.raises(UserError, match="and these are Python objects"):
        model.encode(known.to_numpy(dtype=object))
    with pytest.raises(UserError, match="takes numbers, and not all of mean radius, .* are"):
        model.encode(known.assign(**{"mean radius": "wide"}))
    with pytest.raises(UserError, match="missing: mean radius"):
        model.encode(known.drop(columns="mean radius"))
    with pytest.raises(UserError, match="are floats of shape .* and these are a str"):
        model.encode("rows")
    with pytest.raises(UserError, match="takes rows of numbers, and no pictures"):
        read_pictures([tmp_path / "a.png"], [], model)


def test_generated_rows_are_written_as_csv_npy_and_parquet(
    trained: Training, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(str(folder / "checkpoint"))
    made = generation.samples(model, 40, 0, None)
    for kind in ("csv", "npy", "parquet"):
        generate_command.generate(str(folder / "checkpoint"), count=40, out=tmp_path / f"rows.{kind}")
    assert "rows.csv: 40 rows of" in capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "rows.csv")
    assert list(frame.columns) == list(trained.dataset.kind.columns)  # type: ignore[attr-defined]
    for rows_ND in (frame.to_numpy(), np.load(tmp_path / "rows.npy")):
        np.testing.assert_array_equal(rows_ND, made.x_NX.numpy())
    table = pq.read_table(tmp_path / "rows.parquet").to_pandas()
    assert len(table["code"][0]) == 4 and np.array_equal(table["mean radius"], frame["mean radius"])
    real = trained.dataset.examples_NX[trained.dataset.train]
    np.testing.assert_allclose(frame.to_numpy().mean(0), real.mean(0), atol=1.5 * real.std(0).max(), rtol=0.7)
    with pytest.raises(UserError, match="--format png: .* makes rows, which are written as csv, npy, parquet"):
        generate_command.generate(str(folder / "checkpoint"), out=tmp_path / "rows.png")


def test_a_checkpoint_is_evaluated_on_other_rows_by_its_own_standardisation(
    trained: Training, folder: Path, tmp_path: Path
) -> None:
    known = pd.read_csv(folder / "cancer.csv")
    numbers = known.columns[:-1]
    known[numbers] = known[numbers] + 3 * known[numbers].std()
    known[[*numbers[::-1], "label"]].to_csv(tmp_path / "moved.csv", index=False)  # columns go by their names
    own = measure(str(folder / "checkpoint"), [], version="", uri="", any_data=False).result.metrics
    moved = measure(
        str(folder / "checkpoint"), [f"data.path={tmp_path / 'moved.csv'}"], version="", uri="", any_data=True
    ).result.metrics
    assert moved["test/mean_image_mse"] == pytest.approx(own["test/mean_image_mse"], rel=0.05)
    assert moved["test/reconstruction_mse"] > 5 * own["test/reconstruction_mse"]  # as seen by its own scale
    assert moved["quality/column_wasserstein"] > 2 > own["quality/column_wasserstein"]


def test_onnx_answers_in_the_users_units(folder: Path, trained: Training, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    import onnxruntime

    from aae_ray.evaluation.onnx_files import write_onnx

    model = load_model(str(folder / "checkpoint"))
    written = write_onnx(model, tmp_path / "onnx")
    assert [(file.inputs, file.outputs[0]) for file in written] == [(("codes",), "rows"), (("rows",), "code")]
    rows_ND = np.array(trained.dataset.examples_NX[trained.dataset.test])
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "encoder.onnx"), providers=["CPUExecutionProvider"])
    (code_NZ,) = session.run(["code"], {"rows": rows_ND})
    np.testing.assert_allclose(code_NZ, model.encode(torch.from_numpy(rows_ND)).z_NZ.numpy(), rtol=1e-3, atol=1e-3)
