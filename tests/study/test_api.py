"""Studies in Python, as a notebook has them: one is run, added to, and looked at."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

import aae_ray
from aae_ray import Study, UserError, load_model
from aae_ray.errors import SettingsError
from tests.documents import block

TINY: dict[str, Any] = {
    "study.budget.trials": 2,
    "study.pruner.type": "none",
    "study.concurrent_trials": 1,
    "study.constraints": [],
    "study.finalists": "best",
    "train.epochs": 2,
    "train.batch_size": 50,
    "health.stop": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the study is run, in this process."""
    here, before = tmp_path_factory.mktemp("notebook"), Path.cwd()
    os.chdir(here)
    yield here
    os.chdir(before)


@pytest.fixture(scope="module")
def study(folder: Path, cache: Path) -> Study:
    own = {"data.cache": str(cache), "study.confirm.finalists": 1, "study.confirm.seeds": 2}
    new = Study.from_file("digits", TINY | own)
    assert "not run yet" in repr(new) and new.run() is new
    return new


def test_the_trials_are_a_data_frame(study: Study) -> None:
    trials, front = study.trials, study.front
    assert list(trials.index) == ["t0000", "t0001", "t0002", "t0003"] and set(trials["state"]) == {"complete"}
    assert trials["chosen"].sum() == 1 and trials["model.latent_dim"].notna().all()
    assert list(front["val/reconstruction_mse"]) == sorted(front["val/reconstruction_mse"]) and front["on_front"].all()
    assert study.folder is not None
    stored = pandas.read_parquet(study.folder / "trials.parquet").set_index("name")
    pandas.testing.assert_frame_equal(stored, trials)
    assert "4 complete" in repr(study)


def test_the_networks_of_the_best_trial_are_those_that_were_registered(study: Study) -> None:
    best, registered = study.best, load_model("aae-digits-decoder")
    assert best.name == study.trials.index[study.trials["chosen"]][0]
    codes_BZ = torch.randn(5, best.settings.model.latent_dim)
    with torch.no_grad():
        torch.testing.assert_close(best.decoder(codes_BZ), registered.decoder(codes_BZ))
        x_NCHW = study.images("test")
        torch.testing.assert_close(best.encoder(x_NCHW)["code"], registered.encode(x_NCHW).z_NZ)
    torch.testing.assert_close(best.model.encode(x_NCHW.numpy()).z_NZ, registered.encode(x_NCHW).z_NZ)
    torch.testing.assert_close(best.model.sample(5, seed=3), registered.sample(5, seed=3))
    assert str(load_model("aae-digits-decoder@champion")) == str(registered)


def test_the_best_trial_was_confirmed_on_new_seeds_and_its_version_says_so(study: Study) -> None:
    from aae_ray.tracking.registry import client_of, version_of

    (first,) = {int(number) for number in study.trials["replicate_of"].dropna()}
    assert study.best.name == f"t{first:04d}" and sorted(study.trials["seed"]) == [0, 0, 1, 2]
    assert study.report is not None
    tags = version_of(client_of("aae-digits-decoder", study.report.uri), "aae-digits-decoder", "champion").tags
    seeds = [metrics["val/reconstruction_mse"] for metrics in json.loads(tags["evidence"])]
    assert seeds == list(study.trials["val/reconstruction_mse"][study.trials["seed"] > 0])


def test_the_blocks_in_python_of_the_readme_run_on_it(study: Study, folder: Path) -> None:
    """Each as it stands there, but for the statement that runs a study of its own."""
    published = ast.parse(block("README.md", "import mlflow, torch").text)
    names: dict[str, Any] = {}
    exec(compile(published, "README.md", "exec"), names)
    x_NCHW = study.images("test")[:3]
    codes = names["encoder"](x_NCHW)["code"]
    np.testing.assert_array_equal(names["encode"](x_NCHW.numpy().astype(np.float64))["code"], codes.numpy())
    assert names["decoder"](codes).shape == x_NCHW.shape

    programs = ast.parse(block("README.md", "from aae_ray import Study, load_model").text)
    ran = [each for each in programs.body if "run()" not in ast.unparse(each)]
    assert len(programs.body) - len(ran) == 1
    names = {"study": study}
    exec(compile(ast.Module(ran, []), "README.md", "exec"), names)
    assert names["images"].shape == study.images("test").shape


@pytest.mark.slow
def test_a_registered_version_is_made_again_from_the_registry_alone(
    study: Study, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, as versions and processor are the same."""
    from aae_ray.cli import run_command
    from aae_ray.reproduce import reproduce

    monkeypatch.setattr("sys.argv", ["reproduce", "aae-digits-decoder@champion"])
    with pytest.raises(SystemExit, match="0"):
        run_command(reproduce, "reproduce")
    out = capfd.readouterr().out
    assert "version 1 is reproduced, to the last digit" in out and "val/reconstruction_mse" in out
    assert "version 2" not in out


def test_encoder_and_decoder_make_the_error_that_was_measured(study: Study) -> None:
    """On the validation images, for a best trial whose posterior draws nothing."""
    best = study.best
    if best.settings.model.posterior != "deterministic":
        pytest.skip("the first points of the digits' study are deterministic, and one of them should be the best")
    x_NCHW = study.images("val")
    with torch.no_grad():
        error = (best.decoder(best.encoder(x_NCHW)["code"]) - x_NCHW).square().mean().item()
    assert error == pytest.approx(study.trials.loc[best.name, "val/reconstruction_mse"], rel=1e-5)
    assert "test/reconstruction_mse" in best.metrics


def test_every_figure_that_the_trials_allow_is_plotly_s(study: Study) -> None:
    import plotly.graph_objects

    figures = [study.plot_front(), study.plot_hypervolume(), *study.plot_parallel_coordinates()]
    assert all(isinstance(figure, plotly.graph_objects.Figure) for figure in figures)
    with pytest.raises(UserError, match="allow no plot importances; those that they do: pareto_front"):
        study.plot_importances()


def test_a_study_is_opened_again_by_its_name(study: Study) -> None:
    again = Study.open("digits")
    assert again.folder == study.folder and np.array_equal(again.trials.index, study.trials.index)
    assert again.best.name == study.best.name
    with pytest.raises(UserError, match="Did you mean digits"):
        Study.open("digit")


def test_a_study_that_has_ended_is_not_run_again(study: Study) -> None:
    with pytest.raises(UserError, match="ended as planned"):
        study.run()


@pytest.mark.slow
def test_a_study_that_has_ended_is_added_to(study: Study) -> None:
    assert study.extend({"study.budget.trials": 3}) is study
    assert len(study.trials) == 7 and study.settings.study.budget.trials == 3  # the best one is confirmed anew


def test_mistakes_are_told_before_anything_starts() -> None:
    with pytest.raises(SettingsError, match="changes: train.epoch is not a setting. Did you mean train.epochs") as told:
        Study.from_file("digits", {"train.epoch": 3, "model.latent_dim": "many"})
    assert len(told.value.problems) == 2
    with pytest.raises(UserError, match="Did you mean digits"):
        Study.from_file("digit")
    with pytest.raises(UserError, match="searches model.latent_dim"):
        Study.single("digits")
    with pytest.raises(UserError, match="run\\(\\) starts it"):
        _ = Study.from_file("digits").trials


def test_changes_are_read_as_those_of_a_command() -> None:
    space = {"space.model.latent_dim": {"type": "int", "low": 3, "high": 5}, "model.hidden": (32, 16)}
    plan = Study.from_file("digits", space | {"study.budget.wall_clock": "2m"}).plan
    assert str(plan.space["model.latent_dim"]).startswith("IntDistribution(high=5") and "model.hidden" not in plan.space
    assert plan.settings.model.hidden == (32, 16) and plan.settings.study.budget.wall_clock == 120
    dotted: dict[str, Any] = {"train.epochs": 3}
    assert Study.from_file("digits", **dotted).plan.settings.train.epochs == 3
    single = Study.single(changes={"train.epochs": 3})
    assert not single.plan.space and single.settings.study.budget.trials == 1


def test_paths_are_changes_as_they_are(tmp_path: Path) -> None:
    study = Study.from_file("digits", {"data.path": tmp_path, "data.name": "own"})
    assert study.settings.data.path == str(tmp_path)


@pytest.mark.parametrize("go", [Study.run, lambda study: study.extend({"study.budget.trials": 3})])
def test_a_study_is_not_run_beside_the_main_thread(go: Callable[[Study], object]) -> None:
    told: list[BaseException] = []

    def run() -> None:
        try:
            go(Study.from_file("digits"))
        except UserError as error:
            told.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(told[0])


@pytest.mark.parametrize("heavy", ["torch", "ray", "mlflow", "optuna", "pandas", "pydantic"])
def test_importing_the_package_imports_nothing_heavy(heavy: str) -> None:
    code = f"import sys, aae_ray; print(aae_ray.__version__, {heavy!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [aae_ray.__version__, "False"]
    assert {"Study", "load_model", "UserError"} <= set(dir(aae_ray))


@pytest.mark.slow
def test_the_interrupt_of_a_kernel_stops_a_study(folder: Path, cache: Path) -> None:
    new = Study.from_file("digits", TINY | {"data.cache": str(cache), "study.name": "long", "train.epochs": 400})

    def interrupt() -> None:
        over.wait(120)
        os.kill(os.getpid(), signal.SIGINT)

    over, timer = threading.Event(), threading.Thread(target=interrupt)
    watcher = threading.Thread(target=lambda: over.set() if _begun(folder / "runs") else None)
    for thread in (timer, watcher):
        thread.start()
    new.run()
    timer.join()
    assert new.report is not None and new.report.interrupted and new.ledger.unfinished >= 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as it was


def _begun(root: Path) -> bool:
    """Once a trial of the study `long` has reported."""
    for _ in range(600):
        if any('"event":"reported"' in journal.read_text() for journal in root.glob("long-*/journal.jsonl")):
            return True
        time.sleep(0.2)
    return False
