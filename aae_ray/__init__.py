"""aae_ray: finds, trains and publishes the best adversarial autoencoder for a data set."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aae_ray.errors import UserError as UserError
    from aae_ray.study.api import Study as Study
    from aae_ray.study.api import load_model as load_model

__version__ = "0.1.0"
__all__ = ["Study", "UserError", "__version__", "load_model"]

_OWNERS = {"Study": "aae_ray.study.api", "load_model": "aae_ray.study.api", "UserError": "aae_ray.errors"}


def __getattr__(name: str) -> Any:
    """What a program uses, imported when it is asked for: a command or a worker must not wait for all of it."""
    if name not in _OWNERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_OWNERS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
