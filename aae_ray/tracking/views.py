"""A study in MLflow's own web pages: views saved with its experiment, and the addresses that open them.

Each address works in a browser that has never seen the server, as it says itself that the pages are those for model
training (`workflowType`), which trials are meant, and how they are sorted and drawn. A saved view is a tag of the
experiment; its format is that of the pages of MLflow 3.17 and 3.18, which has no call for it. A server whose pages do
not know such a view says so and shows all runs.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any
from urllib.parse import quote, urlencode

from aae_ray.evaluation.metrics import METRICS
from aae_ray.reporting.text import MLFLOW_PORT
from aae_ray.search.outcomes import State
from aae_ray.search.space import Plan
from aae_ray.secrets import without_userinfo

SAVED = "mlflow.sharedViewState."  # and a view's key: the tag that holds it
TABLE, CHARTS = "TABLE", "CHART"
SECTION = "study"  # the one section of a page of charts
TRAINING = {"workflowType": "machine_learning"}  # else a new browser opens the pages for chat models
UNFINISHED = "unfinished"  # the outcome of a trial that ended with its study
OUTCOME, FRONT, REASON, MESSAGE = (f"tags.`aae.{name}`" for name in ("outcome", "front", "stop_reason", "message"))
DURATION = "attributes.`Duration`"
WIDTH, WIDTHS = 180, {OUTCOME: 110, FRONT: 90, MESSAGE: 400, DURATION: 90}  # pixels of a column
IMAGE_SERIES = "samples"  # of pictures by epoch
SAMPLES = {"type": "IMAGE", "imageKeys": [IMAGE_SERIES], "runsCountToCompare": 20, "step": 0, "showRunParams": False}
CARD_HEIGHT = 440  # pixels of a chart


@dataclass(frozen=True)
class View:
    """A view of a study's trials, saved with the experiment."""

    key: str  # of its address, unique among all studies
    title: str  # in the menu of views
    mode: str  # TABLE or CHARTS
    state: dict[str, Any]

    def tag(self, time: float) -> tuple[str, str]:
        """The experiment's tag that holds it, made at this time in seconds."""
        packed = base64.b64encode(zlib.compress(json.dumps(self.state).encode())).decode()
        value = {"name": self.title, "createdAt": int(time * 1000), "state": f"deflate;{packed}"}
        return SAVED + self.key, json.dumps(value)


def views(study_id: str, plan: Plan) -> dict[str, View]:
    """The views of a study, by name: the leaderboard, the front, parallel coordinates, samples by epoch, and what did
    not complete."""
    objectives, searched = list(plan.settings.study.objectives), list(plan.space)
    values = [_column("metrics", name) for name in objectives]
    settings = [_column("params", key) for key in searched]
    trials = f"tags.`aae.study_id` = {quoted(study_id)} and tags.`aae.run_kind` = 'trial'"
    complete = _outcome("=", State.COMPLETE)
    not_one_of = " and ".join(_outcome("!=", outcome) for outcome in (State.COMPLETE, State.PAUSED, State.RUNNING))
    better = {"orderByKey": values[0], "orderByAsc": METRICS[objectives[0]].direction != "max"}

    def table(filter: str, columns: Sequence[str]) -> dict[str, Any]:
        widths = {column: WIDTHS.get(column, WIDTH) for column in columns}
        order = {"selectedColumns": list(columns), "columnOrder": list(columns), "columnWidths": widths}
        return {"searchFilter": filter, **better, **order}

    def charts(filter: str, cards: Sequence[dict[str, Any]]) -> dict[str, Any]:
        section = {"uuid": SECTION, "name": study_id, "display": True, "columns": 1 if len(cards) == 1 else 2}
        placed = [{"uuid": f"card-{index}", "metricSectionId": SECTION, **card} for index, card in enumerate(cards)]
        return {
            **table(filter, [*values, *settings]),
            "compareRunCharts": placed,
            "compareRunSections": [{**section, "cardHeight": CARD_HEIGHT, "isReordered": True}],
            "isAccordionReordered": True,
        }

    found = {
        "leaderboard": (TABLE, table(trials, [*values, OUTCOME, FRONT, *settings, DURATION])),
        "front": (CHARTS, charts(f"{trials} and {complete}", _fronts(objectives))),
        "parallel coordinates": (CHARTS, charts(trials, [_parallel(searched, objectives)])),
        "samples": (CHARTS, charts(trials, [SAMPLES])),
        "failures": (TABLE, table(f"{trials} and {not_one_of}", [OUTCOME, REASON, MESSAGE, *values, *settings])),
    }
    common = {"startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs"}
    common |= {"runsHiddenMode": "SHOW_ALL"}
    stem = hashlib.sha256(study_id.encode()).hexdigest()[:10]
    return {
        name: View(f"aae-{stem}-{name.replace(' ', '-')}", f"{name} of {study_id}", mode, common | state)
        for name, (mode, state) in found.items()
    }


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _outcome(comparison: str, outcome: str) -> str:
    return f"tags.`aae.outcome` {comparison} '{outcome}'"


def quoted(text: str) -> str:
    """A value in a search of MLflow's."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _fronts(objectives: Sequence[str]) -> list[dict[str, Any]]:
    """A scatter of each pair of objectives; bars for a single one."""
    if len(objectives) == 1:
        return [{"type": "BAR", "metricKey": objectives[0], "runsCountToCompare": 20}]
    return [
        {
            "type": "SCATTER",
            "xaxis": {"key": first, "type": "METRIC"},
            "yaxis": {"key": second, "type": "METRIC"},
            "runsCountToCompare": 100,
        }
        for first, second in combinations(objectives, 2)
    ]


def _parallel(searched: Sequence[str], objectives: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "selectedParams": list(searched),
        "selectedMetrics": list(objectives),
        "showAllRuns": True,
    }


# ---------------------------------------------------------------------------------------------------------- addresses


def server_of(uri: str) -> str | None:
    """Where MLflow's pages are: the server itself, or for a database where `mlflow ui` puts them; without user and
    password. None where that is not known."""
    if uri.startswith("databricks"):
        return None
    return without_userinfo(uri).rstrip("/") if uri.startswith("http") else f"http://localhost:{MLFLOW_PORT}"


@dataclass(frozen=True)
class Pages:
    """The addresses of one experiment's pages at a server."""

    server: str
    experiment_id: str

    def view(self, view: View) -> str:
        return self._runs("", viewStateShareKey=view.key, compareRunsMode=view.mode)

    def run(self, run_id: str) -> str:
        return self._runs(f"/{run_id}")

    def _runs(self, path: str, **options: str) -> str:
        return f"{self.server}/#/experiments/{self.experiment_id}/runs{path}?{urlencode(TRAINING | options)}"

    def model(self, name: str, version: int) -> str:
        return f"{self.server}/#/models/{quote(name, safe='')}/versions/{version}?{urlencode(TRAINING)}"
