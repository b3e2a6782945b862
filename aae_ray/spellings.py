"""What other tools call the things that have a name here, for advice beside an unknown one.

Optuna, Ray Tune, Weights & Biases sweeps, Hydra, Lightning, scikit-learn. Names are compared by `folded`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

SETTINGS = {  # the last part of a key, or a block of a study's file
    **dict.fromkeys(("lr", "learning_rate", "alpha"), "optim.reconstruction_lr"),
    **dict.fromkeys(("optimizer", "optimiser"), "optim.algorithm"),
    **dict.fromkeys(("momentum", "beta1"), "optim.reconstruction_momentum"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs", "max_t", "nb_epoch"), "train.epochs"),
    **dict.fromkeys(("batch", "bs", "batchsize", "train_batch_size"), "train.batch_size"),
    **dict.fromkeys(("accelerator", "cuda"), "train.device"),
    **dict.fromkeys(("precision", "amp", "fp16", "bf16"), "train.mixed_precision"),
    **dict.fromkeys(("z_dim", "zdim", "latent_size", "latent", "nz", "embedding_dim", "code_size"), "model.latent_dim"),
    **dict.fromkeys(("hidden_dim", "hidden_dims", "hidden_size", "hidden_sizes", "layers", "widths"), "model.hidden"),
    **dict.fromkeys(("n_clusters", "num_clusters", "k"), "model.clusters"),
    **dict.fromkeys(("dataset", "dataset_name"), "data.name"),
    **dict.fromkeys(("data_dir", "data_path", "root", "train_path"), "data.path"),
    **dict.fromkeys(("val_split", "validation_split", "val_fraction", "val_size"), "data.validation_fraction"),
    **dict.fromkeys(("test_split", "test_size"), "data.test_fraction"),
    **dict.fromkeys(("random_state", "random_seed", "manual_seed"), "seed"),
    **dict.fromkeys(
        ("num_samples", "n_trials", "num_trials", "max_trials", "n_iter", "run_cap"), "study.budget.trials"
    ),
    **dict.fromkeys(("timeout", "time_budget_s", "max_time", "walltime", "time_limit"), "study.budget.wall_clock"),
    **dict.fromkeys(("pruner", "scheduler", "early_terminate"), "study.pruner.type"),
    **dict.fromkeys(("min_iter", "min_resource", "n_warmup_steps"), "study.pruner.grace_period"),
    **dict.fromkeys(("eta",), "study.pruner.reduction_factor"),
    **dict.fromkeys(("sampler", "search_alg", "searcher", "algo", "method"), "study.sampler.type"),
    **dict.fromkeys(("metrics", "objective"), "study.objectives"),
    **dict.fromkeys(("study_name", "project_name"), "study.name"),
    **dict.fromkeys(("n_jobs", "max_concurrent", "max_concurrent_trials", "max_parallel"), "study.concurrent_trials"),
    **dict.fromkeys(("num_workers", "n_workers", "workers", "world_size"), "study.workers_per_trial"),
    **dict.fromkeys(("resources", "resources_per_trial", "gpus", "num_gpus"), "study.resources_per_worker"),
    **dict.fromkeys(("storage", "storage_path", "output_dir", "log_dir", "save_dir"), "study.folder"),
    **dict.fromkeys(("num_seeds", "n_seeds"), "study.seeds_per_trial"),
    **dict.fromkeys(("max_retries",), "study.max_failures"),
    **dict.fromkeys(("tracking_uri", "mlflow_uri"), "tracking.uri"),
    **dict.fromkeys(("experiment_name", "project"), "tracking.experiment"),
    **dict.fromkeys(("registered_model_name",), "tracking.model_name"),
    **dict.fromkeys(("search_space", "param_space", "parameters", "hyperparameters", "distributions"), "space"),
    **dict.fromkeys(("params", "config", "defaults", "settings", "fixed"), "run"),
    **dict.fromkeys(("points_to_evaluate", "enqueue", "initial_points", "warm_start"), "start"),
}
REMARKS = {  # of keys for which there is no setting
    **dict.fromkeys(
        ("mode", "direction", "directions", "goal"),
        "The table of metrics knows which direction is better: leave it out, and name the metrics in study.objectives.",
    ),
}

LOG = {"log": True}
TYPES: dict[str, dict[str, Any]] = {  # of a distribution
    **dict.fromkeys(("uniform", "double", "real", "suggest_float", "suggest_uniform"), {"type": "float"}),
    **dict.fromkeys(("quniform", "q_uniform", "suggest_discrete_uniform"), {"type": "float"}),
    **dict.fromkeys(
        (
            "loguniform",
            "log_uniform",
            "log_uniform_values",
            "suggest_loguniform",
            "qloguniform",
            "q_log_uniform_values",
        ),
        {"type": "float"} | LOG,
    ),
    **dict.fromkeys(("randint", "integer", "int_uniform", "suggest_int", "qrandint"), {"type": "int"}),
    **dict.fromkeys(("lograndint", "qlograndint"), {"type": "int"} | LOG),
    **dict.fromkeys(
        ("choice", "choices", "values", "grid", "grid_search", "options", "enum", "discrete", "suggest_categorical"),
        {"type": "categorical"},
    ),
    **dict.fromkeys(("bool", "boolean"), {"type": "categorical", "choices": [True, False]}),
    **{name: {"type": name} for name in ("float", "int", "categorical")},
}
FIELDS = {  # of a distribution
    **dict.fromkeys(("min", "lower", "start", "from", "minimum"), "low"),
    **dict.fromkeys(("max", "upper", "stop", "end", "to", "maximum"), "high"),
    **dict.fromkeys(("values", "options", "choice", "categories", "grid", "grid_search"), "choices"),
    **dict.fromkeys(("distribution", "kind"), "type"),
    **dict.fromkeys(("log_scale", "logarithmic", "scale", "sampling"), "log"),
    "q": "step",
}
CALL = re.compile(r"(?:\w+\.)*(\w+)\((.*)\)", re.DOTALL)  # as of tune.loguniform(1e-4, 1e-1)
DOTS = re.compile(r"\s*(.+?)\s*(?:\.\.\.?|:)\s*(.+?)\s*")  # as of 1e-3..1e-1


def folded(name: str) -> str:
    """A name without what people write differently: `Train-Epochs` and `train/epochs` are train_epochs."""
    return re.sub(r"[\W_]+", "_", name.strip().lower()).strip("_")


def distribution(spec: Any, whole: bool) -> dict[str, Any] | None:
    """A distribution in the words of another tool in those of a study's file; None where nothing is understood.

    `whole` says whether the setting takes whole numbers alone, which decides where the type does not.
    """
    if isinstance(spec, str):
        return _of_text(spec, whole)
    if isinstance(spec, Sequence):
        return _of_list(list(spec), whole)
    if not isinstance(spec, Mapping):
        return None
    fields: dict[str, Any] = {}
    for field, value in spec.items():
        name = folded(str(field))
        if name in ("range", "bounds", "interval") and isinstance(value, list) and len(value) == 2:
            fields |= {"low": value[0], "high": value[1]}
        elif FIELDS.get(name, name) == "log":
            fields["log"] = str(value).lower() in ("true", "yes", "on", "log", "log10", "logarithmic")
        else:
            fields[FIELDS.get(name, name)] = value
    known = TYPES.get(folded(str(fields.pop("type", ""))), {})
    if not known and "choices" in fields:
        known = {"type": "categorical"}
    elif not known and {"low", "high"} <= fields.keys():
        known = {"type": "int" if whole else "float"}
    found = {**known, **fields}
    needed = {"choices"} if found.get("type") == "categorical" else {"low", "high"}
    allowed = needed | ({"type"} if "choices" in needed else {"type", "log", "step"})
    found = {key: value for key, value in found.items() if (key, value) != ("log", False)}
    if found.get("type") == "float" and whole:
        found["type"] = "int"
    order = ("type", "low", "high", "log", "step", "choices")
    ordered: dict[str, Any] = {field: found[field] for field in order if field in found}
    return ordered if known and needed <= found.keys() <= allowed else None


def _of_list(values: list[Any], whole: bool) -> dict[str, Any] | None:
    """Two numbers of a growing order are taken for a range, everything else for choices."""
    if not values:
        return None
    numbers = [_number(value) for value in values]
    low, high = (numbers[0], numbers[-1]) if len(numbers) == 2 else (None, None)
    if low is not None and high is not None and low < high:
        return {"type": "int" if whole else "float", "low": values[0], "high": values[1]}
    return {"type": "categorical", "choices": values}


def _of_text(text: str, whole: bool) -> dict[str, Any] | None:
    if call := CALL.fullmatch(text.strip()):
        known, rest = TYPES.get(folded(call[1]), {}), call[2].strip()
        values = [part.strip().strip("'\"") for part in rest.strip("[]").split(",") if part.strip()]
        if known.get("type") == "categorical":
            return {**known, "choices": values} if values else None
        if known and len(values) >= 2 and all(_number(value) is not None for value in values[:2]):
            return distribution({"type": call[1], "low": values[0], "high": values[1]}, whole)
        return None
    dots = DOTS.fullmatch(text)
    return _of_list([dots[1], dots[2]], whole) if dots and None not in map(_number, dots.groups()) else None


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def flow(spec: Mapping[str, Any]) -> str:
    """A distribution as a study's file has it, on one line."""

    def plain(value: Any) -> str:
        if isinstance(value, list):
            return f"[{', '.join(map(plain, value))}]"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return "{" + ", ".join(f"{field}: {plain(value)}" for field, value in spec.items()) + "}"
