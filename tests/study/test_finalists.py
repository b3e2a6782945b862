"""What a study makes of its best trial, without Ray."""

from pathlib import Path

import pytest
import torch

from aae_ray.datasets.dataset import Dataset
from aae_ray.evaluation.final_evaluation import FinalEvaluation
from aae_ray.search.contract import Report, Suggestion
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, replace
from aae_ray.study.finalists import publish
from aae_ray.tracking.registry import draw_codes
from aae_ray.training.loop import Training
from tests.search.test_conductor import begin


def test_the_decoder_that_is_published_is_the_averaged_one(
    small_run: Settings, digits: Dataset, tmp_path: Path
) -> None:
    """With the distribution of its labels, which is not uniform, beside it."""
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
    assert "p(y) = 0.5, 0.3, 0.2" in (tmp_path / "model_card.md").read_text()
