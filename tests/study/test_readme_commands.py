"""README's blocks of commands, typed one after the other by somebody who has pictures, a table and a study."""

import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image
from sklearn.datasets import load_digits, load_wine

from tests.documents import block
from tests.study.commands import run

# Few epochs of few trials show that a command works as it stands.
FEW = (
    "study.budget.trials=2",
    "train.epochs=20",
    "study.pruner.type=none",
    "study.constraints=[]",
    "health.stop=false",
)
PATIENCE = 500
MY_STUDY = """
run: {data.name: faces, data.path: faces.parquet, data.image_column: image}
space: {model.latent_dim: {type: int, low: 2, high: 4}}
"""


def own_files(folder: Path) -> None:
    """What README's reader brings: faces in Parquet, a table as CSV and a search space."""
    pixels_NHW = (load_digits().images[:300] * 15).astype(np.uint8)
    pq.write_table(pa.table({"image": pixels_NHW.reshape(300, -1).tolist()}), folder / "faces.parquet")
    wine = load_wine()
    columns = {name.replace("/", "_"): wine.data[:, index] for index, name in enumerate(wine.feature_names)}
    classes = [str(wine.target_names[number]) for number in wine.target]
    pyarrow.csv.write_csv(pa.table({**columns, "class": classes}), folder / "wine.csv")
    (folder / "my_study.yaml").write_text(MY_STUDY)


def typed(first_line: str) -> list[tuple[str, list[str]]]:
    """The commands of a block of README: each one's name and what stands behind it."""
    lines = (line.partition("  ")[0].partition(" #")[0] for line in block("README.md", first_line).text.splitlines())
    found = [shlex.split(line) for line in lines if line.strip()]
    assert all(each[:2] == ["python", "-m"] for each in found)
    return [(each[2].partition(".")[2], each[3:]) for each in found]


@pytest.mark.slow
@pytest.mark.timeout(8 * PATIENCE)
def test_what_the_readme_tells_to_type_works(tmp_path: Path, environment: dict[str, str]) -> None:
    own_files(tmp_path)
    faces, wine, labels, again = (
        typed(first_line)
        for first_line in (
            "python -m aae_ray.data faces.parquet --preview faces.png          what was read, and a sheet of it",
            "python -m aae_ray.data wine --path wine.csv data.label_column=class --preview wine.png",
            "python -m aae_ray.train task=semi_supervised data.labels=50 train.input_noise=0.3 train.label_noise=0.3 "
            "train.epochs=40",
            "python -m aae_ray.tune --resume NAME                             "
            "# on this machine, or any that sees the folder",
        )
    )
    for name, arguments in (*faces, *wine):
        few = FEW if name == "tune" else ()
        run(tmp_path, environment, name, *arguments, *few, timeout=PATIENCE)
    for sheet in ("faces.png", "wine.png"):
        with Image.open(tmp_path / sheet) as picture:
            assert picture.width > 100
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1001
    ((name, arguments),) = labels
    assert "classification_error" in run(tmp_path, environment, name, *arguments, "train.epochs=2").stdout

    # tests/study/test_resume.py goes on with studies that were stopped, and closes one; this one has ended.
    first = min(path.name for path in (tmp_path / "runs").iterdir())
    for name, arguments in again:
        if arguments[0] not in ("--resume", "--close"):
            named = [first if word == "NAME" else word for word in arguments]
            fewer = {"--extend": ("study.budget.trials=3",), "--warm-start": FEW}
            run(tmp_path, environment, name, *named, *fewer.get(arguments[0], ()), timeout=PATIENCE)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db", registry_uri=f"sqlite:///{tmp_path}/mlflow.db")
    models = {model.name for model in client.search_registered_models()}
    assert models >= {"aae-wine-decoder", "aae-faces-decoder"}
