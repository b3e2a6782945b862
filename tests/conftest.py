"""What tests share: one thread for PyTorch, a small data set, and the folder of larger ones where there is one.

Two processes share the tests. One has those that start Ray (group `ray`), as a second Ray on the host disturbs the
first; they mostly wait, and meanwhile the other goes through the rest, file by file.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aae_ray.settings import Data, Settings, replace
from aae_ray.training.data import Dataset, load

SHARED_DATA = Path(os.environ.get("AAE_RAY_SHARED", Path(__file__).parent.parent.parent / "shared")) / "data"


RAY = "ray"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group").args != (RAY,))  # type: ignore[union-attr]


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
