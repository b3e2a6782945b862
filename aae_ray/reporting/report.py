"""What a study says at its end: the front, the best, what was registered, what to type next."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from aae_ray.reporting import tables, text
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.defaults import Verdict
from aae_ray.reporting.importance import LEAST_TRIALS
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import State, StudyEnd
from aae_ray.search.racing import Seeds, standard_errors
from aae_ray.search.trial_record import TrialRecord
from aae_ray.secrets import without_userinfo

LABELLED = (
    "test/classification_error",
    "test/majority_error",
    "test/part_error",
)  # what a user of a task with labels asks for first
SAMPLES = (
    "quality/fid_local",
    "quality/coverage",
    "quality/conditional_accuracy",
    "quality/parzen_nats",
    "quality/column_wasserstein",
    "quality/correlation_error",
)  # what images or rows of the prior are worth
MOST_OF_IT = 0.9  # of the hypervolume: when it was reached says how the search went
LINKS = ("leaderboard", "front", "study", "model")  # that are printed; the rest is in the menu of any of the first two
MORE_TRIALS = 10  # that an extension is offered with
DEFAULT_DATABASE = "mlflow.db"
PASSWORD = (
    "the user and password of MLflow's address are not kept: give them again in --tracking-uri, or set "
    "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
)


@dataclass(frozen=True)
class StudyReport:
    """What a session of a study leaves behind."""

    folder: Path
    ledger: Ledger
    uri: str
    registration: Mapping[str, Any] | None
    unsent: int
    parked: list[str]
    problem: str | None
    analysis: SearchAnalysis | None = None  # of a study that came to its end
    links: Mapping[str, str] = field(default_factory=dict)  # pages of MLflow, by what they show

    @property
    def best(self) -> TrialRecord | None:
        chosen = self.ledger.chosen
        return self.ledger.trials[chosen.number] if chosen else None

    @property
    def interrupted(self) -> bool:
        return self.ledger.end is StudyEnd.USER

    @property
    def as_planned(self) -> bool:
        return self.ledger.end is StudyEnd.PLANNED

    @property
    def promoted(self) -> bool:
        """Whether the best trial's decoder is the champion of its name."""
        return self.registration is not None and bool(self.registration["champion"])


def print_report(console: Console, report: StudyReport) -> None:
    ledger, best, path = report.ledger, report.best, text.shell_path(report.folder)
    lines = [text.bullet("study", tables.outcome_line(ledger))]
    if ledger.front():
        console.print(tables.front_table(ledger, best, console), "")
    if best and ledger.violation(best):
        lines.append(
            text.bullet("note", f"no trial fulfils {' and '.join(ledger.current_plan.settings.study.constraints)}")
        )
    if ledger.end_message:
        lines.append(text.bullet("ended", ledger.end_message))
    if best:
        values = ", ".join(f"{name} {tables.objective_value(ledger, best, name)}" for name in ledger.objectives)
        settings = text.describe(best.params) or "the settings as given"
        lines.append(text.bullet("best trial", f"{best.name} ({settings}): {values}"))
        if best.donors:
            weights = ", ".join(f"{ledger.trials[donor].name} at epoch {epoch}" for epoch, donor in best.donors)
            lines.append(text.bullet("note", f"its settings changed under way: it took over from {weights}"))
        lines += confirmed_lines(ledger)
        if best.test is not None:
            lines += _test_lines(ledger, best.test.metrics, best.test.remarks)
    if report.analysis is not None:
        lines += search_lines(report.analysis)
    if lost := tables.lost_line(ledger):
        lines.append(text.bullet("lost", lost))
    if cost := tables.cost_line(ledger):
        lines.append(text.bullet("cost", cost))
    failures = {trial.message for trial in ledger.trials if trial.state is State.FAILED and trial.message}
    lines += [text.bullet("failure", message) for message in sorted(failures)]
    lines += [text.bullet("note", note) for note in ledger.notes]
    lines += [text.bullet("note", sentence) for sentence in tables.trial_diagnostics(ledger)]
    if hours := text.machine_hours(ledger.machines.hours):
        lines.append(text.bullet("machines", tables.with_cost(hours, ledger.machine_cost)))
    if diagnostic := tables.front_diagnostic(ledger):
        lines.append(text.bullet("note", diagnostic.text))
    lines.append(text.bullet("registered", registration_line(report)))
    lines.append(text.bullet("kept in", path))
    lines += [text.bullet("MLflow", f"refused a record: {sentence}") for sentence in report.parked]
    if report.unsent:
        why = report.problem or "the server is slow"
        pending = f"{text.counted(report.unsent, 'record')} pending in {path} ({why}); send with"
        lines.append(text.bullet("MLflow", pending))
        lines.append(text.bullet("", f"  {text.SYNC} {path}"))
    if without_userinfo(report.uri) != report.uri and (report.unsent or not report.as_planned):
        lines.append(text.bullet("note", PASSWORD))
    for line in lines:
        console.print(line, soft_wrap=True)
    console.print("")
    for label, command in next_commands(report):
        console.print(text.bullet(label, command), soft_wrap=True)


def _test_lines(ledger: Ledger, test: Mapping[str, float], remarks: tuple[str, ...]) -> list[Any]:
    names = [name.replace("val/", "test/") for name in ledger.objectives]
    names += [name for name in LABELLED if name in test and name not in names]
    lines = [
        text.bullet(f"test {ledger.noun}", ", ".join(text.with_floor(name, test) for name in names if name in test))
    ]
    samples = [text.with_floor(name, test) for name in SAMPLES if name in test]
    lines += [text.bullet("samples", ", ".join(samples))] if samples else []
    return lines + [text.bullet("", remark) for remark in remarks]


def confirmed_lines(ledger: Ledger) -> list[Text]:
    """What the finalists came to on new seeds: means with their standard errors, beside what the choice had seen."""
    lines: list[Text] = []
    for trial, means in ledger.confirmed():
        seeds, parts = ledger.evidence(trial), []
        values = tuple(tuple(metrics[name] for name in ledger.objectives) for metrics in seeds)
        errors = standard_errors(Seeds(trial.number, values))
        for index, name in enumerate(ledger.objectives):
            error = f" ± {errors[index]:.4f}" if errors else ""
            parts.append(f"{name} {means[name]:.4f}{error} (was {trial.metrics[name]:.4f})")
        told = f"{trial.name} on {text.counted(len(seeds), 'new seed')}: {', '.join(parts)}"
        lines.append(text.bullet("confirmed" if not lines else "", told))
    return lines


def search_lines(analysis: SearchAnalysis) -> list[Text]:
    """What is said of the search, as lines of the console."""
    return [
        text.bullet(label if index == 0 else "", line)
        for label, lines in search_sections(analysis).items()
        for index, line in enumerate(lines)
    ]


def search_sections(analysis: SearchAnalysis) -> dict[str, list[str]]:
    """How far the search came, which settings mattered, and which of the best trial's could go back to their defaults:
    what the trials can tell, and of the rest that they cannot."""
    return {
        "hypervolume": _progress_lines(analysis),
        "importance": _importance_lines(analysis),
        "defaults": _default_lines(analysis),
    }


def _progress_lines(analysis: SearchAnalysis) -> list[str]:
    *completed, last = analysis.progress
    if not completed:
        return []
    soon = next(point for point in completed if point.hypervolume >= MOST_OF_IT * last.hypervolume)
    spent = f"{text.counted(last.epochs, 'epoch')} ({text.duration(last.seconds)})"
    before = "" if soon.epochs == last.epochs else f", {MOST_OF_IT:.0%} of that after {soon.epochs}"
    before += f" ({text.duration(soon.seconds)})" if before else ""
    return [f"{last.hypervolume:.3f} of 1 after {spent}{before}"]


def _importance_lines(analysis: SearchAnalysis) -> list[str]:
    lines, few = [], []
    for found in analysis.importances:
        if not found.shares:
            few.append(f"{found.outcome} ({found.trials})")
            continue
        clear = ", ".join(f"{key} {share:.0%}" for key, share in found.standing_out.items())
        what = f"best quarter of {found.trials} trials by {found.outcome}"
        lines.append(f"{what}: {clear or 'no setting stands out from chance'}")
    if few:
        lines.append(f"not resolved by fewer than {LEAST_TRIALS} trials: {', '.join(few)}")
    return lines


def _default_lines(analysis: SearchAnalysis) -> list[str]:
    """Only where the trials say something: that a setting is not resolved is the ordinary case."""
    by_verdict = {verdict: [found for found in analysis.defaults if found.verdict is verdict] for verdict in Verdict}
    lines = [
        f"{found.key} {text.number(found.value)} could be {text.number(found.default)} again: at most "
        f"{found.at_most:.0%} of the places lost"
        for found in by_verdict[Verdict.NO_LOSS]
    ]
    if lose := by_verdict[Verdict.LOSS]:
        lines.append(f"would lose: {', '.join(f'{found.key} {text.number(found.default)}' for found in lose)}")
    if lines:
        unclear = len(by_verdict[Verdict.NOT_RESOLVED])
        rest = f"; {text.counted(unclear, 'setting')} not resolved" if unclear else ""
        lines.append(f"on average over the trials, each with 95% confidence{rest}")
    return lines


def registration_line(report: StudyReport) -> str:
    made = report.registration
    if made:
        champion = "champion" if made["champion"] else "not the champion"
        beside = f", with {made['encoder']}" if made.get("encoder") else ""
        return f"{made['name']} version {made['version']}, {champion} ({made['reason']}){beside}"
    if report.ledger.chosen is None:
        if report.ledger.front():
            return "nothing yet: the best trial is chosen and measured, and report.html written, when the study ends"
        return "nothing: no trial was trained to its end"
    if report.ledger.chosen.registration is None:
        return "nothing: tracking.register_model is false"
    return "nothing: not yet sent to MLflow" if report.unsent else "nothing: MLflow refused it, see below"


def next_commands(report: StudyReport) -> list[tuple[str, str]]:
    """What to type next, each with what it does. No password of an address is printed."""
    commands = []
    if not report.as_planned:
        again, ledger = text.resume_command(report.folder), report.ledger
        commands.append(("resume", again))
        study = ledger.current_plan.settings.study
        may_shrink = study.sampler.population_size is None  # of which there must be five times as many trials
        if ledger.chosen is None and ledger.front() and ledger.configurations < study.budget.trials and may_shrink:
            commands.append(("no new ones", f"{again} study.budget.trials={ledger.configurations}"))
    uri = without_userinfo(report.uri)
    default = uri == f"sqlite:///{Path(DEFAULT_DATABASE).absolute()}"
    option = "" if default else f" --tracking-uri {shlex.quote(uri)}"
    if made := report.registration:
        version = "" if made["champion"] else f" --version {made['version']}"
        name = shlex.quote(made["name"])
        noun = report.ledger.noun
        commands.append((noun, f"{generate_command(name, noun)}{version}{option}"))
        if not made["champion"]:
            commands.append(("promote", f"python -m aae_ray.promote {name}{version}{option}"))
    if report.best and (report.folder / "best_config.yaml").exists():
        path = text.shell_path(report.folder / "best_config.yaml")
        commands.append(("train again", f"python -m aae_ray.train {path}"))
    return commands + browse(uri, report.links)


def generate_command(name: str, noun: str) -> str:
    """How samples of a registered model are had."""
    return f"python -m aae_ray.generate {name} --count 64 --out samples.{'csv' if noun == 'rows' else 'png'}"


def page_commands(folder: Path, ledger: Ledger, uri: str) -> dict[str, str]:
    """What to type next, by what it does, for a page that is read when its study has ended."""
    path, more, uri = text.shell_path(folder), ledger.configurations + MORE_TRIALS, without_userinfo(uri)
    commands = {"how it stands": f"python -m aae_ray.status {path}"}
    if ledger.chosen is not None and ledger.chosen.registration is not None:
        name = shlex.quote(ledger.chosen.registration["name"])
        option = f" --tracking-uri {shlex.quote(uri)}"
        commands[f"{ledger.noun} from the champion of its name"] = f"{generate_command(name, ledger.noun)}{option}"
    if ledger.chosen is not None:
        commands["train the best trial again"] = f"python -m aae_ray.train {path}/best_config.yaml"
    commands["go on, with more trials"] = f"python -m aae_ray.tune --extend {path} study.budget.trials={more}"
    return commands | {"compare in MLflow": browse(uri, {})[0][1]}


def browse(uri: str, links: Mapping[str, str]) -> list[tuple[str, str]]:
    """How to see a study in MLflow's pages: the server, or the command that starts one for a database, and below it
    the addresses that hold there."""
    if uri.startswith("http"):
        first = ("compare", uri)
    else:
        command = f"mlflow ui --backend-store-uri {shlex.quote(uri)} --port {text.MLFLOW_PORT}"
        first = ("compare", command)
    return [first, *((name, links[name]) for name in LINKS if name in links)]
