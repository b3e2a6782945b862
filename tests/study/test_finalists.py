"""What a study makes of its best trial, without Ray."""

import dataclasses
from pathlib import Path

import pytest
import torch

from aae_ray.autoencoder.published import draw_codes
from aae_ray.datasets.dataset import Dataset, split_digest
from aae_ray.errors import UserError
from aae_ray.evaluation.final_evaluation import FinalEvaluation
from aae_ray.search.contract import Report, Suggestion
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, replace
from aae_ray.study.api import data_of
from aae_ray.study.finalists import publish
from aae_ray.tracking.registry import load_exported
from aae_ray.training.loop import Training
from tests.search.histories import History
from tests.search.test_conductor import begin


def test_what_is_published_is_the_averaged_model(small_run: Settings, digits: Dataset, tmp_path: Path) -> None:
    """Encoder and decoder, with the distribution of their labels, which is not uniform, and the names of classes."""
    import mlflow.pytorch

    values = {"task": "clustering", "model.clusters": 3, "model.label_prior": [0.5, 0.3, 0.2], "train.ema_decay": 0.9}
    plan = Plan(replace(small_run, values | {"train.dtype": "float32", "train.epochs": 1}), {})
    conductor = begin(tmp_path, plan)
    suggestion = conductor.suggest()
    assert isinstance(suggestion, Suggestion)
    conductor.started(suggestion.number)
    training = Training(plan.settings, digits)
    history = training.train().history
    conductor.reported(Report(suggestion.number, 1, history, finished=True, checkpoint="trials/t0000/epoch_00001"))
    named = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    training.dataset = dataclasses.replace(digits, class_names=named)
    publish(conductor, conductor.ledger.trials[0], training, FinalEvaluation(), tmp_path, register=True)
    chosen = conductor.ledger.chosen
    assert chosen is not None and chosen.registration is not None
    folder = str(tmp_path / chosen.registration["folder"])
    codes_BC = draw_codes(training.model.prior, training.model.label_shares_K, 5, torch.Generator().manual_seed(0))
    y_BK, z_BZ = codes_BC.split([3, 3], 1)
    published_BD = mlflow.pytorch.load_model(folder)(codes_BC).flatten(1)
    assert training.average is not None
    with torch.no_grad():
        averaged_BD, last_BD = (model.decode(z_BZ, y_BK) for model in (training.average.model, training.model))
    torch.testing.assert_close(published_BD, averaged_BD)
    assert (published_BD - last_BD).abs().max() > 1e-3
    metadata = mlflow.models.get_model_info(folder).metadata
    assert metadata is not None and metadata["classes"] == "3"
    assert [float(share) for share in metadata["label_shares"].split(",")] == pytest.approx([0.5, 0.3, 0.2])
    encoder = chosen.registration["encoder"]
    assert (chosen.registration["name"], encoder["name"]) == ("aae-digits-decoder", "aae-digits-encoder")
    loaded = load_exported(tmp_path / encoder["folder"], encoder=True)
    x_NCHW = torch.from_numpy(digits.images_NCHW[:6] / 255).float()
    with torch.no_grad():
        code = training.average.model.encode(x_NCHW.flatten(1), None)
        assert code.label_logits_BK is not None
        y_NK = code.label_logits_BK.softmax(1)
        expected_ND = training.average.model.decode(code.z_BZ, y_NK)
    encoded = loaded.encode(x_NCHW)
    assert encoded.y_NK is not None and loaded.class_names == named and loaded.label_names == ("0", "1", "2")
    torch.testing.assert_close((encoded.z_NZ, encoded.y_NK), (code.z_BZ, y_NK))
    torch.testing.assert_close(loaded.reconstruct(encoded).flatten(1), expected_ND.clamp(0, 1))
    assert loaded.reconstruction_mse == pytest.approx(history[-1]["val/reconstruction_mse"])
    assert (loaded.data_digest, loaded.settings["data.name"]) == (digits.digest, "digits")
    assert "p(y) = 0.5, 0.3, 0.2" in (tmp_path / "model_card.md").read_text()


def test_a_study_s_data_are_those_of_the_same_parts(digits: Dataset, cache: Path) -> None:
    """Its test images must not be some that it was trained on."""

    def recorded(split: str) -> History:
        history = History(data__cache=str(cache))
        data = history.events[0].data.model_copy(update={"digest": digits.digest, "split": split})  # type: ignore[union-attr]
        history.ledger.apply(history.events[0].model_copy(update={"data": data}))
        return history

    for split in ("", split_digest(digits)):
        assert data_of(recorded(split).ledger).digest == digits.digest
    with pytest.raises(UserError, match="study-1 was run on another split of data.name digits"):
        data_of(recorded("another").ledger)
