"""Checks before a study starts or goes on, and estimates of the disk and memory that it needs."""

import dataclasses
import math
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np

from aae_ray.autoencoder.model import weight_bytes
from aae_ray.autoencoder.phases import TASKS, Task
from aae_ray.datasets.dataset import Dataset, load, split_digest
from aae_ray.datasets.labels import check
from aae_ray.errors import Kind, Problem, SettingsError, UserError
from aae_ray.evaluation.diagnostics import diagnose
from aae_ray.evaluation.divergence import LEAST_CODES
from aae_ray.evaluation.held_out import JUDGED, diagnosed, measured
from aae_ray.evaluation.judge import SMALLEST, Judge
from aae_ray.execution.capacity import check_resources, joined_cluster
from aae_ray.execution.ray_cluster import check_address
from aae_ray.reading import COMMAND_LINE
from aae_ray.search.choice import RULES
from aae_ray.search.conditions import parents_first, with_parents
from aae_ray.search.constraints import constraints_of
from aae_ray.search.distributions import options
from aae_ray.search.ledger import Ledger
from aae_ray.search.pruner import PRUNERS, rungs
from aae_ray.search.space import Plan
from aae_ray.search.store import Store, below, is_remote, local_root
from aae_ray.settings import Settings, flatten, replace, setting
from aae_ray.tracking.address import check_answers, tracking_uri
from aae_ray.training.loop import StateBytes, state_bytes

STRUCTURE = ("task", "model.network", "model.channels", "model.prior", "model.prior_components", "train.input_warp")
# What a resume may change: how much is done, where it runs and where it is recorded, not what is searched.
FREE = ("study.budget.", "study.concurrent_trials", "study.workers_per_trial", "study.resources_per_worker",
        "study.start_timeout", "study.step_timeout", "study.capacity_timeout", "study.max_failures",
        "study.max_preemptions", "study.price_per_worker_hour", "study.keep", "study.finalists",
        "study.confirm.", "study.cluster.", "tracking.")  # fmt: skip
FIXED = (
    "study.name",
    "study.folder",
    "study.objectives",
    "study.pruner.type",
    "study.pruner.metric",
    "data.",
)  # what even an extension may not
VERSIONS = ("torch", "optuna", "numpy")  # packages that change what a study computes
# Settings beside model.* on which the size of a training's state depends.
SIZED_BY = ("task", "optim.algorithm", "optim.reencoding_lr", "train.ema_decay")
EXPECTED_FRONT = 12  # trials whose checkpoints stay at a time; a front is seldom wider
LEAST_FREE_TO_CHOOSE = 20_000_000  # for the figures, the export and the card of the best trial
LEAST_FREE_BYTES = 100_000_000  # under the study's folder: with less, a study stops while its journal can be written


def checked(plan: Plan, *, new: bool = True) -> tuple[Plan, str, Dataset]:
    """The plan with absolute paths, MLflow's address, and the data, which are prepared.

    Raises SettingsError with all that is known to be wrong before the start, each with its place. A study that is not
    `new` has its folder, and goes on also where MLflow does not answer, which gets the records later.
    """
    plan = dataclasses.replace(plan, settings=with_absolute_paths(plan.settings))
    problems: list[Problem] = []
    uri, dataset = "", None
    with _collected(problems, "tracking.uri"):
        uri = tracking_uri(plan.settings.tracking.uri)
        if new:
            check_answers(uri)
    with _collected(problems, "study.resources_per_worker"):
        check_resources(plan.settings)
        check_address(joined_cluster())
    if new:
        with _collected(problems, "study.folder"):
            _check_room(plan.settings.study.folder)
    with _collected(problems, "data.path" if plan.settings.data.path else "data.name"):
        dataset = load(plan.settings.data)
        _check_data(plan, dataset)
    if problems or dataset is None:
        raise SettingsError(dataclasses.replace(problem, where=_place(problem, plan)) for problem in problems)
    return plan, uri, dataset


def _place(problem: Problem, plan: Plan) -> str:
    """Where a key was written that a problem concerns: what was typed, before what stands in a file."""
    places = [where for key, where in plan.places.items() if problem.concerns(key)]
    return COMMAND_LINE if COMMAND_LINE in places else next(iter(places), problem.where)


@contextmanager
def _collected(problems: list[Problem], key: str) -> Iterator[None]:
    """What is wrong is added to the problems, under this key where it does not say itself which one it concerns."""
    try:
        yield
    except SettingsError as error:
        problems += error.problems
    except UserError as error:
        problems.append(Problem((key,), Kind.VALUE, "settings", str(error)))


def _check_room(folder: str) -> None:
    """Raises UserError when the disk is full, or no such folder can be made, under the folder of studies."""
    path = local_root(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"study.folder {folder}: {there} {reason}")
    if problem := disk_problem(there):
        raise UserError(f"study.folder {folder}: {problem}")


def with_absolute_paths(settings: Settings) -> Settings:
    """Workers have a working folder of their own: what the user wrote is meant from where the command was typed."""
    paths = {key: setting(settings, key) for key in ("data.path", "data.test_path", "data.cache", "data.shared")}
    changes = {
        key: str(Path(path).expanduser().absolute()) for key, path in paths.items() if path and not is_remote(path)
    }
    data, folder = settings.data, settings.study.folder
    if data.path and is_remote(data.path) and is_remote(folder) and data.shared is None:
        changes["data.shared"] = below(folder, "data")
    return replace(settings, changes)


def _check_data(plan: Plan, dataset: Dataset) -> None:
    """Raises SettingsError with all in which the data do not fit the settings, or anything that is searched."""
    problems: dict[Problem, None] = {}
    noun = dataset.kind.noun
    for each in _each_structure(plan):
        try:
            check(each, dataset)
            weight_bytes(each, dataset.kind, dataset.classes)
        except SettingsError as error:
            problems |= dict.fromkeys(error.problems)
        problems |= dict.fromkeys(_unmeasured(each, dataset))
    searched = plan.space.get("train.batch_size")
    largest = plan.settings.train.batch_size if searched is None else max(options(searched))
    if largest > len(dataset.train):
        text = f"train.batch_size is more than the {len(dataset.train)} training {noun} of data.name {dataset.name}, "
        problems[Problem(("train.batch_size",), Kind.DATA, "settings", f"{text}got {largest}")] = None
    for part, indices in (("validation", dataset.val), ("test", dataset.test)):
        if len(indices) < LEAST_CODES:
            few = f"data.name {dataset.name} has {len(indices)} {part} {noun}, too few to measure on"
            key = f"data.{part}_fraction"
            text = f"{few}; give {key} so that there are at least {LEAST_CODES}"
            problems[Problem((key,), Kind.DATA, "settings", text)] = None
    if problems:
        raise SettingsError(problems)


@dataclasses.dataclass(frozen=True)
class Use:
    """What a setting needs to have an effect."""

    keys: tuple[str, ...]
    holds: Callable[[Task, str], bool]  # of a task and a posterior
    without: str  # what is said of tasks and posteriors without it


def _has_phase(name: str) -> Callable[[Task, str], bool]:
    return lambda task, _: any(phase.name == name for phase in task.phases)


USES = (
    Use(("data.labels", "data.labels_drawn"), lambda task, _: task.labels == "some", "learns from no labels"),
    Use(
        (
            "model.discriminator_hidden",
            "model.discriminator_slope",
            "model.discriminator_spectral_norm",
            "optim.discrimination_lr",
            "optim.regularization_lr",
            "optim.adversarial_momentum",
            "train.adversarial_loss",
            "train.discriminator_steps",
            "train.r1_penalty",
            "train.style_noise",
        ),
        _has_phase("discriminate"),
        "has no discriminator",
    ),
    Use(
        ("train.label_noise",),
        lambda task, _: any("label_discriminator" in phase.updates for phase in task.phases),
        "has no discriminator of labels",
    ),
    Use(("optim.classification_lr", "optim.classification_momentum"), _has_phase("classify"), "has no phase classify"),
    Use(("model.decoder_std",), _has_phase("negative_elbo"), "has no evidence lower bound"),
    Use(("train.mmd_weight",), _has_phase("wae_mmd"), "has no discrepancy in its loss"),
    Use(("model.posterior_std_floor",), lambda _, posterior: posterior == "gaussian", "has no Gaussian posterior"),
)


def idle_settings(plan: Plan) -> list[str]:
    """A sentence for each setting that was changed or is searched and that no trial of the study can feel."""
    tasks, posteriors = (
        options(plan.space[key]) if key in plan.space else [setting(plan.settings, key)]
        for key in ("task", "model.posterior")
    )
    what, defaults, sentences = f"task {' and '.join(tasks)}", Settings(), []
    for use in USES:
        if any(use.holds(TASKS[task], posterior) for task, posterior in product(tasks, posteriors)):
            continue
        for key in use.keys:
            value = setting(plan.settings, key)
            if key in plan.space:
                sentences.append(f"{key} is searched and has no effect: {what} {use.without}")
            elif value != setting(defaults, key):
                shown = f"{value:g}" if isinstance(value, float) else flatten(plan.settings)[key]
                sentences.append(f"{key}={shown} has no effect: {what} {use.without}")
    return sentences


def start_advice(plan: Plan, dataset: Dataset) -> list[str]:
    """Sentences on what is known at the start and stops nothing: settings without effect, rungs that there are not, a
    sampler that will hardly learn, and a disk on which there may not be room for all checkpoints."""
    study, epochs, sentences = plan.settings.study, plan.settings.train.epochs, idle_settings(plan)
    if study.pruner.type != "none" and study.budget.trials > 1 and not rungs(study.pruner, epochs):
        sentences.append(
            f"study.pruner.grace_period={study.pruner.grace_period} leaves no rung before train.epochs={epochs}: "
            f"study.pruner.type={study.pruner.type} compares no trials; give a smaller one"
        )
    rule, trials, startup = PRUNERS[study.pruner.type], study.budget.trials, study.sampler.n_startup_trials
    kept = 1 / study.pruner.reduction_factor if rule.kept is None else rule.kept
    complete = 0 if rule.population else math.ceil(trials * kept ** len(rungs(study.pruner, epochs)))
    if study.sampler.type == "gp" and plan.space and trials > 1 and complete <= startup:
        sentences.append(
            f"study.sampler.type=gp draws at random until {startup} trials are complete, and with study.pruner.type="
            f"{study.pruner.type} about {complete} of {trials} will be before the last one is drawn; give a smaller "
            "study.sampler.n_startup_trials, a larger study.budget.trials, or tpe, which learns from every trial"
        )
    path = local_root(study.folder).absolute()
    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    needed, free = disk_needed(plan, dataset), shutil.disk_usage(there).free
    if needed > free:
        sentences.append(
            f"checkpoints may take {needed / 1e6:,.0f} MB at a time, and {free / 1e6:,.0f} MB are free under {there}; "
            "give study.keep=best, or another study.folder"
        )
    return sentences


def judge_advice(judge: Judge | None, settings: Settings) -> str | None:
    """A sentence when a study decides by the features of a judge that hardly knows its images."""
    found = () if judge is None else diagnose({"quality/judge_accuracy": judge.accuracy}, settings)
    return next((f"the study decides by {JUDGED}, but {diagnostic.text}" for diagnostic in found), None)


def _each_structure(plan: Plan) -> Iterator[Settings]:
    """The settings with every pair of searched values of keys that labels or networks must fit to the data."""
    yield plan.settings
    values = [(name, value) for name in STRUCTURE if name in plan.space for value in options(plan.space[name])]
    for (first, a), (second, b) in combinations_with_replacement(values, 2):
        together = with_parents({first: a, second: b}, plan.conditions)
        if together is not None and (first != second or a == b):
            yield replace(plan.settings, together)


def _unmeasured(settings: Settings, dataset: Dataset) -> list[Problem]:
    """Every metric that the study asks for and its task does not measure on these data."""
    metrics, pruner = measured(settings, dataset), settings.study.pruner.metric
    asked = [("study.objectives", name) for name in settings.study.objectives]
    asked += [("study.pruner.metric", pruner)] if pruner != "front" else []
    asked += [("study.select", settings.study.select)] if settings.study.select not in RULES else []
    missing = [(key, name) for key, name in asked if name not in metrics]
    bounded = [constraint.metric for constraint in constraints_of(settings.study)]
    known = metrics | diagnosed(settings, dataset)
    missing += [("study.constraints", name) for name in bounded if name not in known]
    all_of_one = np.zeros(len(dataset.examples_NX), np.int64)
    with_labels = measured(settings, dataclasses.replace(dataset, labels_N=all_of_one)) - metrics
    needs = dict.fromkeys(with_labels, ", as it needs labels of held-out images")
    needs[JUDGED] = (
        f", as it needs a judge, which learns from labelled images of {SMALLEST} x {SMALLEST} pixels or more"
    )
    return [
        Problem(
            (key,),
            Kind.DATA,
            "settings",
            f"{key}: {name} is not measured by task {settings.task} on data.name {dataset.name} with model.prior "
            f"{settings.model.prior}{needs.get(name, '')}; those that are: {', '.join(sorted(metrics))}",
        )
        for key, name in missing
    ]


# ------------------------------------------------------------------------------------------------- before it goes on


def check_resume(name: str, ledger: Ledger, plan: Plan, dataset: Dataset, *, extend: bool, any_version: bool) -> None:
    """Raises UserError when a study cannot go on so: changed settings or data, or other versions."""
    assert ledger.started is not None
    changes = changed_settings(ledger.current_plan, plan)
    wrong = {
        key: change
        for key, change in changes.items()
        if (key.startswith(FIXED) if extend else not key.startswith(FREE))
    }
    if wrong:
        lines = [f"  {key}: {old} -> {new}" for key, (old, new) in wrong.items()]
        how = (
            "an extended study keeps its name, folder, objectives and data, and the type and metric of its pruner, by "
            f"which paused trials are held against later ones; start a new one with --warm-start {name}"
            if extend
            else "a resumed study keeps its settings, except for budget, resources, timeouts and tracking; to "
            f"change them for new trials, use --extend {name}"
        )
        raise UserError("\n".join([f"{name}: these settings differ from those that it was started with", *lines, how]))
    if dataset.digest != ledger.started.data.digest:
        raise UserError(
            f"{name} was started on data with digest {ledger.started.data.digest}, and data.name {dataset.name} "
            f"now has {dataset.digest}; restore those data, or start a new study"
        )
    if ledger.started.data.split not in ("", split_digest(dataset)):
        raise UserError(
            f"{name} was started on another split of data.name {dataset.name}, whose source now gives other parts; "
            "restore it, or start a new study"
        )
    here = versions()
    other = [
        f"{package} {then} then, {here.get(package, 'none')} now"
        for package, then in ledger.started.versions.items()
        if here.get(package) != then
    ]
    if other and not any_version:
        raise UserError(
            f"{name} was started with other versions: {'; '.join(other)}. Install those, or give --any-version to go "
            "on with results that may differ from an unbroken study's"
        )


def check_finalists(name: str, ledger: Ledger, plan: Plan, store: Store) -> None:
    """Raises UserError when a study that is only to confirm its best trials has no checkpoint of one of them: with
    study.keep=best the others' are gone, and one that new seeds show to be the best could not be published."""
    study, old = plan.settings.study, ledger.current_plan.settings.study
    to_choose = study.confirm.finalists > 0 and (study.confirm != old.confirm or ledger.confirming is None)
    if not to_choose or ledger.unfinished or study.budget.trials > ledger.configurations:
        return
    chosen = ledger.finalists(study)
    gone = [trial.name for trial in chosen if trial.checkpoint is None or not store.files(trial.checkpoint)]
    if gone:
        raise UserError(
            f"{name}: study.confirm.finalists={study.confirm.finalists} would train {', '.join(gone)} again, whose "
            f"checkpoint is not kept (study.keep={old.keep}), so that it could not be published; confirm fewer "
            "finalists, or start a study with study.keep=front"
        )


def changed_settings(old: Plan, new: Plan) -> dict[str, tuple[str, str]]:
    """What differs between two plans: old and new value by key; of what is searched under `space.` and the key."""
    before, after = flatten(old.settings), flatten(new.settings)
    searched = old.space.keys() | new.space.keys()  # their value in the settings is only the first of many
    changes = {
        key: (str(before[key]), str(after[key]))
        for key in before
        if before[key] != after[key] and key not in searched and key != "tracking.uri"
    }
    for key in sorted(searched):
        a, b = (plan.describe(key) if key in plan.space else None for plan in (old, new))
        if a != b:
            changes[f"space.{key}"] = (a or str(before[key]), b or str(after[key]))
    return changes


def versions() -> Mapping[str, str]:
    """Versions of what decides a study's results."""
    return {"python": platform.python_version(), **{package: version(package) for package in VERSIONS}}


# -------------------------------------------------------------------------------------------------- disk and memory


def largest_state(plan: Plan, dataset: Dataset) -> StateBytes:
    """The bytes that the largest training takes of those that a study may try."""
    searched = {
        name: options(values) for name, values in plan.space.items() if name in SIZED_BY or name.startswith("model.")
    }

    def size(values: Mapping[str, Any]) -> StateBytes:
        return state_bytes(replace(plan.settings, values), dataset.kind, dataset.classes)

    def total(values: Mapping[str, Any]) -> int:
        return size(values).total

    # Task and kind of network decide which of the other keys count, and for each of those more is more.
    kinds = {name: searched.pop(name) for name in ("task", "model.network") if name in searched}
    largest: dict[str, Any] = {}
    for chosen in product(*kinds.values()):
        values = dict(zip(kinds, chosen, strict=True))
        for name in reversed(parents_first(searched, plan.conditions)):  # a key that counts decides over its parents
            tried = [with_parents({**values, name: choice}, plan.conditions) for choice in searched.get(name, ())]
            values = max((each for each in tried if each is not None), key=total, default=values)
        largest = max(largest, values, key=total) if largest else values
    return size(largest)


def trials_at_a_time(settings: Settings) -> int:
    """How many trials this machine will probably have under way; on a cluster there may be more."""
    study = settings.study
    fit = (os.cpu_count() or 1) // (study.workers_per_trial * study.resources_per_worker.get("CPU", 1))
    return min(study.budget.trials, study.concurrent_trials or max(1, int(fit)))


def disk_needed(plan: Plan, dataset: Dataset) -> int:
    """About how many bytes the checkpoints of a study will take at once: those of the trials under way or paused, with
    the state of their optimizers, and those of complete trials that stay by study.keep."""
    study = plan.settings.study
    paused = _paused_at_most(plan.settings)
    ended = study.budget.trials - paused
    stay = ended if study.keep == "all" or study.seeds_per_trial > 1 else min(ended, EXPECTED_FRONT)
    under_way = 2 * trials_at_a_time(plan.settings)  # the next is there before the last one goes
    largest = largest_state(plan, dataset)
    return largest.published * stay + largest.total * (under_way + paused)


def _paused_at_most(settings: Settings) -> int:
    """How many trials wait at rungs at the end of a study, or of a generation."""
    study = settings.study
    if not rungs(study.pruner, settings.train.epochs):
        return 0
    go_on = {"asha": math.ceil(study.budget.trials / study.pruner.reduction_factor), "pbt": 0}
    return study.budget.trials - go_on.get(study.pruner.type, study.budget.trials)


def memory_needed(plan: Plan, dataset: Dataset) -> int:
    """How many bytes a trial of the largest networks takes at least: weights, their gradients and average, and the
    moments of the optimizers, in each worker. Images, activations and the libraries come on top."""
    largest = largest_state(plan, dataset)
    return (largest.total + largest.weights) * plan.settings.study.workers_per_trial


def memory_available(root: Path = Path("/")) -> int:
    """How many bytes this machine has left: what the kernel says, and what the control groups of a container allow."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    found += [
        1024 * int(kB) for kB in re.findall(r"^MemAvailable: +(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    ]
    for kinds, own in re.findall(r"^\d+:(.*?):/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE):
        if kinds and "memory" not in kinds.split(","):
            continue
        place, file = (
            ("memory", "memory.limit_in_bytes") if kinds else ("", "memory.max")
        )  # the first and second version
        for group in (Path(own), *Path(own).parents):
            limit = _text(root / "sys/fs/cgroup" / place / group / file).strip()
            found += [int(limit)] if limit.isdigit() else []
    return min(found)


def memory_advice(plan: Plan, dataset: Dataset, trials: int) -> str | None:
    """A sentence when so many trials at a time may not fit into the memory of this machine, on which they train."""
    if plan.settings.train.device == "cuda" or "GPU" in plan.settings.study.resources_per_worker:
        return None
    each, available = memory_needed(plan, dataset), memory_available()
    if trials * each <= available:
        return None
    fewer = (
        "study.concurrent_trials" if each <= available < trials * each else "model.hidden, model.discriminator_hidden"
    )
    together = f", {trials} at a time {trials * each / 1e9:.1f} GB" if trials > 1 else ""
    return (
        f"a trial of the largest networks needs at least {each / 1e9:.1f} GB of memory{together}, "
        f"and this machine has {available / 1e9:.1f} GB left: trials may run out of memory; lower {fewer}"
    )


def _text(path: Path) -> str:
    """What a file of the kernel's says; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def check_writable(folder: str) -> None:
    """Raises UserError when nothing can be written below a folder, which is made if it is not there."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, prefix=f".writable-{uuid.uuid4().hex[:8]}"):
            pass
    except OSError as error:
        raise UserError(f"study.folder {folder} cannot be written to: {error.strerror}") from None


def disk_problem(folder: Path, needed: int = LEAST_FREE_BYTES) -> str | None:
    """A sentence when there is too little room under a folder."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder} cannot be reached: {error.strerror}"
    if free >= needed:
        return None
    return f"{free / 1e6:.0f} MB are free under {folder}, and a study needs at least {needed / 1e6:.0f} MB"
