"""One study from its plan to its report: the order of events, and nothing else."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from rich.console import Console

from aae_ray.autoencoder.model import build_model
from aae_ray.autoencoder.phases import TASKS
from aae_ray.datasets.dataset import Dataset, load
from aae_ray.datasets.labels import check
from aae_ray.errors import Kind, Problem, SettingsError, UserError
from aae_ray.evaluation.divergence import LEAST_CODES
from aae_ray.evaluation.final_evaluation import Assessment
from aae_ray.evaluation.held_out import measured
from aae_ray.execution.gang import precision_advice
from aae_ray.execution.ray_cluster import cluster, gangs_that_fit
from aae_ray.execution.search import Search
from aae_ray.reporting import report
from aae_ray.reporting.screen import Screen
from aae_ray.search.ledger import Ledger, TrialRecord
from aae_ray.search.objectives import select
from aae_ray.search.space import Plan, options
from aae_ray.settings import Settings, replace, setting
from aae_ray.tracking.address import tracking_uri
from aae_ray.tracking.provenance import moment
from aae_ray.tracking.sender import Tracker, import_early
from aae_ray.tracking.sink import Records
from aae_ray.training import checkpoint
from aae_ray.training.loop import Training

LABELLED = ("test/classification_error", "test/part_error")  # what a user of a task with labels asks for first
SAMPLES = ("quality/fid_local", "quality/coverage", "quality/parzen_nats")  # what images of the prior are worth
STRUCTURE = ("task", "model.network", "model.channels", "model.prior", "model.prior_components")
SEND_SECONDS = 60  # to wait at the end for MLflow to take the last records


@dataclass(frozen=True)
class Outcome:
    """What a study leaves behind."""

    folder: Path
    ledger: Ledger
    best: TrialRecord | None
    registration: dict[str, Any] | None
    interrupted: bool
    asked_to_register: bool
    tests: dict[str, Assessment]  # of each finalist by its name: what it is worth on the test images


def run_study(plan: Plan, console: Console, *, verbose: bool = False) -> Outcome:
    """Run a study to its end, its budget or Ctrl-C, and report. Raises UserError for what the user can put right."""
    began = time.monotonic()
    run, uri, dataset = checked(plan)
    ledger = Ledger(plan)
    import_early()  # while Ray's processes start
    with Screen(console, ledger, plan, title_of(plan, dataset)) as screen, cluster(verbose=verbose):
        gangs = gangs_that_fit(run)
        for advice in (precision_advice(run), labels_advice(plan)):
            if advice:
                console.print(report.bullet("note", advice), soft_wrap=True)
        study_id, folder, storage = make_folder(run)
        plan = Plan(replace(run, {"study.folder": storage}), plan.space, plan.start)
        tracker = Tracker(folder, uri, run.tracking.experiment or f"aae/{run.data.name}")
        records = Records(tracker, plan, study_id, dataset)
        records.study_began()
        try:
            search = Search(plan, study_id, folder, ledger, records, screen)
            interrupted = search.run(gangs, verbose=verbose)
            best = choose(ledger, run.study.select)
            tests: dict[str, Assessment] = {}
            try:
                screen.say("choosing the best trial, drawing the plots")
                records.plots(report.write_plots(search.optuna_study, plan, folder / "plots"))
                for record in finalists(ledger, best, run.study.finalists):
                    screen.say(f"measuring {record.name} on the test images")
                    training = rebuild(plan, dataset, record, search.checkpoints[record.trial_id])
                    tests[record.name] = records.finalist(record, training)
                    if record is best:
                        register = run.tracking.register_model and not interrupted
                        records.best(best, training, tests[best.name], folder, ledger, register=register)
            except KeyboardInterrupt:  # what is measured so far is kept
                interrupted = True
            records.study_ended(ledger, "KILLED" if interrupted else "FINISHED" if best else "FAILED")
        except BaseException:  # whatever ends the study, its records say that it ended
            records.study_ended(ledger, "FAILED")
            tracker.close(SEND_SECONDS)
            raise
        screen.say("sending the last records to MLflow")
        try:
            unsent = tracker.close(SEND_SECONDS)
        except KeyboardInterrupt:  # the records wait in the study's folder
            interrupted, unsent = True, tracker.spool.unsent
    registration = tracker.results.get("registration") if best else None
    outcome = Outcome(folder, ledger, best, registration, interrupted, run.tracking.register_model, tests)
    print_report(console, outcome, plan, tracker, uri, unsent, time.monotonic() - began)
    return outcome


def checked(plan: Plan) -> tuple[Settings, str, Dataset]:
    """All that can be wrong before anything starts, looked at: the settings with absolute paths, MLflow's address and
    the data, which are prepared. Raises UserError."""
    run = with_absolute_paths(plan.settings)
    uri = tracking_uri(run.tracking.uri)
    dataset = load(run.data)
    _check_data(plan, dataset)
    return run, uri, dataset


def _check_data(plan: Plan, dataset: Dataset) -> None:
    """Raises SettingsError with all in which the data do not fit the settings, or anything that is searched."""
    problems: dict[Problem, None] = {}
    for each in _each_structure(plan):
        try:
            check(each, dataset)
            build_model(each, dataset.shape, classes=dataset.classes)
        except SettingsError as error:
            problems |= dict.fromkeys(error.problems)
        problems |= dict.fromkeys(_unmeasured(each, dataset))
    for part, indices in (("validation", dataset.val), ("test", dataset.test)):
        if len(indices) < LEAST_CODES:
            few = f"data.name {dataset.name} has {len(indices)} {part} images, too few to measure on"
            key = f"data.{part}_fraction"
            text = f"{few}; give {key} so that there are at least {LEAST_CODES}"
            problems[Problem((key,), Kind.DATA, "settings", text)] = None
    if problems:
        raise SettingsError(problems)


def labels_advice(plan: Plan) -> str | None:
    """A sentence when labels are counted that no task of the study learns from."""
    run = plan.settings
    tasks = options(plan.space["task"]) if "task" in plan.space else [run.task]
    if run.data.labels is None or any(TASKS[task].labels == "some" for task in tasks):
        return None
    return f"data.labels={run.data.labels:g} has no effect: task {' and '.join(tasks)} learns from no labels"


def _each_structure(plan: Plan) -> Iterator[Settings]:
    """The settings with every pair of searched values of keys that labels or networks must fit to the data."""
    run = with_absolute_paths(plan.settings)
    yield run
    values = [(name, value) for name in STRUCTURE if name in plan.space for value in options(plan.space[name])]
    for (first, a), (second, b) in combinations_with_replacement(values, 2):
        if first != second or a == b:
            yield replace(run, {first: a, second: b})


def _unmeasured(run: Settings, dataset: Dataset) -> list[Problem]:
    """Every metric that the study asks for and its task does not measure on these data."""
    found, pruner = measured(run, dataset), run.study.pruner.metric
    asked = [("study.objectives", name) for name in run.study.objectives]
    asked += [("study.pruner.metric", pruner)] if pruner != "front" else []
    return [
        Problem(
            (key,),
            Kind.DATA,
            "settings",
            f"{key}: {name} is not measured by task {run.task} on data.name {dataset.name}; "
            f"those that are: {', '.join(sorted(found))}",
        )
        for key, name in asked
        if name not in found
    ]


def print_report(
    console: Console, outcome: Outcome, plan: Plan, tracker: Tracker, uri: str, unsent: int, seconds: float
) -> None:
    """The end of a study on the console: the front, the best, what was registered, what to type next."""
    ledger, best, place = outcome.ledger, outcome.best, report.shell_path(outcome.folder)
    lines = [report.bullet("study", report.outcome_line(ledger, seconds))]
    if best:
        console.print(report.front_table(ledger, best, console), "")
        values = ", ".join(f"{name} {best.metrics[name]:.4f}" for name in ledger.objectives)
        lines.append(
            report.bullet(
                "best trial",
                f"{best.name} ({report.describe(best.params) or 'the settings as given'}): {values}",
            )
        )
        if assessment := outcome.tests.get(best.name):
            test = assessment.metrics
            told = [name.replace("val/", "test/") for name in ledger.objectives]
            told += [name for name in LABELLED if name in test and name not in told]
            lines.append(report.bullet("test images", ", ".join(report.with_floor(name, test) for name in told)))
            samples = [report.with_floor(name, test) for name in SAMPLES if name in test]
            lines += [report.bullet("samples", ", ".join(samples))] if samples else []
            lines += [report.bullet("", remark) for remark in assessment.remarks]
    failures = {record.message for record in ledger.records if record.state == "failed" and record.message}
    lines += [report.bullet("failure", message) for message in sorted(failures)]
    if warning := report.noise_warning(ledger):
        lines.append(report.bullet("note", warning))
    lines.append(report.bullet("registered", registration_line(outcome, unsent)))
    lines.append(report.bullet("kept in", place))
    lines += [report.bullet("MLflow", f"refused a record: {message}") for message in tracker.dropped]
    if unsent:
        lines.append(
            report.bullet(
                "MLflow",
                f"{unsent} records wait in {place} ({tracker.problem or 'the server is slow'}); send them with",
            )
        )
        lines.append(report.bullet("", f"  python -m aae_ray.tune --replay {place}"))
    for line in lines:
        console.print(line)
    console.print("")
    for label, text in next_commands(outcome, uri):
        console.print(report.bullet(label, text), soft_wrap=True)


def registration_line(outcome: Outcome, unsent: int) -> str:
    made = outcome.registration
    if made:
        champion = "champion" if made["champion"] else "not the champion"
        return f"{made['name']} version {made['version']}, {champion} ({made['reason']})"
    if not outcome.best:
        return "nothing: no trial was trained to its end"
    if outcome.interrupted:
        return "nothing: the study was interrupted"
    if not outcome.asked_to_register:
        return "nothing: tracking.register_model is false"
    return "nothing yet: MLflow did not take it" if unsent else "nothing: MLflow refused it, see below"


def next_commands(outcome: Outcome, uri: str) -> list[tuple[str, str]]:
    """What to type next, each with what it does."""
    commands = []
    given = "" if uri == tracking_uri(None) else f" --tracking-uri {shlex.quote(uri)}"
    if made := outcome.registration:
        version = "" if made["champion"] else f" --version {made['version']}"
        commands.append(
            (
                "images",
                f"python -m aae_ray.generate {shlex.quote(made['name'])} --count 64 --out samples.png{version}{given}",
            )
        )
    if outcome.best and (outcome.folder / "best_config.yaml").exists():
        commands.append(
            (
                "train again",
                f"python -m aae_ray.train {report.shell_path(outcome.folder / 'best_config.yaml')}",
            )
        )
    if uri.startswith("http"):
        commands.append(("compare", uri))
    else:
        commands.append(("compare", f"mlflow ui --backend-store-uri {shlex.quote(uri)}"))
    return commands


def with_absolute_paths(run: Settings) -> Settings:
    """Workers have a working folder of their own: what the user wrote is meant from where the command was typed."""
    paths = {key: setting(run, key) for key in ("data.path", "data.cache")}
    return replace(run, {key: str(Path(path).expanduser().absolute()) for key, path in paths.items() if path})


def make_folder(run: Settings) -> tuple[str, Path, str]:
    """An id, a new local folder, and the place of the trials' checkpoints (below it, unless study.folder is remote)."""
    study_id = f"{run.study.name}-{moment()}"
    remote = "://" in run.study.folder
    root = Path("runs" if remote else run.study.folder).expanduser().absolute()
    folder = root / study_id
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"study.folder {run.study.folder}: {folder} cannot be made: {error.strerror}") from None
    return (
        study_id,
        folder,
        f"{run.study.folder.rstrip('/')}/{study_id}" if remote else str(folder / "trials"),
    )


def title_of(plan: Plan, dataset: Dataset) -> str:
    study, run = plan.settings.study, plan.settings
    sizes = f"{len(dataset.train)} / {len(dataset.val)} / {len(dataset.test)} images"
    goals = "  ".join(report.heading(name) for name in study.objectives)
    return f"{study.name}: {dataset.name}, {sizes}, {study.budget.trials} trials of {run.train.epochs} epochs, {goals}"


def choose(ledger: Ledger, rule: str) -> TrialRecord | None:
    """The best trial of the front by the rule of `study.select`."""
    front = ledger.front()
    return front[select([ledger.values(record) for record in front], rule)] if front else None


def finalists(ledger: Ledger, best: TrialRecord | None, which: str) -> list[TrialRecord]:
    """The trials that `study.finalists` names."""
    if which == "all":
        return ledger.complete()
    return ledger.front() if which == "front" else [record for record in (best,) if record]


def rebuild(plan: Plan, dataset: Dataset, record: TrialRecord, saved: Any) -> Training:
    """A trial's training from its checkpoint, on the CPU."""
    training = Training(replace(plan.settings, record.params), dataset)
    with saved.as_directory() as directory:
        training.load_state_dict(checkpoint.load(directory))
    return training
