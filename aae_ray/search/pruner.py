"""The rungs at which trials are compared."""

from aae_ray import settings


def rungs(pruner: settings.Pruner, epochs: int) -> list[int]:
    """The epochs at which trials are compared, below the full budget."""
    if pruner.type == "none":
        return []
    epochs_of_rungs, rung = [], pruner.grace_period
    while rung < epochs:
        epochs_of_rungs.append(rung)
        rung *= pruner.reduction_factor
    return epochs_of_rungs
