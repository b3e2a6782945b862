"""The report of a study as one web page that needs nothing else: no network, no script, no file beside it.

A function of the ledger, of what is said of its search, and of the figures in the study's folder. Numbers are written
as in the tables of the console.
"""

import base64
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from aae_ray.evaluation import drawing
from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting import report_charts, tables, text
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.cards import SAMPLE_SHEET
from aae_ray.reporting.report import LABELLED, SAMPLES, search_sections
from aae_ray.reporting.report_charts import Bar
from aae_ray.search.contract import trial_name
from aae_ray.search.forecast import forecast
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import RETRIES, Reason, State
from aae_ray.search.promotion import promotion_rule
from aae_ray.search.space import record_plan
from aae_ray.search.trial_record import TrialRecord
from aae_ray.secrets import redact
from aae_ray.settings import Settings, flatten

REPORT, OVERVIEW = "report.html", "overview.png"
TEMPLATE = "report.html.jinja"
SHEETS = 12  # trials of the front whose samples are shown
SHEET_PIXELS, BEST_PIXELS = 320, 640  # of a side of a picture
MOST_TRIALS = 100  # rows of the table of all trials, the best ones
MOST_PICTURES = 64  # of the overview
MOST_SHOWN = 300  # letters of a message
PICTURES = {  # of the best trial
    SAMPLE_SHEET: "images decoded from the prior",
    "styles.png": "one style a row, one label a column",
    "reconstructions.png": "held-out images above their reconstructions",
    "codes.png": "codes of held-out images against the prior",
    "nearest.png": "samples, and the training images nearest to them",
}


PICTURES_OF_ROWS = {
    SAMPLE_SHEET: "rows decoded from the prior and held-out rows, by column",
    "reconstructions.png": "values of held-out rows and their reconstructions, by column",
    "codes.png": "codes of held-out rows against the prior",
    "columns.png": "samples and test rows, by column",
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under their heads; numbers are to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()  # columns
    marked: int | None = None  # the row that stands out


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with what it shows."""

    source: str
    caption: str
    title: str = ""


def html_report(ledger: Ledger, analysis: SearchAnalysis | None, folder: Path, commands: Mapping[str, str]) -> str:
    """The page. `folder` is the study's, with its figures, and `commands` are what to type next, by what they do."""
    from jinja2 import Environment, StrictUndefined

    source = files("aae_ray.reporting").joinpath(TEMPLATE).read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(source).render(_content(ledger, analysis, folder, commands))


def _content(
    ledger: Ledger, analysis: SearchAnalysis | None, folder: Path, commands: Mapping[str, str]
) -> dict[str, Any]:
    started, front = ledger.started, ledger.front()
    assert started is not None
    best = ledger.trials[ledger.chosen.number] if ledger.chosen else None
    return {
        "study": started.study_id,
        "outcome": tables.outcome_line(ledger),
        "ended": ledger.end_message,
        "facts": _facts(ledger, analysis, best),
        "notes": [redact(note) for note in ledger.notes] + _diagnostics(ledger),
        "best": best,
        "settings": [(key, text.number(value)) for key, value in best.params.items()] if best else [],
        "meanings": [(text.heading(name), METRICS[name].meaning) for name in ledger.objectives],
        "test": _test(ledger, best),
        "measured": _measured(best),
        "remarks": best.test.remarks if best and best.test else (),
        "champion": champion_rows(ledger),
        "noun": ledger.noun,
        "pictures": _pictures(best, folder, ledger) if best else [],
        "fronts": report_charts.fronts(ledger, best),
        "front": _front(ledger, best),
        "sheets": [sheet for trial in front[:SHEETS] if (sheet := _sheet(ledger, trial, folder))],
        "left_out": max(len(front) - SHEETS, 0),
        "parallel": report_charts.parallel(ledger, best),
        "search": search_sections(analysis)
        if analysis
        else dict.fromkeys(("hypervolume", "importance", "defaults"), []),
        "importances": report_charts.importances(analysis),
        "progress": report_charts.progress(analysis),
        "hours": _hours(ledger),
        "ends": _ends(ledger),
        "failures": _failures(ledger),
        "trials": _trials(ledger, best),
        "data": _data(ledger),
        "plan": _plan(ledger),
        "space": _space(ledger),
        "changed": _changed(ledger),
        "versions": ", ".join(f"{name} {version}" for name, version in started.versions.items()),
        "provenance": _provenance(ledger),
        "commands": commands,
    }


# ------------------------------------------------------------------------------------------------------ what came of it


def _facts(ledger: Ledger, analysis: SearchAnalysis | None, best: TrialRecord | None) -> list[tuple[str, str]]:
    """Label and value of what is asked for first."""
    facts = [("best trial", best.name)] if best else []
    facts += [(text.heading(name), tables.objective_value(ledger, best, name)) for name in ledger.objectives if best]
    facts.append(("front", text.counted(len(ledger.front()), "trial")))
    if analysis and analysis.progress[:-1]:
        facts.append(("hypervolume", f"{analysis.progress[-1].hypervolume:.3f} of 1"))
    facts.append(("time", text.duration(forecast(ledger, ledger.last_time).elapsed)))
    if cost := tables.cost_line(ledger):
        facts.append(("cost", cost))
    return facts


def _diagnostics(ledger: Ledger) -> list[str]:
    diagnostic = tables.front_diagnostic(ledger)
    return tables.trial_diagnostics(ledger) + ([diagnostic.text] if diagnostic else [])


def _test(ledger: Ledger, trial: TrialRecord | None) -> list[tuple[str, str, str]]:
    """What the best trial is worth on the test images, in what a user asks for first: metric, value, what it is."""
    if trial is None or trial.test is None:
        return []
    names = [*(name.replace("val/", "test/") for name in ledger.objectives), *LABELLED, *SAMPLES]
    shown = [name for name in dict.fromkeys(names) if name in trial.test.metrics]
    texts = {name: text.with_floor(name, trial.test.metrics) for name in shown}
    return [(name, texts[name].removeprefix(f"{name} "), METRICS[name].meaning) for name in shown]


def _measured(trial: TrialRecord | None) -> list[tuple[str, str, str]]:
    """All that was measured on the test images."""
    if trial is None or trial.test is None:
        return []
    known = {name: value for name, value in trial.test.metrics.items() if name in METRICS}
    return [
        (name, f"{text.number(value)} {METRICS[name].unit}", METRICS[name].meaning) for name, value in known.items()
    ]


def champion_rows(ledger: Ledger) -> list[tuple[str, str]]:
    """Whether the best trial's decoder is now the champion of its name, by which rule and numbers; none before a trial
    is chosen."""
    chosen, made = ledger.chosen, ledger.promoted
    if chosen is None:
        return []
    if made is None:
        why = "tracking.register_model is false"
        if chosen.registration is not None:
            why = f"MLflow had not registered {chosen.registration['name']} when this page was written"
        return [("champion", f"not decided: {why}")]
    version, encoder = f"version {made.version}", f", with {made.encoder}" if made.encoder else ""
    if made.champion and made.against is not None:
        outcome = f"moved from version {made.against} to {version}"
    elif made.champion:
        outcome = version
    else:
        outcome = "kept" if made.against is None else f"kept at version {made.against}"
    rows = [("registered", f"{made.name} {version}{encoder}"), ("champion", f"{outcome}: {made.reason}")]
    if made.policy is not None and made.against is not None:
        rows.append(("rule", promotion_rule(made.policy, made.rule)))
    if made.difference is not None and made.standard_error is not None:
        seeds = f"{text.counted(made.seeds or 0, 'new seed')} against {made.champion_seeds}"
        rows.append(("difference", f"{made.difference:.4g} ({seeds}); above 0 this one is better"))
        rows.append(("standard error", f"{made.standard_error:.2g} of the difference"))
    return rows


def _front(ledger: Ledger, best: TrialRecord | None) -> Table | None:
    front, keys = ledger.front(), tables.searched_keys(ledger)
    if not front:
        return None
    rows = []
    for trial in front:
        values = tables.values_of(trial, keys)
        objectives = [tables.objective_value(ledger, trial, name) for name in ledger.objectives]
        rows.append([trial.name, *objectives, *(text.number(values[key]) if key in values else "" for key in keys)])
    marked = _place(best, front)
    head = ("trial", *map(text.heading, ledger.objectives), *map(tables.short, keys))
    return Table(head, rows, range(1, len(head)), marked)


def _place(trial: TrialRecord | None, among: Sequence[TrialRecord]) -> int | None:
    return next((index for index, other in enumerate(among) if other is trial), None)


def _ranked(ledger: Ledger) -> list[TrialRecord]:
    """All trials: complete ones by the first objective, then the others as far as they came."""
    first, sign = ledger.objectives[0], METRICS[ledger.objectives[0]].sign

    def order(trial: TrialRecord) -> tuple[bool, int, float]:
        value = sign * trial.metrics[first] if first in trial.metrics else math.inf
        return trial.state is not State.COMPLETE, -trial.epoch, value

    return sorted(ledger.trials, key=order)


def _trials(ledger: Ledger, best: TrialRecord | None) -> Table:
    """All trials, or the best of many."""
    shown = _ranked(ledger)[:MOST_TRIALS]
    rows = [
        [
            trial.name,
            _outcome(trial),
            str(trial.epoch),
            *(f"{trial.metrics[name]:.4f}" if name in trial.metrics else "" for name in ledger.objectives),
            text.duration(trial.worker_time.held),
            text.describe(trial.params),
        ]
        for trial in shown
    ]
    head = ("trial", "outcome", "epochs", *map(text.heading, ledger.objectives), "time", "settings")
    return Table(head, rows, range(2, len(head) - 1), _place(best, shown))


def _outcome(trial: TrialRecord) -> str:
    """How a trial stands, or why it was stopped or failed."""
    if trial.reason is None or trial.reason is Reason.COMPLETED:
        return str(trial.state)
    return f"failed: {trial.reason}" if trial.state is State.FAILED else str(trial.reason)


# ------------------------------------------------------------------------------------------------------------- pictures


def newest(trial: TrialRecord, name: str) -> str | None:
    """The path of a trial's figure of this name, below the study's folder; of several the one of its latest state."""
    return max((path for path in trial.files if PurePath(path).name == name), default=None)


def _pictures(trial: TrialRecord, folder: Path, ledger: Ledger) -> list[Picture]:
    captions = PICTURES_OF_ROWS if ledger.noun == "rows" else PICTURES
    found = [(newest(trial, name), caption) for name, caption in captions.items()]
    pictures = [_picture(folder / path, caption, BEST_PIXELS) for path, caption in found if path]
    return [picture for picture in pictures if picture]


def _sheet(ledger: Ledger, trial: TrialRecord, folder: Path) -> Picture | None:
    """The samples of a trial, with its objectives."""
    path = newest(trial, SAMPLE_SHEET)
    values = ", ".join(tables.objective_value(ledger, trial, name) for name in ledger.objectives)
    return _picture(folder / path, values, SHEET_PIXELS, trial.name) if path else None


def _picture(path: Path, caption: str, side: int, title: str = "") -> Picture | None:
    """A picture of at most so many pixels a side; None where the file is missing or no image."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            smaller = image.convert("RGB")
    except OSError:
        return None
    smaller.thumbnail((side, side))
    smaller.save(buffer, "WEBP", quality=80)
    return Picture(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}", caption, title)


def overview(ledger: Ledger, folder: Path) -> bytes | None:
    """The samples of the trials that have ended, with their objectives, as a PNG; of many the best. None for none."""
    pictures = []
    for trial in _ranked(ledger)[:MOST_PICTURES]:
        path = newest(trial, SAMPLE_SHEET)
        if path is None or not (folder / path).exists():
            continue
        values = ", ".join(f"{trial.metrics[name]:.4f}" for name in ledger.objectives if name in trial.metrics)
        caption = f"{trial.name}, epoch {trial.epoch}\n{_outcome(trial)}\n{values}"
        pictures.append(((folder / path).read_bytes(), caption))
    return drawing.overview(pictures) if pictures else None


# ------------------------------------------------------------------------------------------------------- time, failures


def _hours(ledger: Ledger) -> list[tuple[str, list[Bar]]]:
    """What the workers' time was spent on, and on which trials."""
    of = forecast(ledger, ledger.last_time)
    time, failed = of.worker_time, sum(of.failed.values())
    if not time.held:
        return []

    def bars(parts: Mapping[str, float]) -> list[Bar]:
        shares = {label: seconds / time.held for label, seconds in parts.items()}
        return [Bar(label, shares[label], f"{shares[label]:.0%}, {text.duration(parts[label])}") for label in parts]

    complete = max(time.held - of.stopped_early - failed, 0.0)
    trials = {"complete": complete, "stopped early, paused": of.stopped_early, "failed": failed}
    spent = {"training": time.training, "evaluation": time.evaluation, "waiting": time.waiting}
    total = text.duration(time.held)
    return [(f"what for, of {total} of workers", bars(spent)), ("in trials that were", bars(trials))]


def _ends(ledger: Ledger) -> Table:
    """How trials ended, and how long workers were held for them."""
    counts, seconds = Counter(map(_outcome, ledger.trials)), dict[str, float]()
    for trial in ledger.trials:
        seconds[_outcome(trial)] = seconds.get(_outcome(trial), 0.0) + trial.worker_time.held
    rows = [[outcome, str(count), text.duration(seconds[outcome])] for outcome, count in counts.most_common()]
    return Table(("outcome", "trials", "time of workers"), rows, numbers=(1, 2))


def _failures(ledger: Ledger) -> Table | None:
    """Attempts that failed, by class, with the last message of each and what can be done about it."""
    rows = []
    for kind, failures in sorted(ledger.failures.items(), key=lambda item: (-item[1].count, item[0])):
        if failures.last is not None:
            message = redact(failures.last.message)[:MOST_SHOWN]
            name = trial_name(failures.last.number)
            lost = text.duration(failures.lost_seconds)
            rows.append([str(kind), str(failures.count), lost, f"{name}: {message}", RETRIES[kind].advice])
    heads = ("failure", "attempts", "time of workers lost", "the last one", "what may help")
    return Table(heads, rows, numbers=(1, 2)) if rows else None


# --------------------------------------------------------------------------------------------------------------- set-up


def _data(ledger: Ledger) -> list[tuple[str, str]]:
    assert ledger.started is not None
    data = ledger.started.data
    if data.contents:
        return [("data", data.name), *data.contents.items(), ("digest", data.digest)]
    return [  # of a study by an earlier release
        ("data", data.name),
        ("rows", text.counted(data.shape[0], "number"))
        if data.noun == "rows"
        else ("images", f"{' x '.join(map(str, data.shape))} (channels, height, width)"),
        ("parts", f"{data.train} for training, {data.val} held out, {data.test} for the test"),
        *([("classes", str(data.classes))] if data.classes else []),
        ("digest", data.digest),
    ]


def _plan(ledger: Ledger) -> list[tuple[str, str]]:
    settings = ledger.current_plan.settings
    study, budget = settings.study, [text.counted(settings.study.budget.trials, "trial")]
    if study.budget.wall_clock:
        budget.append(text.duration(study.budget.wall_clock))
    if study.budget.worker_hours:
        budget.append(f"{study.budget.worker_hours:g} worker hours")
    return [
        ("objectives", ", ".join(map(text.heading, ledger.objectives))),
        *([("constraints", ", ".join(study.constraints))] if study.constraints else []),
        ("budget", ", ".join(budget)),
        ("epochs of a trial", str(settings.train.epochs)),
        ("sampler", study.sampler.type),
        ("pruner", study.pruner.type),
        ("best of the front by", study.select),
    ]


def _space(ledger: Ledger) -> Table | None:
    plan = ledger.current_plan
    rows = [[key, text.domain(plan.spec(key))] for key in plan.space]
    return Table(("searched", "from"), rows) if rows else None


def _changed(ledger: Ledger) -> list[tuple[str, str]]:
    """Fixed settings that are not the default's, as they are recorded: without user and password of an address."""
    plan, defaults = ledger.current_plan, flatten(Settings())
    fixed, recorded = flatten(plan.settings), record_plan(plan).settings
    changed = [key for key, value in fixed.items() if key not in plan.space and value != defaults[key]]
    return [(key, _value(recorded[key])) for key in changed]


def _value(value: Any) -> str:
    return ", ".join(map(text.number, value)) if isinstance(value, list | tuple) else text.number(value)


def _provenance(ledger: Ledger) -> list[tuple[str, str]]:
    assert ledger.started is not None
    found = ledger.started.provenance
    names = {
        "mlflow.source.name": "command",
        "mlflow.source.git.commit": "commit",
        "mlflow.source.git.dirty": "uncommitted changes",
    }
    rows = [(name, found[tag]) for tag, name in names.items() if tag in found]
    rows.append(("started", f"{datetime.fromtimestamp(ledger.started.time):%Y-%m-%d %H:%M} on {ledger.started.host}"))
    return rows
