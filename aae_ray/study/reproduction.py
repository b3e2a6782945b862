"""A registered version trained again, from what the registry says of it alone, and held against what was recorded."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from types import MappingProxyType

from rich.console import Console
from rich.table import Table

from aae_ray.datasets.dataset import load, split_digest
from aae_ray.errors import SettingsError, UserError
from aae_ray.evaluation.metrics import METRICS
from aae_ray.execution.capacity import check_resources
from aae_ray.reading import Entry, build, read_overrides
from aae_ray.reporting.report import StudyReport
from aae_ray.search.promotion import EVIDENCE
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, dotted_fields, replace
from aae_ray.study.checks import with_absolute_paths
from aae_ray.study.plans import SINGLE
from aae_ray.study.study import start_study
from aae_ray.tracking import registry
from aae_ray.tracking.provenance import DEVICE, provenance

# Settings of the study that the numbers of its trials depend on.
RESOURCES = "study.resources_per_worker"
OF_THE_STUDY = ("study.objectives", "study.workers_per_trial", RESOURCES)
COMMIT = "mlflow.source.git.commit"
DECIDING = (
    "version.python",
    "version.torch",
    "version.numpy",
    "machine.processor",
    DEVICE,
)  # on which last digits hang
TOLD = (*DECIDING, "version.aae-ray", COMMIT)
SPEED = "perf/"  # metrics of the machine, and not of the model
PLACES = ("data.path", "data.test_path", "data.cache", "data.shared")
NOWHERE: Mapping[str, Entry] = MappingProxyType({})
SPREADS = 2.0  # standard deviations of seeds within which another machine's numbers are the same


@dataclass(frozen=True)
class Recorded:
    """What the registry says of a version."""

    name: str
    version: str
    settings: Settings
    data_digest: str
    metrics: Mapping[str, float]  # at the end of its trial
    provenance: Mapping[str, str]
    spread: Mapping[str, float]  # standard deviation over seeds, of what was confirmed
    split: str = ""  # `split_digest`, empty for a version of before it was recorded

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True)
class Compared:
    """A metric, as it was recorded and as it is now."""

    name: str
    recorded: float
    again: float
    spread: float | None  # over seeds, where it is known

    @property
    def exact(self) -> bool:
        return self.recorded == self.again or (math.isnan(self.recorded) and math.isnan(self.again))

    @property
    def within_seeds(self) -> bool:
        return self.spread is not None and abs(self.again - self.recorded) <= SPREADS * self.spread


@dataclass(frozen=True)
class Reproduction:
    """What came of it."""

    recorded: Recorded
    differences: Mapping[str, tuple[str, str]]  # of versions and machine: then and now
    metrics: tuple[Compared, ...]
    report: StudyReport

    @property
    def exact(self) -> bool:
        """Whether every digit must be the same: with nothing different on which one could hang, and on the CPU. A GPU
        adds in no fixed order."""
        return self.recorded.settings.device == "cpu" and not any(key in DECIDING for key in self.differences)

    @property
    def holds(self) -> bool:
        """Whether all metrics are the same; with other versions or on another kind of processor, and on a GPU, whether
        the objectives are within what other seeds give."""
        if not self.metrics:
            return False
        if all(each.exact for each in self.metrics):
            return True
        objectives = self.recorded.settings.study.objectives
        deciding = [each for each in self.metrics if each.name in objectives]
        return not self.exact and bool(deciding) and all(each.within_seeds for each in deciding)

    @property
    def verdict(self) -> str:
        if not self.metrics:
            return f"{self.recorded} is not reproduced: its training has no metric to compare"
        if all(each.exact for each in self.metrics):
            return f"{self.recorded} is reproduced, to the last digit of {len(self.metrics)} metrics"
        if self.exact:
            return f"{self.recorded} is not reproduced: with the same versions and processor its metrics differ"
        other = any(key in DECIDING for key in self.differences)
        where = "with other versions or processor" if other else "on a GPU, where no two trainings are the same"
        if self.holds:
            return f"{self.recorded} is reproduced within what other seeds give, {where}"
        if not self.recorded.spread:
            return f"{self.recorded} differs {where}; confirm it to know what seeds give"
        return f"{self.recorded} is not reproduced: its objectives differ by more than other seeds give"


def read(reference: str, uri: str, overrides: Sequence[str] = ()) -> Recorded:
    """What the registry says of NAME, NAME@ALIAS or NAME/VERSION, the champion of a bare name; `overrides` say where
    its data lie now. Raises UserError where there is no such version, and where it says too little."""
    name, which = registry.name_and_version(reference)
    places = read_overrides(overrides)
    if foreign := [key for key in places if key not in PLACES]:
        raise UserError(f"{', '.join(foreign)}: a model is trained as it was; give {', '.join(PLACES)} alone")
    client = registry.client_of(name, uri)
    version = registry.version_of(client, name, which)
    registry.trial_of(version)
    run, parent = registry.runs_of(client, version)
    if donors := sorted(tag for tag in run.data.tags if tag.startswith("aae.donor.")):
        raise UserError(
            f"{name} version {version.version} took over weights and settings of other trials on its way "
            f"({', '.join(donors)}); training it alone would not make it again"
        )
    shared = {key: value for key, value in parent.data.params.items() if key in OF_THE_STUDY}
    seeds = json.loads(version.tags.get(EVIDENCE, "[]"))
    names = set.intersection(*(set(each) for each in seeds)) if len(seeds) > 1 else set()
    return Recorded(
        name=name,
        version=str(version.version),
        settings=settings_of(run.data.params | shared, f"{name} version {version.version}", places),
        data_digest=version.tags.get("data.digest", ""),
        metrics=dict(run.data.metrics),
        provenance={key: value for key, value in run.data.tags.items() if key in TOLD},
        spread={each: statistics.stdev(metrics[each] for metrics in seeds) for each in names},
        split=version.tags.get(registry.SPLIT_DIGEST, ""),
    )


def settings_of(params: Mapping[str, str], where: str, places: Mapping[str, Entry] = NOWHERE) -> Settings:
    """Settings as a run's params have them: text, of which None is a setting that was not given; data in other
    `places`.

    Raises SettingsError for params of a release whose settings these are not.
    """
    known = dotted_fields()
    given = {key: Entry(value, where) for key, value in params.items() if key in known and value not in ("None", "")}
    if RESOURCES in given:
        amounts = (part.partition("=") for part in given[RESOURCES].value.split(","))
        given[RESOURCES] = Entry({name: amount for name, _, amount in amounts}, where)
    return build(given | dict(places))


def reproduce(recorded: Recorded, uri: str, console: Console, *, verbose: bool = False) -> Reproduction:
    """Train it again as a study of one trial, which registers nothing. Raises UserError for other data."""
    settings = with_resources_of_here(with_absolute_paths(recorded.settings))
    try:
        dataset = load(settings.data)
    except UserError as error:
        raise UserError(f"{error}. Where the data of {recorded} lie elsewhere by now, give data.path=...") from None
    if dataset.digest != recorded.data_digest:
        raise UserError(
            f"{recorded} was trained on data with digest {recorded.data_digest}, and data.name {dataset.name} has "
            f"{dataset.digest} here: no other training can make it again"
        )
    if recorded.split not in ("", split_digest(dataset)):
        raise UserError(
            f"{recorded} was trained on another split of data.name {dataset.name}, whose source gives other parts "
            "here: its training images are not those, and no other training can make it again"
        )
    changes = SINGLE | {"study.name": "reproduction", "tracking.register_model": False, "tracking.uri": uri}
    report = start_study(Plan(replace(settings, changes), {}), console, verbose=verbose)
    found = compared(recorded, report)
    return Reproduction(changed(recorded, settings=settings), differences(recorded), found, report)


def compared(recorded: Recorded, report: StudyReport) -> tuple[Compared, ...]:
    """The metrics of a training that has come to its end, beside those that were recorded; none of half a training."""
    trial = report.best
    if trial is None or not report.as_planned:
        return ()
    again = trial.metrics | (trial.test.metrics if trial.test else {})
    return tuple(
        Compared(name, recorded.metrics[name], again[name], recorded.spread.get(name))
        for name in recorded.metrics
        if name in again and name in METRICS and not name.startswith(SPEED)
    )


def with_resources_of_here(settings: Settings) -> Settings:
    """As it was trained, where this machine has what that took; else with the resources that are the default."""
    try:
        check_resources(settings)
    except SettingsError:
        default = Settings().study.resources_per_worker
        return replace(settings, {RESOURCES: default, "train.device": Settings().train.device})
    return settings


def differences(recorded: Recorded) -> dict[str, tuple[str, str]]:
    """Versions, commit, processor and device that are not what they were."""
    then: dict[str, str] = {DEVICE: recorded.settings.device, **recorded.provenance}
    now = {**provenance(), DEVICE: with_resources_of_here(recorded.settings).device}
    both = {key: (then.get(key, "not recorded"), now.get(key, "none")) for key in TOLD}
    return {key: pair for key, pair in both.items() if pair[0] != pair[1]}


# ------------------------------------------------------------------------------------------------------- as it is shown


def difference_table(found: Mapping[str, tuple[str, str]]) -> Table:
    table = _table("Versions and machine", "", "then", "now")
    for key, (then, now) in found.items():
        table.add_row(key.removeprefix("version.").replace(COMMIT, "commit"), then, now)
    return table


def metric_table(found: Reproduction) -> Table:
    """The objectives first; of the others those that differ."""
    table = _table("Metrics", "metric", "recorded", "again", "difference", "seeds")
    objectives = found.recorded.settings.study.objectives
    for each in sorted(found.metrics, key=lambda compared: compared.name not in objectives):
        if each.exact and each.name not in objectives:
            continue
        spread = "" if each.spread is None else f"± {each.spread:.2g}"
        difference = "none" if each.exact else f"{each.again - each.recorded:+.2g}"
        table.add_row(each.name, f"{each.recorded:.6g}", f"{each.again:.6g}", difference, spread)
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, overflow="fold", justify="left" if index == 0 else "right")
    return table
