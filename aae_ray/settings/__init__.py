"""What a run is: one frozen, typed, strict tree, with one dotted spelling of every key.

`optim.discrimination_lr` is written so in a YAML file, on the command line, in Optuna, in MLflow and in the code that
builds the optimizer. Files and command lines are read in `reading`.

    values    the kinds of values, and how they are spelled
    sections  the parts of the tree: keys, defaults, descriptions
    rules     what values of several keys must fulfil together
    tree      the whole, and its dotted keys
"""

from aae_ray.settings.sections import Data, Model, Optim, Pruner, Sampler, StudySettings, setting
from aae_ray.settings.tree import RunSettings, Settings, dotted_fields, epoch_at, flatten, replace, run_values

__all__ = [
    "Data",
    "Model",
    "Optim",
    "Pruner",
    "RunSettings",
    "Sampler",
    "Settings",
    "StudySettings",
    "dotted_fields",
    "epoch_at",
    "flatten",
    "replace",
    "run_values",
    "setting",
]
