"""What tests share: one thread for PyTorch, a small data set, and the folder of larger ones where there is one.

Two processes share the tests. One has those that start Ray, as a second Ray on the host disturbs the first; they mostly
wait, and meanwhile the other goes through the rest, file by file.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from xdist.scheduler import LoadScopeScheduling

from aae_ray.datasets.dataset import Dataset, load
from aae_ray.evaluation.judge import Judge, judge_for
from aae_ray.settings import Data, Settings, replace
from aae_ray.tracking.address import quiet_mlflow

# The same examples each time, so that a change alone can break a property test; HYPOTHESIS_PROFILE=new draws others.
hypothesis.settings.register_profile("same", derandomize=True)
hypothesis.settings.register_profile("new", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

STARTS_RAY = (
    "tests/cluster/test_lab_aws.py",
    "tests/cluster/test_lab_on_prem.py",
    "tests/cluster/test_tracking_server.py",
    "tests/execution/test_gang.py",
    "tests/execution/test_machines.py::test_a_ray_itself",
    "tests/execution/test_study_metrics.py",
    "tests/execution/test_ray_cluster.py::test_a_local_ray",
    "tests/study/test_api.py",
    "tests/test_examples.py",
    "tests/study/test_faults.py",
    "tests/study/test_hosts.py",
    "tests/study/test_joined_cluster.py",
    "tests/study/test_other_ray.py",
    "tests/study/test_promote.py",
    "tests/study/test_remote.py",
    "tests/study/test_resume.py",
    "tests/study/test_study.py",
    "tests/test_benchmarks.py::test_nodes_writes_its_keys",
    "tests/test_benchmarks.py::test_overhead_writes_its_keys",
    "tests/test_benchmarks.py::test_start_writes_its_keys",
    "tests/test_installation.py::test_what_the_project_declares",
    "tests/test_search_benchmark.py::test_the_contest_writes_its_keys",
)


TAKES_LONG = ("tests/training/test_loop.py", "tests/training/test_tasks.py", "tests/tracking/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start Ray come first, as they take longest, and then the longest of the others: at the end both
    processes have something to do."""
    items.sort(key=lambda item: (not item.nodeid.startswith(STARTS_RAY), not item.nodeid.startswith(TAKES_LONG)))


class RayApart(LoadScopeScheduling):  # type: ignore[misc]
    """Work is given out by file, and all files that start Ray count as one. (`--dist loadgroup` says the same by marks,
    and pytest 9.2 with pytest-xdist 3.8 ignores them: pytest-xdist issue 1386.)"""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if nodeid.startswith(STARTS_RAY) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayApart:
    return RayApart(config, log)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of prepared data of this test run, so that none of the user's is touched."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits(cache: Path) -> Dataset:
    return load(Data(cache=str(cache)))


@pytest.fixture(scope="session")
def judge(digits: Dataset, cache: Path) -> Judge:
    return judge_for(digits, cache)


@pytest.fixture(scope="session")
def small_run(cache: Path) -> Settings:
    """A tiny configuration in double precision, for comparisons that must be tight."""
    return replace(
        Settings(),
        {
            "data.cache": str(cache),
            "model.hidden": (16, 12),
            "model.discriminator_hidden": (16,),
            "model.latent_dim": 3,
            "train.epochs": 4,
            "train.batch_size": 100,
            "train.dtype": "float64",
            "health.stop": False,
        },
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quiet_mlflow()
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{path}", registry_uri=f"sqlite:///{path}")
    client.search_experiments()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    """The address of an MLflow database of one's own."""
    path = tmp_path / "mlflow" / "mlflow.db"
    path.parent.mkdir()
    shutil.copyfile(empty_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "", "COLUMNS": "120"}
