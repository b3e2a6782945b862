"""Models by whatever names them, and what commands bring to them: data sets and pictures."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from aae_ray import encode, evaluate, export, generate, reconstruct
from aae_ray.autoencoder.published import Published
from aae_ray.cli import run_command
from aae_ray.datasets.dataset import Dataset
from aae_ray.errors import UserError
from aae_ray.search import events
from aae_ray.search.space import study_file
from aae_ray.search.store import find_study
from aae_ray.settings import Settings, replace
from aae_ray.study.inputs import read_data, read_pictures
from aae_ray.study.loading import load_model
from aae_ray.tracking import registry
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training
from tests.datasets.small_sets import write_idx
from tests.search.test_conductor import begin, plan_of

SEMI_SUPERVISED = {"task": "semi_supervised", "data.labels": 100, "train.dtype": "float32", "train.ema_decay": 0.5}


@pytest.fixture(scope="module")
def training(small_run: Settings, digits: Dataset) -> Training:
    training = Training(replace(small_run, SEMI_SUPERVISED), digits)
    training.train(1)
    return training


@pytest.fixture(scope="module")
def saved(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "epoch_00001"
    checkpoint.save(training.state_dict(), folder)
    return folder


@pytest.fixture(scope="module")
def model(saved: Path) -> Published:
    return load_model(str(saved))


def check(loaded: Published, training: Training, digits: Dataset) -> None:
    """It encodes and decodes as the average of the weights does."""
    assert training.average is not None
    x_NCHW = torch.from_numpy(digits.images_NCHW[:5] / 255).float()
    with torch.no_grad():
        code = training.average.model.encode(x_NCHW.flatten(1), None)
        assert code.label_logits_BK is not None
        expected_ND = training.average.model.decode(code.z_BZ, code.label_logits_BK.softmax(1))
    torch.testing.assert_close(loaded.reconstruct(loaded.encode(x_NCHW)).flatten(1), expected_ND)


def test_a_checkpoint_is_loaded_with_the_average_of_its_weights(
    model: Published, training: Training, digits: Dataset
) -> None:
    check(model, training, digits)
    assert (model.task, model.labels, model.shape, model.data_digest) == (
        "semi_supervised",
        10,
        (1, 8, 8),
        digits.digest,
    )
    assert model.reconstruction_mse == training.history[-1]["val/reconstruction_mse"]


def test_a_study_is_its_best_trial_exported_or_as_a_checkpoint(
    training: Training, digits: Dataset, tmp_path: Path
) -> None:
    conductor = begin(tmp_path, plan_of())
    conductor.suggest()
    with pytest.raises(UserError, match="has not chosen its best trial yet: go on with it, python -m aae_ray.tune -"):
        load_model(str(tmp_path))
    about = {"prior": "gaussian", "prior_scale": "1", "latent_dim": "3", "classes": "10", "task": "semi_supervised"}
    for kind in ("decoder", "encoder"):
        registry.export(training.evaluation.model, tmp_path / kind / "t0000_epoch_00001", about, kind)
    conductor.record(events.Chosen(number=0, registration={"folder": "decoder/t0000_epoch_00001"}))
    check(load_model(str(tmp_path)), training, digits)
    check(load_model(str(tmp_path / "encoder" / "t0000_epoch_00001")), training, digits)
    assert load_model(str(tmp_path), encoder=False).encoder is None
    with pytest.raises(UserError, match="/decoder holds no model: there is no state.pt of a checkpoint, no MLmodel of"):
        load_model(str(tmp_path / "decoder"))
    with pytest.raises(UserError, match=r"journal.jsonl is a file; name a registered model, or the folder of a"):
        load_model(str(tmp_path / "journal.jsonl"))


def test_a_model_that_is_nowhere_is_looked_for_in_the_registry(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no MLflow database"):
        load_model("aae-digits-decoder", uri=f"sqlite:///{tmp_path}/mlflow.db")


def test_a_name_may_say_its_version_once() -> None:
    for model, version, message in (
        ("aae@", "champion", "'aae@' lacks an alias"),
        ("@champion", "champion", "'@champion' lacks the name of a model"),
        ("aae@newest", 3, "aae@newest names a version, and --version 3 another"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(model, version=version)


def test_data_are_those_of_the_training_or_others_by_name_or_path(
    model: Published, digits: Dataset, tmp_path: Path, cache: Path
) -> None:
    for data in (None, "digits"):
        own = read_data(data, [], model)
        assert own.digest == digits.digest and np.array_equal(own.test, digits.test)
    other = write_idx(tmp_path / "my digits", digits.images_NCHW[:50, 0], None)
    dataset = read_data(str(other), [f"data.cache={cache}"], model)
    assert (dataset.name, len(dataset.images_NCHW), dataset.labels_N) == ("my-digits", 50, None)
    with pytest.raises(UserError, match="data.path is given twice"):
        read_data(str(other), [f"data.path={other}"], model)
    with pytest.raises(UserError, match="train.epochs: a model is used as it was trained; give settings of data"):
        read_data(None, ["train.epochs=3"], model)
    small = write_idx(tmp_path / "small", digits.images_NCHW[:50, 0, :6, :6], None)
    with pytest.raises(UserError, match="images of 1x6x6, and .* takes 1x8x8; data.size=8x8 resizes them"):
        read_data(str(small), [f"data.cache={cache}"], model)
    with pytest.raises(UserError, match="data.name: digts is none of"):
        read_data("digts", [], model)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(UserError, match="is a study, and no data: name a set or a path"):
        read_data(str(tmp_path), [], model)


def test_other_pixels_are_read_as_those_of_the_training_were(
    model: Published, digits: Dataset, tmp_path: Path, cache: Path
) -> None:
    """Inverted, transposed and resized, unless the command says otherwise."""
    about = {"data.scale": "255:0", "data.transpose": "True", "data.size": "8x8", "data.name": "digits"}
    as_read = dataclasses.replace(model, settings=about)
    other, expected_NCHW = write_idx(tmp_path / "own", digits.images_NCHW[:9, 0], None), 255 - digits.images_NCHW[:9]
    found = read_data(str(other), [f"data.cache={cache}"], as_read)
    np.testing.assert_array_equal(found.images_NCHW, expected_NCHW.swapaxes(2, 3))
    found = read_data(str(other), [f"data.cache={cache}", "data.transpose=false"], as_read)
    np.testing.assert_array_equal(found.images_NCHW, expected_NCHW)
    Image.fromarray(digits.images_NCHW[0, 0]).save(tmp_path / "a.png")
    Image.new("L", (20, 28), 255).save(tmp_path / "white.png")
    a_CHW, white_CHW = read_pictures([tmp_path / "a.png", tmp_path / "white.png"], [], as_read)
    np.testing.assert_array_equal(a_CHW, expected_NCHW[0].swapaxes(1, 2))
    assert white_CHW.shape == (1, 8, 8) and not white_CHW.any()


def test_an_observed_scale_is_that_of_the_training(model: Published, tmp_path: Path, cache: Path) -> None:
    np.save(tmp_path / "half.npy", np.linspace(-0.5, 0.5, 20 * 64, dtype=np.float32).reshape(20, 8, 8))
    arguments = str(tmp_path / "half.npy"), [f"data.cache={cache}"]
    observed = dataclasses.replace(model, settings={"data.scale": "observed"}, value_range=(-1.0, 1.0))
    found = read_data(*arguments, observed)
    assert (int(found.images_NCHW.min()), int(found.images_NCHW.max())) == (64, 191)
    unknown = dataclasses.replace(observed, value_range=None)
    with pytest.raises(UserError, match="does not say which values it observed; give data.scale=LOW:HIGH"):
        read_data(*arguments, unknown)
    found = read_data(arguments[0], [*arguments[1], "data.scale=observed"], unknown)
    assert (int(found.images_NCHW.min()), int(found.images_NCHW.max())) == (0, 255)


@pytest.fixture
def pictures(digits: Dataset, tmp_path: Path) -> list[Path]:
    """Two of the model's size, a larger one in colour, and one that is none."""
    files = [tmp_path / name for name in ("a.png", "b.png", "large.png", "none.png")]
    for file, image_CHW in zip(files, digits.images_NCHW, strict=False):
        Image.fromarray(image_CHW[0]).save(file)
    Image.new("RGB", (28, 20), "white").save(files[2])
    files[3].write_text("no picture at all")
    return files


def test_arrays_are_taken_as_tensors_are(model: Published, digits: Dataset) -> None:
    x_NCHW = digits.images_NCHW[:5] / 255
    assert x_NCHW.dtype == np.float64
    expected = model.encode(torch.from_numpy(x_NCHW).float())
    for given in (x_NCHW, x_NCHW.astype(np.float32), torch.from_numpy(x_NCHW)):
        assert torch.equal(model.encode(given).z_NZ, expected.z_NZ)
    assert expected.y_NK is not None
    codes_NZ = torch.cat([expected.y_NK, expected.z_NZ], 1)
    assert torch.equal(model.decode(codes_NZ.double().numpy()), model.decode(codes_NZ))


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        (np.zeros((5, 1, 8, 4), np.float32), r"\(N, 1, 8, 8\) from 0 to 1, and these are of shape \(5, 1, 8, 4\)"),
        (np.zeros((1, 8, 8), np.float32), r"and these are of shape \(1, 8, 8\)"),
        (np.zeros((5, 1, 8, 8), np.uint8), "and these are uint8"),
        (np.full((5, 1, 8, 8), 16.0), "and these are from 16 to 16"),
        (np.full((5, 1, 8, 8), np.nan), "and these are not all finite"),
        (np.zeros((0, 1, 8, 8), np.float32), "and there are none"),
    ],
)
def test_what_is_no_image_of_the_models_is_a_sentence(model: Published, given: Any, mistake: str) -> None:
    with pytest.raises(UserError, match=f"^images are floats of shape .*{mistake}"):
        model.encode(given)


def test_what_is_no_code_of_the_models_is_a_sentence(model: Published) -> None:
    numbers = model.labels + model.prior.latent_dim
    with pytest.raises(UserError, match=rf"codes are floats of shape \(N, {numbers}\), and these are of .* \(5, 2\)"):
        model.decode(np.zeros((5, 2)))
    with pytest.raises(UserError, match="and these are not all finite"):
        model.decode(np.full((5, numbers), np.inf))


def test_samples_may_be_of_one_label(model: Published) -> None:
    assert torch.equal(model.sample(4, label=3), model.sample(4, seed=0, label="3"))
    assert not torch.equal(model.sample(4, label=3), model.sample(4, label=4))
    with pytest.raises(UserError, match="label 10: .* has no such label"):
        model.sample(4, label=10)


def test_a_sample_is_of_a_whole_number(model: Published) -> None:
    given: Any
    assert torch.equal(model.sample(np.int64(3), seed=np.int64(1)), model.sample(3, seed=1))  # type: ignore[arg-type]
    for given in (0, -1):
        with pytest.raises(UserError, match=f"a sample is of at least 1, and not of {given}"):
            model.sample(given)
    for given in (2.5, "3"):
        with pytest.raises(UserError, match="count and seed of a sample are whole numbers"):
            model.sample(given)


@pytest.mark.parametrize("count", [1, 2])
def test_a_set_that_is_too_small_to_train_on_is_encoded(
    model: Published, digits: Dataset, tmp_path: Path, count: int
) -> None:
    np.save(tmp_path / "few.npy", digits.images_NCHW[:count, 0])
    for data, overrides in ((str(tmp_path / "few.npy"), []), (None, [f"data.path={tmp_path}/few.npy"])):
        found = read_data(data, [*overrides, f"data.cache={tmp_path}", "data.scale=0:255"], model)
        np.testing.assert_array_equal(found.images_NCHW, digits.images_NCHW[:count])


def test_a_file_that_is_not_there_is_told_as_a_file(
    model: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.path: .*nothere\.npy does not exist"):
        read_data("nothere.npy", [], model)


def test_pictures_are_resized_only_when_asked(model: Published, digits: Dataset, pictures: list[Path]) -> None:
    np.testing.assert_array_equal(read_pictures(pictures[:2], [], model), digits.images_NCHW[:2])
    with pytest.raises(UserError, match="large.png is an image of 3x20x28, and .* takes 1x8x8; data.size=8x8 resizes"):
        read_pictures(pictures[:3], [], model)
    found_NCHW = read_pictures(pictures[:3], ["data.size=8x8", "data.channels=1"], model)
    assert found_NCHW.shape == (3, 1, 8, 8) and (found_NCHW[2] == 255).all()
    with pytest.raises(UserError, match="none.png is not a picture in a known format"):
        read_pictures(pictures[3:], [], model)
    with pytest.raises(UserError, match="c.png cannot be read: No such file"):
        read_pictures([pictures[0].with_name("c.png")], [], model)


# ------------------------------------------------------------------------------------------------------------ commands

COMMANDS: dict[str, Callable[..., None]] = {
    "encode": encode.encode,
    "reconstruct": reconstruct.reconstruct,
    "generate": generate.generate,
    "evaluate": evaluate.evaluate,
    "export": export.export,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_how_it_is_used(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        run_command(COMMANDS[name], name)
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"python -m aae_ray.{name}" in text and "--version" in text


def run(name: str, arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints, or its mistake; with the exit code in front."""
    monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run_command(COMMANDS[name], name)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return f"{end.value.code} {out if not end.value.code else err}"


def test_the_commands_write_what_they_say(
    saved: Path,
    pictures: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b, large, _ = pictures
    text = run("encode", ["--model", saved, "--out", "codes.parquet"], monkeypatch, capsys)
    assert text == f"0 codes.parquet: codes and scores of images of digits (1797), by {saved}\n"
    assert pq.read_metadata("codes.parquet").num_rows == 1797
    text = run("reconstruct", [a, b, large, "data.size=8x8", "data.channels=1", "--model", saved], monkeypatch, capsys)
    assert text.count("squared error per pixel") == 3 and text.endswith(f"by {saved}\n")
    assert Image.open("reconstructions.png").width > 3 * 64
    for arguments, file, what in (
        (["--label", "3", "--count", "5"], "samples.png", "5 images of .*, label 3, codes from its 3-dimensional"),
        (["--style", "2", "--format", "npy"], "samples.npy", "20 images of .*, a style a row, a label a column"),
        (
            ["--grid", "--count", "9", "--label", "0", "--out", "grid.png"],
            "grid.png",
            "9 images .* upwards, at the",
        ),
        (["--interpolate", a, b, "--out", "way.parquet"], "way.parquet", "10 images .* in 10 steps along the great"),
    ):
        text = run("generate", [saved, *arguments], monkeypatch, capsys)
        assert text.startswith(f"0 {file}: ") and Path(file).exists()
        assert re.search(what, text), text


@pytest.mark.parametrize(
    ("name", "arguments", "mistake"),
    [
        ("encode", [], "--model is missing: name a registered model, such as aae-digits-decoder"),
        ("encode", ["--model", "m", "--out", "codes.csv"], "--out codes.csv: give a name that ends in .parquet"),
        ("export", ["m"], "--onnx is missing: name the folder that the files go to"),
        ("export", ["m", "--onnx", "missing/onnx"], "--onnx missing/onnx: give a folder, in one that exists"),
        ("reconstruct", ["a.png"], "--model is missing"),
        ("reconstruct", ["data.size=8x8", "--model", "m"], "name at least one picture file"),
        ("generate", ["m", "--style", "3", "--grid"], "--style and --grid exclude each other"),
        ("generate", ["m", "--style", "3", "--label", "3"], "--style N makes N images of every label; leave out"),
        ("generate", ["m", "--grid", "--count", "60"], "--count 60: a grid has as many rows as columns; give 49 or 64"),
        ("generate", ["m", "--format", "npy", "--out", "a.png"], "--format npy and --out a.png contradict each other"),
        ("generate", ["m", "--out", "a.gif"], "--out a.gif: give a name that ends in .png, .npy, .parquet or .csv"),
        ("generate", ["m", "--out", "missing/a.png"], "--out missing/a.png: there is no folder"),
        ("generate", ["m", "data.size=3x3"], "data.size=3x3: settings of data.* are for the pictures of --interpolate"),
        ("generate", ["m"], "there is no MLflow database"),
        (
            "generate",
            ["m", "--tracking-uri", "http://127.0.0.1:9"],
            "the MLflow server http://127.0.0.1:9 does not answer: nothing listens there",
        ),
        ("generate", ["m", "--grid", "--seed", "3"], "--seed 3: --grid draws nothing; leave it out"),
        (
            "generate",
            ["m", "--interpolate", "a", "b", "--count", "1"],
            "--count 1: from one picture to the other there",
        ),
        ("generate", ["m", "--format", "gif"], "--format: expected one of png, npy, parquet, csv, got 'gif'"),
        ("generate", [""], "a model without a name: give that of a registered one, or the folder of a study"),
    ],
)
def test_mistakes_are_sentences(
    name: str,
    arguments: list[str],
    mistake: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    text = run(name, arguments, monkeypatch, capsys)
    assert text.startswith(f"2 {mistake}") and len(text.splitlines()) == 1
    assert not list(tmp_path.iterdir())


LONG = "x" * 300  # of a file no system lets have such a name


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("encode", [LONG, "--model", "{saved}"], "data.name"),
        ("encode", [f"./{LONG}", "--model", "{saved}"], "File name too long"),
        ("encode", ["--model", LONG], "there is no"),
        ("encode", ["--model", "{saved}", "--out", f"{LONG}.parquet"], "cannot be written: File name too long"),
        ("encode", ["--model", "{saved}", "--out", f"{LONG}/codes.parquet"], "in a folder that exists"),
        ("reconstruct", [f"{LONG}=1", "a.png", "--model", "{saved}"], "is not a setting"),
        ("reconstruct", [LONG, "--model", "{saved}"], "cannot be read: File name too long"),
        ("generate", [LONG], "there is no"),
        ("generate", ["{saved}", "--out", f"{LONG}/a.png"], "there is no folder"),
        ("evaluate", [LONG], "there is no"),
        ("export", ["{saved}", "--onnx", f"{LONG}/onnx"], "give a folder, in one that exists"),
        ("export", [LONG, "--onnx", "onnx"], "there is no"),
        ("export", ["m", "--onnx", "onnx", "--tracking-uri", f"sqlite:///{LONG}"], "there is no MLflow database"),
    ],
)
def test_a_name_that_is_too_long_for_a_file_is_a_sentence(
    name: str,
    arguments: list[str],
    said: str,
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    text = run(name, [argument.format(saved=saved) for argument in arguments], monkeypatch, capsys)
    assert text.startswith("2 ") and said in text


def test_studies_and_files_of_studies_may_be_named_by_too_long_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study is called x{300}: there are no studies"):
        find_study(LONG, tmp_path)
    with pytest.raises(UserError, match="x{300} is neither a file nor a study that ships"):
        study_file(LONG)
