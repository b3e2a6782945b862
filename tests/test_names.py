"""A name works in every place that it reaches, or is refused at once with what is allowed."""

from pathlib import Path

import pytest

from aae_ray.errors import SettingsError
from aae_ray.reading import build, read_overrides
from aae_ray.search.store import Store
from aae_ray.tracking.address import artifact_location, mlflow_client

ODD = ("a b", "a'b", 'a"b', "a?b", "a%20b", "a%b", "a#b", "äöü", "日本", "a;b&c=d", "$a", "a\\b", "-x", ".x", " x")
ALLOWED = "letters, digits, dots, dashes"


@pytest.mark.parametrize("name", ["digits", "a", "_a", "1", "A.b-c_d", "x" * 100])
def test_a_plain_name_is_taken_by_all(name: str) -> None:
    keys = ("study.name", "data.name", "tracking.model_name", "tracking.experiment")
    settings = build(read_overrides([f"{key}={name}" for key in keys]))
    assert (settings.study.name, settings.data.name) == (settings.tracking.model_name, settings.tracking.experiment)


@pytest.mark.parametrize("name", [*ODD, ".", "..", "a/b", "a:b", "x" * 300, "a\n"])
def test_an_odd_name_of_a_study_or_data_set_is_refused(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(read_overrides([f"study.name={name}", f"data.name={name}"]))
    assert sorted(problem.keys for problem in caught.value.problems) == [("data.name",), ("study.name",)]
    assert all(f"expected {ALLOWED}" in problem.text for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["a/b", "a:b", "a@b", "a'b", "ä", ".", "..", "-x", " x", "x ", "x" * 201])
def test_a_name_that_no_registered_model_can_have_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"tracking.model_name: expected {ALLOWED}"):
        build(read_overrides([f"tracking.model_name='{name}'" if "'" not in name else f"tracking.model_name={name}"]))


def test_a_model_may_have_spaces_within_its_name() -> None:
    assert build(read_overrides(["tracking.model_name=my best decoder"])).tracking.model_name == "my best decoder"


@pytest.mark.parametrize("name", ["' '", "a\nb", "x" * 501])
def test_a_name_that_no_experiment_can_have_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="tracking.experiment: expected a line of text, of 1 to 500 letters"):
        build(read_overrides([f"tracking.experiment={name}"]))


def test_an_experiment_of_any_name_has_its_artifacts_beside_the_database(database: str) -> None:
    client, root = mlflow_client(database), Path(database.removeprefix("sqlite:///")).parent
    for name in (*ODD, "a/b", ".", "..", "../../x", "x" * 300, "日" * 300):
        experiment = client.create_experiment(name, artifact_location(database, name))
        run = client.create_run(experiment).info.run_id
        client.log_text(run, "text", "file.txt")
        assert [file.path for file in client.list_artifacts(run)] == ["file.txt"]
        assert client.get_experiment_by_name(name).experiment_id == experiment
        assert len(list((root / "mlartifacts").glob(f"*/{run}/artifacts/file.txt"))) == 1, name


@pytest.mark.parametrize("name", [*ODD, "x" * 250])
def test_a_folder_of_any_name_keeps_a_study(tmp_path: Path, name: str) -> None:
    folder = build(read_overrides([f"study.folder={tmp_path}/{name}"])).study.folder
    store = Store(Path(folder) / "digits-1")
    store.write_bytes("trials/t0000/x.bin", b"1")
    assert store.read_bytes("trials/t0000/x.bin") == b"1" and store.files() == ["trials/t0000/x.bin"]
    assert store.modified_at("trials/t0000/x.bin") and (tmp_path / name / "digits-1").is_dir()


@pytest.mark.parametrize(
    ("folder", "sentence"),
    [
        ("x" * 300, "expected a path that can be printed, no part of which is longer than 255 bytes"),
        ("a\nb", "expected a path that can be printed"),
        ("s3://", "expected a folder, or a URI such as s3://BUCKET/studies"),
        ("ftp://host/x", "expected a folder, or a URI that begins with one of file, s3, gs"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(folder: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        build(read_overrides([f"study.folder={folder}"]))


def test_a_model_is_not_called_as_the_encoder_beside_it_would_be() -> None:
    with pytest.raises(SettingsError, match="tracking.model_name: expected a name that does not end with -encoder"):
        build(read_overrides(["tracking.model_name=faces-encoder"]))
