"""Encoder and decoder are published without pickle and without us, registered once, promoted together when they are
better, loaded by name."""

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aae_ray.autoencoder.kinds import ImageKind
from aae_ray.autoencoder.model import Model, build_model
from aae_ray.autoencoder.phases import TASKS
from aae_ray.autoencoder.published import Decoder, Published, draw_codes
from aae_ray.cli import run_command
from aae_ray.errors import UserError
from aae_ray.evaluation.final_evaluation import FinalEvaluation
from aae_ray.promote import promote as command
from aae_ray.reporting.cards import model_card
from aae_ray.search import events
from aae_ray.search.promotion import evidence_tags
from aae_ray.search.space import Plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.settings import Settings, replace
from aae_ray.study.finalists import choose
from aae_ray.tracking import registry
from aae_ray.tracking.address import tracking_uri
from aae_ray.tracking.cursor import CURSOR
from tests.search.test_promotion import confirmed
from tests.tracking.little_study import LittleStudy, sync

NAME, ENCODER = "aae-digits-decoder", "aae-digits-encoder"
DIGEST = "d" * 32
# By network, or by task where its decoder is told a label; odd sides are the hard ones for transposed convolutions.
SHAPES = {
    "dense": (1, 8, 8),
    "convolutional": (2, 9, 7),
    "semi_supervised": (1, 8, 8),
    "reduction": (1, 8, 8),
    "vae": (1, 8, 8),
    "universal": (1, 8, 8),
}
POSTERIORS = {"vae": "gaussian", "universal": "universal"}
ANSWERS = {  # what an encoder of each answers with, and of which size
    "semi_supervised": {"code": 3, "probabilities": 4},
    "reduction": {"code": 3, "probabilities": 4, "representation": 3},
    "vae": {"code": 3, "sigma": 3},
}
CLASSES = 4
BATCHES = (1, 17)


def settings_of(network: str, **changes: Any) -> Settings:
    return replace(
        Settings(),
        {
            "model.network": "convolutional" if network == "convolutional" else "dense",
            "task": network if network in TASKS else "unsupervised",
            "model.posterior": POSTERIORS.get(network, "deterministic"),
            "model.clusters": CLASSES,
            "model.latent_dim": 3,
            "model.hidden": (16, 12),
            "model.channels": (4, 6),
            "model.prior_scale": 2.0,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


def about_of(run: Settings) -> dict[str, str]:
    return {
        "task": run.task,
        "prior": run.model.prior,
        "prior_scale": str(run.model.prior_scale),
        "latent_dim": str(run.model.latent_dim),
    }


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {
        network: build_model(settings_of(network), ImageKind(shape), classes=CLASSES)
        for network, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def exported(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        network: registry.export(model, tmp_path_factory.mktemp(network) / "decoder/m", about_of(settings_of(network)))
        for network, model in models.items()
    }


@pytest.fixture(scope="module")
def encoders(models: dict[str, Model], exported: dict[str, Path]) -> dict[str, Path]:
    """The encoders, beside the decoders of the same model."""
    return {
        network: registry.export(
            model, exported[network].parent.parent / "encoder/m", about_of(settings_of(network)), registry.ENCODER
        )
        for network, model in models.items()
    }


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def new_run(client: Any) -> str:
    experiment = client.get_experiment_by_name("decoders")
    location = (Path(client.tracking_uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    place = experiment.experiment_id if experiment else client.create_experiment("decoders", artifact_location=location)
    run_id: str = client.create_run(place).info.run_id
    return run_id


# ------------------------------------------------------------------------------------------------------------- export

FAR_AWAY = """
import json, os, sys

class NotHere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("aae_ray", "ray", "optuna", "rich", "typer", "pooch"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, NotHere())
try:
    import aae_ray
except ImportError:
    pass
else:
    raise SystemExit("this process can import aae_ray: it proves nothing")

import mlflow
import numpy as np
import torch

for name, where in json.loads(sys.argv[1]).items():
    decoder, decode = mlflow.pytorch.load_model(where["decoder"]), mlflow.pyfunc.load_model(where["decoder"]).predict
    encoder, encode = mlflow.pytorch.load_model(where["encoder"]), mlflow.pyfunc.load_model(where["encoder"]).predict
    for batch in (0, 1, 17):
        codes = np.load(f"{name}-{batch}.npy")
        images = decoder(torch.from_numpy(codes)).numpy()
        np.save(f"{name}-{batch}-images.npy", images)
        answer = {key: part.numpy() for key, part in encoder(torch.from_numpy(images)).items()}
        np.savez(f"{name}-{batch}-answer.npz", **answer)
        for kind in (np.float32, np.float64):
            np.testing.assert_array_equal(decode(codes.astype(kind)), images)
            again = encode(images.astype(kind))
            assert again.keys() == answer.keys()
            for key in answer:
                np.testing.assert_array_equal(again[key], answer[key])
                assert again[key].dtype == np.float32

codes = torch.from_numpy(np.load("dense-17.npy"))
exec(open("card.py").read())
np.save("card-images.npy", images.numpy())
np.save("card-code.npy", code.numpy())
assert not [module for module in sys.modules if module.partition(".")[0] == "aae_ray"]
"""


def card_code(card: str) -> str:
    return card.partition("```python\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def far_away(
    models: dict[str, Model],
    exported: dict[str, Path],
    encoders: dict[str, Path],
    empty_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with what a process without this package decoded and encoded: from the files, by torch and as MLflow's
    python function, and as the model card says."""
    folder = tmp_path_factory.mktemp("far-away")
    for network, model in models.items():
        for batch in (0, *BATCHES):
            generator = torch.Generator().manual_seed(batch)
            codes_BZ = draw_codes(model.prior, model.label_shares_K, max(batch, 1), generator)[:batch]
            np.save(folder / f"{network}-{batch}.npy", codes_BZ.numpy())
    shutil.copyfile(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = client_of(uri)
    run = settings_of("dense")
    kind = ImageKind(SHAPES["dense"])
    card = model_card(
        NAME, ENCODER, TrialRecord(0, {}, Plan(run, {}), 0.0, 1), run, [], FinalEvaluation(), "digits-1", kind
    )
    registry.register(
        client,
        new_run(client),
        request_of("s/ab12/3", [[0.1, 0.1]], folder=exported["dense"], run=run, card=card, encoder=encoders["dense"]),
    )
    (folder / "card.py").write_text(card_code(card))
    (folder / "child.py").write_text(FAR_AWAY)
    places = json.dumps(
        {network: {"decoder": str(exported[network]), "encoder": str(encoders[network])} for network in models}
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "PYTHON"))}
    environment |= {
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-I", "child.py", places],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("network", SHAPES)
def test_an_exported_decoder_gives_the_models_numbers_where_this_package_is_not(
    far_away: Path, models: dict[str, Model], network: str, batch: int
) -> None:
    codes_BZ = torch.from_numpy(np.load(far_away / f"{network}-{batch}.npy"))
    images_BCHW = np.load(far_away / f"{network}-{batch}-images.npy")
    with np.load(far_away / f"{network}-{batch}-answer.npz") as file:
        answer = dict(file)
    assert images_BCHW.shape == (batch, *SHAPES[network]) and images_BCHW.dtype == np.float32
    model = models[network]
    assert codes_BZ.shape == (batch, model.classes + 3)
    y_BK, z_BZ = codes_BZ.split([model.classes, 3], dim=1)
    with torch.no_grad():
        expected_BCHW = model.decode(z_BZ, y_BK if model.classes else None).unflatten(1, SHAPES[network])
    np.testing.assert_allclose(images_BCHW, expected_BCHW.numpy(), rtol=0, atol=1e-6)
    assert images_BCHW.std() > 0

    assert {key: part.shape[1] for key, part in answer.items()} == ANSWERS.get(network, {"code": 3})
    noise_BE = torch.zeros(batch, model.noise_dim) if model.noise_dim else None
    with torch.no_grad():
        code = model.encode(torch.from_numpy(images_BCHW).flatten(1), noise_BE)
    np.testing.assert_allclose(answer["code"], code.z_BZ.numpy(), rtol=0, atol=1e-6)
    if code.log_variance_BZ is not None:
        assert code.mean_BZ is not None and torch.equal(code.mean_BZ, code.z_BZ)
        np.testing.assert_allclose(answer["sigma"], (0.5 * code.log_variance_BZ).exp().numpy(), rtol=1e-5)
    if code.label_logits_BK is not None:
        y_BK = code.label_logits_BK.softmax(1)
        np.testing.assert_allclose(answer["probabilities"], y_BK.numpy(), rtol=0, atol=1e-6)
        with torch.no_grad():
            representation_BZ = model.decoder_input(code.z_BZ, y_BK)
        if "representation" in answer:
            np.testing.assert_allclose(answer["representation"], representation_BZ.numpy(), rtol=0, atol=1e-5)


def test_the_code_on_the_model_card_runs(far_away: Path) -> None:
    np.testing.assert_array_equal(np.load(far_away / "card-images.npy"), np.load(far_away / "dense-17-images.npy"))
    with np.load(far_away / "dense-17-answer.npz") as answer:
        np.testing.assert_array_equal(np.load(far_away / "card-code.npy"), answer["code"])


def test_what_is_exported_says_what_it_is_and_holds_no_pickle(
    exported: dict[str, Path], encoders: dict[str, Path], models: dict[str, Model]
) -> None:
    from mlflow.models import Model as Described

    for network, path in [*exported.items(), *encoders.items()]:
        about = Described.load(str(path))
        assert about.metadata == about_of(settings_of(network))
        (given,), shape = about.signature.inputs.input_names(), SHAPES[network]
        outputs = {spec.name: spec.shape for spec in about.signature.outputs.inputs}
        if path == encoders[network]:
            assert given == f"images (B, {shape[0]}, {shape[1]}, {shape[2]}) in [0, 1], float32 or float64"
            assert outputs == {name: (-1, size) for name, size in ANSWERS.get(network, {"code": 3}).items()}
        else:
            label = ": 4 of a one-hot label or its probabilities, then the code" if models[network].classes else ""
            assert given == f"codes (B, {models[network].classes + 3}){label}, float32 or float64"
            assert outputs == {"images in [0, 1]": (-1, *shape)}
        assert not [file for file in path.rglob("*") if file.suffix in (".pkl", ".pickle", ".pth", ".pt")]
        requirements = (path / "requirements.txt").read_text().split()
        assert sorted(line.partition("==")[0] for line in requirements) == ["mlflow", "torch"]


def test_images_of_another_shape_or_scale_are_refused_and_not_guessed(encoders: dict[str, Path]) -> None:
    from mlflow import pyfunc
    from mlflow.pyfunc.scoring_server import parse_tf_serving_input

    encode = pyfunc.load_model(str(encoders["dense"])).predict
    expected = r"images are arrays of shape \(B, 1, 8, 8\)"
    for images, what in (
        (np.zeros((3, 8, 8)), rf"{expected}, and not \(3, 8, 8\)"),
        (np.full((3, 1, 8, 8), 255, np.uint8), rf"{expected} of 0 to 1, and these are from 255 to 255"),
        (np.full((3, 1, 8, 8), -0.5), "from -0.5 to -0.5"),
        (np.full((3, 1, 8, 8), np.nan), "from nan to nan"),
    ):
        with pytest.raises(ValueError, match=what):
            encode(images)
    inputs = pyfunc.load_model(str(encoders["dense"])).metadata.signature.inputs
    served = parse_tf_serving_input({"instances": np.zeros((2, 1, 8, 8)).tolist()}, inputs)
    np.testing.assert_array_equal(encode(served)["code"], encode(np.zeros((2, 1, 8, 8)))["code"])


def test_a_model_with_class_names_that_was_exported_is_loaded_from_its_folder(
    models: dict[str, Model], tmp_path: Path
) -> None:
    about = about_of(settings_of("semi_supervised")) | {
        "classes": str(CLASSES), "image_shape": "1x8x8", "class_names": '["café", "b", "c", "d"]',
        "val/reconstruction_mse": "0.25", "data.name": "digits",
    }  # fmt: skip
    folder = tmp_path / "decoder" / "t0001_epoch_00003"
    registry.export(models["semi_supervised"], folder, about)
    assert registry.load_exported(folder).label_names == ("café", "b", "c", "d")
    with pytest.raises(UserError, match="has no encoder beside it: there is no .*/encoder/t0001_epoch_00003; run"):
        registry.load_exported(folder, encoder=True)
    encoder = tmp_path / "encoder" / "t0001_epoch_00003"
    registry.export(models["semi_supervised"], encoder, about, registry.ENCODER)
    for either in (folder, encoder):
        loaded = registry.load_exported(either, encoder=True)
        assert (loaded.reconstruction_mse, loaded.labels, loaded.shape) == (0.25, CLASSES, (1, 8, 8))
        assert loaded.settings["data.name"] == "digits"
        check_reconstructions(loaded, models["semi_supervised"])


def check_reconstructions(loaded: Published, model: Model) -> None:
    """Decoder after encoder after export is the model's own."""
    x_NCHW = torch.rand(9, *model.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        code = model.encode(x_NCHW.flatten(1), torch.zeros(9, model.noise_dim) if model.noise_dim else None)
        y_NK = None if code.label_logits_BK is None else code.label_logits_BK.softmax(1)
        expected_NCHW = model.decode(code.z_BZ, y_NK).unflatten(1, model.shape)
    torch.testing.assert_close(loaded.reconstruct(loaded.encode(x_NCHW)), expected_NCHW, rtol=0, atol=1e-6)


def test_export_changes_nothing_of_the_model(tmp_path: Path) -> None:
    model = build_model(settings_of("dense", train__dtype="float64"), ImageKind(SHAPES["dense"]))
    codes_BZ = model.prior.sample(4, torch.Generator().manual_seed(0), torch.float64)
    before_BD = model.decode(codes_BZ)
    registry.export(model, tmp_path / "decoder", {})
    assert {parameter.dtype for parameter in model.networks["decoder"].parameters()} == {torch.float64}
    assert all(parameter.requires_grad for parameter in model.networks["decoder"].parameters())
    assert torch.equal(model.decode(codes_BZ), before_BD)


def test_images_of_a_linear_decoder_are_images_too(models: dict[str, Model]) -> None:
    model = build_model(settings_of("dense", model__output="linear"), ImageKind(SHAPES["dense"]))
    z_BZ = 100 * model.prior.sample(50, torch.Generator().manual_seed(0))
    with torch.no_grad():
        images_BCHW = Decoder(model)(z_BZ)
    assert images_BCHW.min() == 0 and images_BCHW.max() == 1 and images_BCHW.shape == (50, *SHAPES["dense"])


# ------------------------------------------------------------------------------------------------- versions, champion


MEASURED = {"val/mean_image_mse": 1.0}


def request_of(
    trial: str,
    front: Sequence[Sequence[float]],
    *,
    best: int = 0,
    folder: Path,
    run: Settings | None = None,
    digest: str = DIGEST,
    objectives: str = "val/reconstruction_mse,val/jsd_nats",
    rule: str = "nearest_to_ideal",
    card: str = "# a card",
    constraints: Sequence[str] = (),
    encoder: Path | None = None,
    old: bool = False,
) -> dict[str, Any]:
    """What a study asks for: its front, and which member of it is the decoder that is registered. An old one was
    registered before versions kept their metrics."""
    tags = about_of(run or settings_of("dense")) | {
        "aae.trial": trial,
        "data.digest": digest,
        "data.split": "0,0.2,0.2",
        "objectives": objectives,
        "objective_values": json.dumps(list(front[best])),
    }
    trials = [dict(zip(objectives.split(","), point, strict=True)) | MEASURED for point in front]
    if not old:
        tags["choice_metrics"] = json.dumps(trials[best])
    return {
        "name": NAME,
        "folder": str(folder),
        "tags": tags,
        "card": card,
        "description": "Decoders.",
        "front": trials,
        "rule": rule,
        "constraints": list(constraints),
        "encoder": encoder and {"name": ENCODER, "folder": str(encoder), "card": card, "description": "Encoders."},
    }


class Registry:
    """A registry of one's own, into which studies register their decoders one after the other."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.client, self.folder = client_of(uri), folder
        self.beside: Path | None = None  # the folder of an encoder

    def add(self, trial: str, front: Sequence[Sequence[float]], **changes: Any) -> dict[str, Any]:
        return registry.register(
            self.client,
            new_run(self.client),
            request_of(trial, front, folder=self.folder, encoder=self.beside, **changes),
        )

    @property
    def champion(self) -> str:
        version: str = self.client.get_model_version_by_alias(NAME, "champion").version
        return str(version)

    @property
    def versions(self) -> list[str]:
        return sorted(str(version.version) for version in self.client.search_model_versions(f"name = '{NAME}'"))


@pytest.fixture
def decoders(database: str, tmp_path: Path) -> Registry:
    folder = tmp_path / "decoder"
    folder.mkdir()
    (folder / "MLmodel").write_text("a small stand-in: no test here loads it\n")
    return Registry(database, folder)


def test_the_first_of_its_name_is_the_champion(decoders: Registry) -> None:
    made = decoders.add("s1/a/3", [[0.2, 0.2]])
    assert made == {
        "name": NAME,
        "version": 1,
        "champion": True,
        "reason": "the first of its name",
        "against": None,
        "policy": "better",
        "rule": "nearest_to_ideal",
    }
    version = decoders.client.get_model_version(NAME, "1")
    assert version.tags["aae.trial"] == "s1/a/3" and json.loads(version.tags["objective_values"]) == [0.2, 0.2]
    assert version.description == "# a card" and version.run_id
    assert [file.path for file in decoders.client.list_artifacts(version.run_id, "decoder")] == ["decoder/MLmodel"]
    assert decoders.client.get_registered_model(NAME).description == "Decoders."


def test_the_same_decoder_is_registered_once(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.2, 0.2]])
    made = decoders.add("s1/a/3", [[0.2, 0.2]])
    assert (made["version"], made["champion"], decoders.versions, decoders.champion) == (1, True, ["1"], "1")
    assert made["reason"] == "it is the champion already"


@pytest.mark.parametrize(("other", "champion"), [([0.05, 0.05], "2"), ([0.15, 0.15], "3")])
def test_an_alias_that_another_study_moves_at_the_same_time_ends_at_the_better_one(
    decoders: Registry, monkeypatch: pytest.MonkeyPatch, other: Sequence[float], champion: str
) -> None:
    decoders.add("s1/a/3", [[0.2, 0.2]])
    decoders.add("s2/a/3", [other])
    decoders.client.set_registered_model_alias(NAME, "champion", "1")  # the other one has compared, and not moved yet
    move = decoders.client.set_registered_model_alias
    raced: list[str] = []

    def race(name: str, alias: str, version: str) -> None:
        move(name, alias, version)
        if not raced:
            raced.append(version)
            move(name, alias, "2")

    monkeypatch.setattr(decoders.client, "set_registered_model_alias", race)
    made = decoders.add("s3/a/3", [[0.1, 0.1]])
    assert decoders.champion == champion and made["champion"] is (champion == "3") and "version 2" in made["reason"]


def test_a_better_one_becomes_the_champion_and_a_worse_one_does_not(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.2, 0.2]])
    worse = decoders.add("s2/a/3", [[0.3, 0.3]])
    assert (worse["version"], worse["champion"], decoders.champion) == (2, False, "1") and "version 1" in worse[
        "reason"
    ]
    better = decoders.add("s3/a/3", [[0.1, 0.1]])
    assert (better["version"], better["champion"], better["reason"], decoders.champion) == (
        3,
        True,
        "better than version 1",
        "3",
    )
    # The loser asks again, as a replay does: nothing moves.
    assert decoders.add("s2/a/3", [[0.3, 0.3]])["champion"] is False
    assert decoders.versions == ["1", "2", "3"] and decoders.champion == "3"


def test_an_equal_one_does_not_move_the_champion(decoders: Registry) -> None:
    """The same study run again gives the same numbers: that is no reason to publish another decoder."""
    decoders.add("s1/a/3", [[0.2, 0.2]])
    made = decoders.add("s2/a/3", [[0.2, 0.2]])
    assert (made["version"], made["champion"], decoders.champion) == (2, False, "1")


@pytest.mark.parametrize("rule", ["nearest_to_ideal", "first_objective"])
def test_a_champion_that_is_better_in_every_objective_stays_whatever_else_the_front_holds(
    decoders: Registry, rule: str
) -> None:
    decoders.add("s1/a/3", [[0.05, 0.9]], rule=rule)
    made = decoders.add("s2/a/3", [[0.1, 1.0], [0.5, 0.2]], best=0, rule=rule)
    assert made["champion"] is False and decoders.champion == "1"


def test_between_two_that_each_lead_somewhere_the_rule_of_selection_decides(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.3, 0.1]], rule="first_objective")
    assert decoders.add("s2/a/3", [[0.2, 0.9]], rule="first_objective")["champion"] is True
    beaten = decoders.add("s3/a/3", [[0.25, 0.0]], rule="first_objective")  # better in the second objective
    assert (beaten["champion"], beaten["reason"]) == (False, "study.select=first_objective chooses version 2")
    # The knee of all points stays the champion against the end of a front.
    knee = decoders.add("s4/a/3", [[0.1, 0.6], [0.15, 0.1], [0.9, 0.05]], best=1)
    assert knee["champion"] is True and decoders.champion == "4"
    assert decoders.add("s5/a/3", [[0.12, 0.55], [0.85, 0.08]], best=0)["champion"] is False


def test_a_decoder_that_violates_a_constraint_never_replaces_one_that_does_not(decoders: Registry) -> None:
    bound = ["val/reconstruction_mse <= 0.3"]
    decoders.add("s1/a/3", [[0.29, 0.6]], constraints=bound)
    made = decoders.add("s2/a/3", [[0.35, 0.01]], constraints=bound)
    assert made["champion"] is False and "violates val/reconstruction_mse <= 0.3" in made["reason"]
    assert decoders.add("s3/a/3", [[0.29, 0.3]], constraints=bound)["champion"] is True
    tighter = decoders.add("s4/a/3", [[0.2, 0.5]], constraints=["val/reconstruction_mse <= 0.25"])
    assert tighter["champion"] is True  # the champion violates what this study asks for


def test_a_champion_that_was_registered_without_its_metrics_is_scaled_as_the_new_one(decoders: Registry) -> None:
    """Without the mean image's error, its own would be scaled by 1 and look like next to nothing."""
    decoders.add("s1/a/3", [[0.03, 0.02]], old=True)
    trials = request_of("s2/a/3", [[0.012, 0.03]], folder=decoders.folder)
    trials["front"][0]["val/mean_image_mse"] = 0.07
    assert registry.register(decoders.client, new_run(decoders.client), trials)["champion"] is True


def test_a_champion_that_lacks_the_metric_of_the_rule_is_left_alone(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.2, 0.1]])
    made = decoders.add("s2/a/3", [[0.4, 0.09]], rule="val/kid_local")
    assert made["champion"] is False and "without val/kid_local" in made["reason"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"digest": "e" * 32}, "other data"),
        ({"objectives": "val/reconstruction_mse,val/scaled_sliced_wasserstein"}, "other objectives"),
        ({"run": replace(settings_of("dense"), {"task": "supervised"})}, "another task"),
    ],
)
def test_what_was_measured_on_something_else_never_moves_the_champion(
    decoders: Registry, changes: dict[str, Any], what: str
) -> None:
    decoders.add("s1/a/3", [[0.2, 0.2]])
    made = decoders.add("s2/a/3", [[0.01, 0.01]], **changes)
    assert made["champion"] is False and what in made["reason"] and "version 1" in made["reason"]
    assert decoders.champion == "1" and decoders.versions == ["1", "2"]


def test_a_champion_that_somebody_else_registered_is_left_alone(decoders: Registry) -> None:
    decoders.client.create_registered_model(NAME)
    decoders.client.create_model_version(NAME, decoders.folder.as_uri())
    decoders.client.set_registered_model_alias(NAME, "champion", "1")
    made = decoders.add("s1/a/3", [[0.2, 0.2]])
    assert (made["version"], made["champion"], decoders.champion) == (2, False, "1")


def test_a_decoder_is_registered_through_the_journal_and_once_when_it_is_sent_again(
    decoders: Registry, database: str, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    study = LittleStudy(folder, database)
    study.begin()
    for kind in ("decoder", "encoder"):
        shutil.copytree(decoders.folder, folder / kind)
    request = request_of("s1/a/3", [[0.2, 0.2]], folder=Path("decoder"), encoder=Path("encoder"))
    study.add(events.Chosen(number=0, registration=dict(request)))
    assert study.tracker.close(60) == 0 and study.tracker.parked == []
    assert study.tracker.registration == {
        "name": NAME,
        "version": 1,
        "champion": True,
        "reason": "the first of its name",
        "against": None,
        "policy": "better",
        "rule": "nearest_to_ideal",
        "encoder": ENCODER,
    }
    assert aliases(decoders) == ("s1/a/3", "s1/a/3")
    (folder / CURSOR).unlink()
    study.journal.close()
    sent = sync(folder, database)
    assert sent.left == 0 and decoders.versions == ["1"]
    assert sent.registration is not None and sent.registration["version"] == 1


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_registered_decoder_is_loaded_by_name_with_its_prior(
    database: str, models: dict[str, Model], exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    client = client_of(database)
    for trial, network in (("s1/a/3", "dense"), ("s2/a/3", "convolutional")):
        registry.register(
            client, new_run(client), request_of(trial, [[0.2, 0.2]], folder=exported[network], digest=network)
        )
    by_alias, by_version = registry.load(NAME, database), registry.load(NAME, database, "2")
    assert (by_alias.name, by_alias.version, by_version.version) == (NAME, "1", "2")
    assert (by_alias.prior.name, by_alias.prior.latent_dim, by_alias.prior.scale) == ("gaussian", 3, 2.0)
    for decoder, network in ((by_alias, "dense"), (by_version, "convolutional")):
        images_NCHW = decoder.sample(5, seed=3)
        torch.testing.assert_close(
            images_NCHW, models[network].sample(5, torch.Generator().manual_seed(3)).detach(), rtol=0, atol=1e-6
        )
        assert images_NCHW.shape == (5, *SHAPES[network]) and not images_NCHW.requires_grad
        assert not torch.equal(images_NCHW, decoder.sample(5, seed=4)) and torch.equal(
            images_NCHW, decoder.sample(5, seed=3)
        )
        assert decoder.sample(1, seed=0).shape == (1, *SHAPES[network])


@pytest.mark.parametrize("recorded", ["", "0.7,0.1,0.1,0.1"])
def test_a_loaded_decoder_is_told_labels_as_often_as_the_one_that_was_trained(
    recorded: str, database: str, exported: dict[str, Path]
) -> None:
    client = client_of(database)
    request = request_of("s1/a/3", [[0.2, 0.2]], folder=exported["semi_supervised"])
    request["tags"] |= {"classes": str(CLASSES), "label_shares": recorded}
    registry.register(client, new_run(client), request)
    shares_K = registry.load(NAME, database).label_shares_K
    assert shares_K is not None and shares_K.tolist() == ([0.7, 0.1, 0.1, 0.1] if recorded else [0.25] * CLASSES)


def told(uri: str, name: str = NAME, version: str = "champion", *, within: float = 15) -> str:
    """The one sentence that loading fails with, quickly."""
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        registry.load(name, tracking_uri(uri), version)
    assert time.monotonic() - began < within
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 600
    return text


def test_a_missing_database_is_a_sentence_and_none_is_made(tmp_path: Path) -> None:
    assert told(f"sqlite:///{tmp_path}/mlflow.db").startswith(f"there is no MLflow database {tmp_path}/mlflow.db; ")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_is_a_sentence() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert told(uri) == f"the MLflow server {uri} does not answer: nothing listens there"


def test_a_server_that_does_not_answer_is_told_without_its_password() -> None:
    sentence = told("http://me:pa55@127.0.0.1:9")
    assert sentence.startswith("the MLflow server http://127.0.0.1:9 does not answer: ")
    assert "pa55" not in sentence


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("this is not a database\n" * 100)
    assert f"{tmp_path}/notes.txt" in told(f"sqlite:///{tmp_path}/notes.txt")


@pytest.mark.timeout(60)
def test_a_folder_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    assert str(tmp_path) in told(f"sqlite:///{tmp_path}")


def test_a_missing_model_alias_or_version_is_a_sentence_with_what_there_is(decoders: Registry, database: str) -> None:
    assert told(database) == f"there is no registered model {NAME!r} at {database}; it has none"
    decoders.add("s1/a/3", [[0.2, 0.2]])
    assert (
        told(database, "aae-mnist-decoder")
        == f"there is no registered model 'aae-mnist-decoder' at {database}; it has {NAME}. Did you mean {NAME}?"
    )
    assert (
        told(database, version="best") == f"the registered model {NAME!r} has no alias 'best'; its aliases are champion"
    )
    assert told(database, version="7").startswith(f"the registered model {NAME!r} has no version '7'; ")


def test_a_model_that_is_not_ours_or_is_damaged_is_a_sentence(decoders: Registry, database: str) -> None:
    decoders.add("s1/a/3", [[0.2, 0.2]])
    assert told(database).startswith(f"models:/{NAME}/1 cannot be loaded: ")
    decoders.client.create_model_version(NAME, decoders.folder.as_uri())
    assert (
        told(database, version="2")
        == f"version 2 of {NAME!r} says nothing about its prior; it was not registered by aae_ray"
    )


# ------------------------------------------------------------------------------------------------------------ families


@pytest.fixture
def families(decoders: Registry, tmp_path: Path) -> Registry:
    """A registry into which encoders go with their decoders."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "MLmodel").write_text("a small stand-in: no test here loads it\n")
    decoders.beside = folder
    return decoders


def aliases(registered: Registry) -> tuple[str | None, str | None]:
    """The trials that the champions of both names are of."""
    client = registered.client
    found = []
    for name in (NAME, ENCODER):
        version = client.get_registered_model(name).aliases.get("champion")
        found.append(client.get_model_version(name, version).tags["aae.trial"] if version else None)
    return found[0], found[1]


def test_encoder_and_decoder_are_promoted_by_one_decision(families: Registry) -> None:
    made = families.add("s1/a/3", [[0.2, 0.2]])
    assert (made["name"], made["encoder"], made["champion"]) == (NAME, ENCODER, True)
    assert aliases(families) == ("s1/a/3", "s1/a/3")
    families.add("s2/a/3", [[0.3, 0.3]])
    assert aliases(families) == ("s1/a/3", "s1/a/3")
    families.add("s3/a/3", [[0.1, 0.1]])
    families.add("s3/a/3", [[0.1, 0.1]])  # sent again
    assert aliases(families) == ("s3/a/3", "s3/a/3")
    found = families.client.search_model_versions(f"name = '{ENCODER}'")
    assert sorted(version.tags["aae.trial"] for version in found) == ["s1/a/3", "s2/a/3", "s3/a/3"]
    assert {version.description for version in found} == {"# a card"}
    run = found[0].run_id
    assert {file.path for file in families.client.list_artifacts(run)} == {"decoder", "encoder"}


def test_what_a_killed_process_left_between_the_aliases_is_finished(
    families: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    families.add("s1/a/3", [[0.2, 0.2]])
    client, move = families.client, families.client.set_registered_model_alias

    def killed(name: str, alias: str, version: str) -> None:
        if name == ENCODER:
            raise KeyboardInterrupt
        move(name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(client, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            families.add("s2/a/3", [[0.1, 0.1]])
    assert aliases(families) == ("s2/a/3", "s1/a/3")
    families.add("s3/a/3", [[0.3, 0.3]])  # that loses
    assert aliases(families) == ("s2/a/3", "s2/a/3")


def test_a_champion_without_an_encoder_leaves_none_of_another_model(families: Registry) -> None:
    families.add("s1/a/3", [[0.2, 0.2]])
    families.beside = None
    families.add("s2/a/3", [[0.1, 0.1]])  # of an earlier release
    assert aliases(families) == ("s2/a/3", None)


def test_encoder_and_decoder_of_one_trial_are_loaded_by_either_name(
    database: str, models: dict[str, Model], exported: dict[str, Path], encoders: dict[str, Path]
) -> None:
    """Also where the numbers of their versions differ."""
    client = client_of(database)
    for trial, network, beside in (
        ("s1/a/3", "dense", None),
        ("s2/a/3", "vae", encoders["vae"]),
        ("s3/a/3", "semi_supervised", encoders["semi_supervised"]),
    ):
        request = request_of(trial, [[0.2, 0.2]], folder=exported[network], encoder=beside)
        request["tags"] |= {"image_shape": "1x8x8"} | ({"classes": str(CLASSES)} if models[network].classes else {})
        registry.register(client, new_run(client), request)
    for name, version, network in ((NAME, "2", "vae"), (ENCODER, "1", "vae"), (ENCODER, "2", "semi_supervised")):
        check_reconstructions(registry.load(name, database, version, encoder=True), models[network])
    with pytest.raises(UserError, match=f"{NAME} version 1 has no encoder beside it: it was registered alone, by an"):
        registry.load(NAME, database, encoder=True)
    assert registry.load(NAME, database).encoder is None


@pytest.mark.parametrize("name", ["aae-digits-decoder", "my model", "champion-of-all"])
def test_an_encoder_is_named_after_its_decoder(name: str) -> None:
    encoder = registry.encoder_name(name)
    assert encoder.endswith("-encoder") and encoder != name
    assert name in registry.decoder_names(encoder)


# ------------------------------------------------------------------------------------------- evidence, repair, rollback


def with_seeds(request: dict[str, Any], *points: Sequence[float]) -> dict[str, Any]:
    """A request of a study that has confirmed its best trial, on new seeds with these values."""
    names = request["tags"]["objectives"].split(",")
    known = [dict(zip(names, point, strict=True)) | MEASURED for point in points]
    return request | {
        "tags": request["tags"] | {"evidence": json.dumps(known), "rule": request["rule"]},
        "policy": "evidence",
    }


def test_new_seeds_decide_and_the_version_says_by_which_numbers(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.3, 0.3]])
    lucky = with_seeds(request_of("s2/a/3", [[0.1, 0.1]], folder=decoders.folder), [0.35, 0.3], [0.2, 0.4], [0.4, 0.2])
    refused = registry.register(decoders.client, new_run(decoders.client), lucky)
    assert refused["champion"] is False and decoders.champion == "1"
    tags = decoders.client.get_model_version(NAME, "2").tags
    assert tags["promotion"] == "refused" and tags["promotion.reason"] == refused["reason"]
    assert float(tags["promotion.difference"]) < 2 * float(tags["promotion.standard_error"])
    good = with_seeds(request_of("s3/a/3", [[0.1, 0.1]], folder=decoders.folder), [0.1, 0.1], [0.11, 0.1], [0.1, 0.12])
    assert registry.register(decoders.client, new_run(decoders.client), good)["champion"] is True
    tags = decoders.client.get_model_version(NAME, "3").tags
    assert tags["promotion"] == "promoted" and (tags["promotion.seeds"], tags["promotion.champion_seeds"]) == ("3", "1")
    assert decoders.champion == "3"


def test_a_version_that_is_confirmed_later_keeps_its_number_and_gets_its_seeds(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.3, 0.3]])
    first = request_of("s2/a/3", [[0.31, 0.31]], folder=decoders.folder)
    registry.register(decoders.client, new_run(decoders.client), first)
    later = with_seeds(first, [0.1, 0.1], [0.11, 0.1])
    made = registry.register(decoders.client, new_run(decoders.client), later)
    assert (made["version"], made["champion"], decoders.versions) == (2, True, ["1", "2"])
    assert json.loads(decoders.client.get_model_version(NAME, "2").tags["evidence"])


def test_a_version_is_held_against_the_champion_by_what_its_tags_say(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.3, 0.3]])
    decoders.add("s2/a/3", [[0.1, 0.1]])
    assert decoders.champion == "2"
    alone = registry.hold(decoders.client, NAME, decoders.client.get_model_version(NAME, "1"), "evidence")
    assert not alone.champion and alone.lacks_seeds


def test_a_version_keeps_the_constraints_by_which_it_is_held(decoders: Registry) -> None:
    """Its new seeds show it better by the rule, and to violate what its study asks for."""
    study = replace(Settings(), {"study.constraints": ["val/jsd_nats <= 0.2"]}).study
    decoders.add("s1/a/3", [[0.3, 0.1]])
    seeds = [{"val/reconstruction_mse": value, "val/jsd_nats": 0.3} | MEASURED for value in (0.1, 0.11)]
    request = request_of("s2/a/3", [[0.5, 0.1]], folder=decoders.folder, constraints=study.constraints)
    request["tags"] |= evidence_tags(seeds, study) | {"rule": "first_objective"}
    registry.register(decoders.client, new_run(decoders.client), request)
    told = registry.hold(decoders.client, NAME, decoders.client.get_model_version(NAME, "2"), "evidence")
    assert not told.champion and "it violates val/jsd_nats <= 0.2" in told.reason and decoders.champion == "1"


def test_a_policy_of_never_makes_no_champion_not_even_the_first(decoders: Registry) -> None:
    def add(trial: str) -> dict[str, Any]:
        request = request_of(trial, [[0.2, 0.2]], folder=decoders.folder) | {"policy": "never"}
        return registry.register(decoders.client, new_run(decoders.client), request)

    made = add("s1/a/3")
    assert (made["champion"], made["reason"]) == (False, "tracking.promotion=never")
    assert "champion" not in decoders.client.get_registered_model(NAME).aliases
    assert decoders.client.get_model_version(NAME, "1").tags["promotion"] == "refused"
    decoders.add("s2/a/3", [[0.1, 0.1]])
    _delete_without_its_alias(decoders, "2")
    assert add("s3/a/3")["champion"] is False and add("s1/a/3")["champion"] is False
    registry.set_champion(decoders.client, NAME, "1")  # by hand
    assert add("s1/a/3")["reason"] == "it is the champion already"


def test_a_champion_that_was_deleted_is_followed_by_the_one_before(decoders: Registry) -> None:
    for trial, value in (("s1/a/3", 0.3), ("s2/a/3", 0.2), ("s3/a/3", 0.1)):
        decoders.add(trial, [[value, value]])
    _delete_without_its_alias(decoders, "3")
    with pytest.raises(UserError, match="version 3, which has been deleted; python -m aae_ray.promote .* --rollback"):
        registry.version_of(decoders.client, NAME, "champion")
    made = decoders.add("s4/a/3", [[0.25, 0.25]])
    assert made["champion"] is False and decoders.champion == "2"
    assert made["reason"].startswith("the champion was version 3, which has been deleted, and version 2 is it again; ")


def test_with_every_champion_deleted_the_next_one_is_it(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.1, 0.1]])
    _delete_without_its_alias(decoders, "1")
    made = decoders.add("s2/a/3", [[0.25, 0.25]])
    assert made["champion"] is True and decoders.champion == "2" and "has been deleted" in made["reason"]


def _delete_without_its_alias(decoders: Registry, version: str) -> None:
    """As a server that leaves the alias, or another process that sets it at the same time."""
    decoders.client.delete_model_version(NAME, version)
    with contextlib.closing(sqlite3.connect(decoders.client.tracking_uri.removeprefix("sqlite:///"))) as database:
        columns = {row[1] for row in database.execute("PRAGMA table_info(registered_model_aliases)")}
        row = {"alias": "champion", "version": version, "name": NAME, "workspace": "default"}
        row = {key: value for key, value in row.items() if key in columns}  # older releases have no workspaces
        marks = ", ".join("?" * len(row))
        database.execute(
            f"INSERT OR REPLACE INTO registered_model_aliases ({', '.join(row)}) VALUES ({marks})", list(row.values())
        )
        database.commit()


def test_a_rollback_goes_back_one_champion_at_a_time(decoders: Registry) -> None:
    for trial, value in (("s1/a/3", 0.3), ("s2/a/3", 0.2), ("s3/a/3", 0.1)):
        decoders.add(trial, [[value, value]])
    told = registry.roll_back(decoders.client, NAME)
    assert told.reason == "version 2 is the champion again, after version 3" and decoders.champion == "2"
    assert decoders.client.get_model_version(NAME, "3").tags["promotion.reason"] == "rolled back to version 2"
    decoders.client.delete_model_version(NAME, "1")
    with pytest.raises(UserError, match="no champion before"):
        registry.roll_back(decoders.client, NAME)
    assert decoders.champion == "2"


def test_a_version_may_be_a_number(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.3, 0.3]])
    assert str(registry.version_of(decoders.client, NAME, 1).version) == "1"


def test_the_decoder_of_an_encoder_is_one_that_there_is(decoders: Registry) -> None:
    decoders.add("s1/a/3", [[0.3, 0.3]])
    for name in ("mine", "mine-encoder", "lone-encoder"):
        decoders.client.create_registered_model(name)
    assert registry.decoder_of(decoders.client, NAME.replace("-decoder", "-encoder")) == NAME
    assert registry.decoder_of(decoders.client, "mine-encoder") == "mine"
    assert registry.decoder_of(decoders.client, "lone-encoder") is None


def test_the_command_rolls_back_and_tells_what_it_refuses(
    decoders: Registry, database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decoders.add("s1/a/3", [[0.3, 0.3]])
    decoders.add("s2/a/3", [[0.2, 0.2]])

    def promoted(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["promote", *arguments, "--tracking-uri", database])
        with pytest.raises(SystemExit) as end:
            run_command(command, "promote")
        out = capsys.readouterr()
        return int(end.value.code or 0), out.out + out.err

    assert promoted(NAME) == (0, "champion    it is the champion already\n")
    code, text = promoted(NAME, "--version", "1")
    assert code == 2 and "version 1: it has no two new seeds by which it could be held against others, and" in text
    assert "version 1 of aae-digits-decoder is of study s1, which has to be here to be confirmed" in text
    assert promoted(NAME, "--rollback") == (0, "champion    version 1 is the champion again, after version 2\n")
    for wrong, said in (
        (("none",), "there is no registered model 'none'"),
        ((NAME, "--version", "9"), "has no version '9'"),
        ((NAME, "--rollback", "--confirm", "1"), "--rollback takes neither"),
        ((NAME, "--seeds", "3"), "has to be here to be confirmed"),
        ((NAME, "--confirm", "1"), "has to be here to be confirmed"),
    ):
        code, text = promoted(*wrong)
        assert code == 2 and said in text and "Traceback" not in text


def test_a_study_that_is_confirmed_already_is_held_by_its_new_seeds(
    decoders: Registry,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same command a second time, as after a change of the champion by hand, has nothing to train."""
    decoders.add("s0/a/3", [[0.3, 0.3]])
    folder = tmp_path / "runs" / "s1"
    folder.mkdir(parents=True)
    conductor = confirmed(folder)
    best = choose(conductor.ledger, "nearest_to_ideal")
    assert best is not None
    request = with_seeds(
        request_of(f"s1/{best.name}/27", [[0.1, 0.1]], folder=decoders.folder), [0.1, 0.1], [0.11, 0.1]
    )
    registration = json.loads(json.dumps(request))
    conductor.record(events.Chosen(number=best.number, registration=registration), events.StudyEnded())
    conductor.journal.close()

    def confirm() -> tuple[int, str]:
        arguments = (NAME, "--confirm", "2", "--seeds", "3", "--folder", str(tmp_path / "runs"))
        monkeypatch.setattr("sys.argv", ["promote", *arguments, "--version", "s1", "--tracking-uri", database])
        with pytest.raises(SystemExit) as end:
            run_command(command, "promote")
        out = capsys.readouterr()
        return int(end.value.code or 0), " ".join((out.out + out.err).split())

    registry.register(decoders.client, new_run(decoders.client), request | {"policy": "never"})
    decoders.client.set_registered_model_alias(NAME, "s1", "2")
    code, said = confirm()
    assert code == 0 and "s1 is confirmed already, on 3 new seeds; its best trial is version 2" in said
    assert "champion better than version 1" in said and decoders.champion == "2"
    registry.set_champion(decoders.client, NAME, "1")
    decoders.client.set_model_version_tag(NAME, "2", "evidence", "[]")
    code, said = confirm()
    assert code == 1 and "refused it has no two new seeds" in said
