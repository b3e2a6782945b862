"""The tree of settings as a whole, and its dotted keys."""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from aae_ray.errors import SettingsError, unknown_key
from aae_ray.settings.rules import BrokenRules, broken_rules
from aae_ray.settings.sections import Data, Health, Model, Optim, Section, StudySettings, Tracking, Train, setting
from aae_ray.settings.values import Int, TaskName


class RunSettings(Section):
    """What a trial is: all that its weights depend on, and all that the mathematics and the training see.

    Defaults stand here and nowhere else.
    """

    seed: Int = Field(0, ge=0, lt=2**32, description="initial weights, batch order and noise")
    task: TaskName = Field(
        "unsupervised",
        description="the adversarial autoencoder of the paper's section 2 and its variants; vae: the baseline",
    )
    data: Data = Data()
    model: Model = Model()
    optim: Optim = Optim()
    train: Train = Train()
    health: Health = Health()


class Settings(RunSettings):
    """One file of the user: what its trials share, where they are recorded, and what the study is."""

    tracking: Tracking = Tracking()
    study: StudySettings = StudySettings()

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where workers train: on a GPU if they have one, and are not kept from it."""
        return "cpu" if self.train.device == "cpu" or "GPU" not in self.study.resources_per_worker else "cuda"

    @model_validator(mode="after")
    def _rules_hold(self) -> "Settings":
        if broken := broken_rules(self):
            raise BrokenRules(broken)
        return self


@functools.cache
def dotted_fields(section: type[BaseModel] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every leaf of the tree under its dotted key, in the order of the tree."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields |= dotted_fields(field.annotation, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def flatten(settings: RunSettings) -> dict[str, str | int | float | bool | None]:
    """The tree as dotted keys with plain values, as MLflow records it; widths as `128-64`, lists joined by commas."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            if any(isinstance(item, str) and "," in item for item in value):
                return json.dumps(value)
            return ("-" if all(isinstance(item, int) for item in value) else ",").join(map(str, value))
        return ",".join(f"{key}={amount:g}" for key, amount in value.items()) if isinstance(value, dict) else value

    return {key: plain(setting(settings, key)) for key in dotted_fields(type(settings))}


def run_values(settings: Settings) -> dict[str, Any]:
    """What a worker needs to know of a study's settings: a trial's own, and the rungs at which it reports."""
    keys = [*dotted_fields(RunSettings), *(key for key in dotted_fields() if key.startswith("study.pruner."))]
    return {key: setting(settings, key) for key in keys}


def epoch_at(fraction: float, epochs: int) -> int:
    """The first epoch by which this fraction of the budget has passed: 55 for 0.55 of 100, whose product is more."""
    return math.ceil(fraction * epochs - 1e-9)


def replace(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """A copy with these dotted keys changed; the whole tree is checked again."""
    changed = settings.model_dump()
    for key, value in values.items():
        if key not in dotted_fields():
            raise SettingsError([unknown_key(key, dotted_fields(), "settings", "is not a setting")])
        *path, leaf = key.split(".")
        node = changed
        for part in path:
            node = node[part]
        node[leaf] = value
    return Settings.model_validate(changed)
