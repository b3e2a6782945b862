"""The package as `pip install .` leaves it, away from its checkout."""

import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.study.commands import run

ROOT = Path(__file__).parent.parent


def test_every_folder_of_the_package_is_installed() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "aae_ray").rglob("*.py")}
    assert set(named) == folders | {"aae_ray.search_spaces"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is installed, as setuptools builds inside of its sources."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("aae_ray", "search_spaces"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    return source


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package was installed."""
    if not (find_spec("setuptools") and find_spec("pip")):
        pytest.skip("pip and setuptools, which build the package, are not installed here")
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.mark.slow
def test_studies_that_ship_are_found_in_an_installed_package(
    installed: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    shipped = {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert {path.name for path in (installed / "aae_ray" / "search_spaces").iterdir()} >= shipped
    assert not (installed / "search_spaces").exists()
    environment["PYTHONPATH"] = str(installed)
    own = ("--dry-run", f"data.cache={tmp_path}/cache")
    assert "name: digits" in run(tmp_path, environment, "tune", *own).stdout
    named = run(tmp_path, environment, "tune", "search_spaces/aae_vs_vae_2d.yaml", *own)
    assert "model.latent_dim: 2" in named.stdout


def test_an_installed_package_is_used_from_python_and_lists_its_commands(
    installed: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    environment["PYTHONPATH"] = str(installed)
    code = "import aae_ray; print(aae_ray.__file__, aae_ray.Study.from_file('mnist').settings.data.name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(installed / "aae_ray" / "__init__.py"), "mnist"]
    listed = subprocess.run(
        [sys.executable, "-m", "aae_ray"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "python -m aae_ray.tune " in listed.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_what_the_project_declares_is_enough_for_its_commands(
    source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """In an environment that holds nothing else, none of the extras either, from a folder of the user's own."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = {key: value for key, value in environment.items() if value and key != "PYTHONPATH"}

    def run_module(*arguments: str, timeout: float = 280) -> str:
        done = subprocess.run(
            [python, "-m", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    probe = [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path / "probe"), "setuptools"]
    if subprocess.run(probe, capture_output=True, timeout=120).returncode:
        pytest.skip("no registry of packages answers here")
    run_module("pip", "install", "--quiet", str(source), timeout=900)
    assert "1,797 of 1 x 8 x 8" in run_module("aae_ray.data", "digits", "--preview", "sheet.png")
    short = ("study.budget.trials=2", "train.epochs=2", "train.batch_size=50", "study.constraints=[]")
    told = run_module("aae_ray.tune", "digits", *short, "health.stop=false")
    assert "aae-digits-decoder version 1, champion" in told
    run_module("aae_ray.generate", "aae-digits-decoder", "--count", "4", "--out", "samples.png")
    run_module("aae_ray.encode", "digits", "--model", "aae-digits-decoder", "--out", "codes.parquet")
    of_the_model = ("data.size=8x8", "data.channels=1", "--model", "aae-digits-decoder")
    run_module("aae_ray.reconstruct", "sheet.png", *of_the_model, "--out", "pairs.png")
    assert "quality/fid_local" in run_module("aae_ray.evaluate", "aae-digits-decoder")
    assert all((tmp_path / name).stat().st_size for name in ("sheet.png", "samples.png", "codes.parquet", "pairs.png"))
