"""A study on a machine where a Ray of another version runs: an environment of its own holds it.

Needs a package registry, and is skipped where none answers.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.study.commands import run
from tests.study.test_study import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OTHER = "2.50.1"
TOLD_SECONDS = 60.0


@pytest.fixture(scope="module")
def other_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables that name the head of another Ray, which runs, and the folder for temporary files that it was given."""
    place = tmp_path_factory.mktemp("other")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    pip = [str(place / "bin" / "pip"), "install", "--quiet", f"ray[default]=={OTHER}"]
    try:
        subprocess.run(pip, capture_output=True, timeout=400, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        pytest.skip(f"needs a package registry that has ray {OTHER}")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short, for the names of sockets
    own = {"RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(
        [place / "bin" / "ray", "start", "--head", "--port=0", "--num-cpus=1", "--include-dashboard=false", "--block"],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = folder / "ray" / "ray_current_cluster"
    try:
        wait_for(lambda: address.exists() or head.poll() is not None)
        yield own | {"RAY_ADDRESS": address.read_text().strip()}
    finally:
        head.terminate()
        head.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("found", [False, True], ids=["address given", "address found"])
def test_a_ray_of_another_version_is_a_sentence(
    found: bool, tmp_path: Path, environment: dict[str, str], other_ray: dict[str, str]
) -> None:
    variables = environment | other_ray
    if found:
        del variables["RAY_ADDRESS"]
    began = time.monotonic()
    done = run(tmp_path, variables, "tune", "study.budget.trials=1", "train.epochs=1", code=2)
    assert time.monotonic() - began < TOLD_SECONDS
    (sentence,) = done.stderr.splitlines()
    assert "is of another version" in sentence and f"Ray {OTHER} with Python" in sentence, sentence
    assert "Traceback" not in done.stdout and not list(tmp_path.glob("runs/*"))
