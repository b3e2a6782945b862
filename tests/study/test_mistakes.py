"""Mistakes on the command line: a sentence and exit code 2, before Ray starts, and nothing left behind."""

from pathlib import Path

import pytest

from tests.study.commands import run


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("tune", ("train.epoch=3", "model.prior=gausian"), "Did you mean train.epochs?"),
        ("tune", ("nowhere.yaml",), "nowhere.yaml: cannot be read"),
        ("tune", ("a.yaml", "b.yaml"), "expected one file"),
        ("tune", ("study.objectives=[val/jsd]",), "Did you mean val/jsd_nats?"),
        ("tune", ("tracking.uri=file:///tmp/x",), "not a server or database of MLflow"),
        ("tune", ("data.name=own",), "own"),
        ("train", ("model.hidden=wide",), "model.hidden"),
        ("train", ("model.network=convolutional", "model.channels=8-8-8-8-8"), "model.channels has 5 layers"),
        ("generate", ("x", "--out", "nowhere/x.png"), "there is no folder"),
        ("evaluate", ("x", "--out", "x.jpg"), "give a name that ends in .png"),
        ("tune", ("task=clustering", "model.clusters=200"), "model.clusters is more than train.batch_size can fill"),
        ("train", ("model.normalization=batch", "train.batch_size=1"), "batch needs a train.batch_size of at least 2"),
        ("tune", ("task=semi_supervised", "data.labels=5"), "data.labels gives 5 labels to 10 classes"),
        ("train", ("task=label_informed", "model.prior=mixture", "model.prior_components=7"), "7 components"),
    ],
)
def test_mistakes_are_sentences_with_exit_code_2(
    tmp_path: Path, environment: dict[str, str], name: str, arguments: tuple[str, ...], sentence: str
) -> None:
    done = run(tmp_path, environment, name, *arguments, code=2)
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() and not (tmp_path / "mlflow.db").exists()
