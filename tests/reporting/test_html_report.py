"""The report as a page: all of it in one file, from the ledger and the figures on the disk alone."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from PIL import Image

from aae_ray.reporting import svg
from aae_ray.reporting.analysis import SearchAnalysis
from aae_ray.reporting.html_report import champion_rows, html_report, overview
from aae_ray.reporting.report import page_commands
from aae_ray.search import events
from aae_ray.search.outcomes import FailureClass, Reason
from aae_ray.search.space import Plan
from aae_ray.settings import Settings, replace
from tests.search.histories import History

SPACE = {
    "model.latent_dim": IntDistribution(2, 16, log=True),
    "model.prior": CategoricalDistribution(("gaussian", "mixture")),
    "model.prior_components": IntDistribution(2, 20),
    "optim.lr_decay": FloatDistribution(0.05, 1.0),
}
CONDITIONS = {"model.prior_components": {"model.prior": ("mixture",)}}
URI = "https://ann:secret@host/mlflow"
LEAST_MARKS = 3  # trials on a chart


def params(size: int, prior: str = "gaussian", decay: float = 0.5) -> dict[str, object]:
    components = {"model.prior_components": 10} if prior == "mixture" else {}
    return {"model.latent_dim": size, "model.prior": prior, **components, "optim.lr_decay": decay}


def a_study(folder: Path, *, ended: bool = True, **settings: object) -> History:
    """Three complete trials, of which two are on the front, one that collapsed, one that broke, one that waits."""
    given = {key.replace("__", "."): value for key, value in settings.items()}
    values = {"tracking.uri": URI, "study.budget.trials": 6} | given
    history = History(Plan(replace(Settings(), values), SPACE, (), CONDITIONS))
    history.finish(0.1, 0.3, params(8))
    history.finish(0.2, 0.1, params(4, "mixture"))
    history.finish(0.3, 0.4, params(2))
    history.end(history.begin(params(16)), Reason.COLLAPSED, "its codes collapsed")
    history.fail(history.begin(params(12)), FailureClass.BUG, "<script>alert('a worker broke')</script>")
    number = history.begin(params(6))
    history.report(number, 9, 0.5, 0.5)
    history.pause(number)
    history.end(number, Reason.PAUSED)
    for trial in (0, 1):
        draw_samples(history, folder, trial)
    metrics = {"test/reconstruction_mse": 0.11, "test/jsd_nats": 0.31, "test/jsd_nats_floor": -0.01}
    history.add(events.Measured(number=0, metrics=metrics, remarks=("a remark",), tags={}))
    if ended:
        history.add(events.Chosen(number=0, registration={"name": "my decoder"}))
        history.add(events.StudyEnded(message="its time is over"))
    return history


def draw_samples(history: History, folder: Path, number: int) -> None:
    path = Path("figures", f"t{number:04}", "epoch_00009", "samples.png")
    (folder / path).parent.mkdir(parents=True)
    Image.effect_noise((528, 528), 60).save(folder / path)
    history.add(events.FileWritten(number=number, path=str(path), folder="figures"))


def page_of(history: History, folder: Path) -> str:
    best = history.ledger.trials[history.ledger.chosen.number] if history.ledger.chosen else None
    analysis = SearchAnalysis.of(history.ledger, history.events, best)
    return html_report(history.ledger, analysis, folder, page_commands(folder, history.ledger, URI))


class References(HTMLParser):
    """What a page loads, and the elements that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.elements: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "xlink:href")]


def test_the_page_needs_nothing_else_and_is_small(tmp_path: Path) -> None:
    page = page_of(a_study(tmp_path), tmp_path)
    references = References(page)
    assert references.loaded and all(source.startswith("data:image/") for source in references.loaded)
    assert references.elements.isdisjoint({"script", "link", "iframe", "object"})
    assert "@import" not in page and "url(" not in page
    assert len(page.encode()) < 3_000_000


def test_the_page_says_what_came_of_the_study(tmp_path: Path) -> None:
    page = page_of(a_study(tmp_path), tmp_path)
    for part in (
        "6 trials in", "its time is over", "Best trial: t0000", "0.31 (floor -0.01)", "a remark", "2 to 16, log",
        "2 to 20; where model.prior is mixture", "code_collapse", "a worker broke", "gaussian, mixture",
        "python -m aae_ray.generate &#39;my decoder&#39;", "study.budget.trials=16", "--tracking-uri https://host/mlflow",
    ):  # fmt: skip
        assert part in page, part
    assert "secret" not in page and "<script>" not in page
    assert page.count('class="dot best"') == 1 and page.count('class="trial ') >= LEAST_MARKS


def test_the_page_says_what_the_data_were(tmp_path: Path) -> None:
    history = a_study(tmp_path)
    assert history.ledger.started is not None
    contents = {"classes": "2 classes: ant 3, bee & co 4", "repeated": "2 images are there twice"}
    data = history.ledger.started.data.model_copy(update={"contents": contents})
    history.ledger.started = history.ledger.started.model_copy(update={"data": data})
    page = page_of(history, tmp_path)
    assert "2 classes: ant 3, bee &amp; co 4" in page and "2 images are there twice" in page


def test_the_page_says_whether_the_champion_moved_and_by_which_numbers(tmp_path: Path) -> None:
    history = a_study(tmp_path)
    assert dict(champion_rows(history.ledger))["champion"].startswith("not decided: MLflow had not registered my deco")
    made = {"name": "my decoder", "version": 4, "encoder": "my encoder", "policy": "evidence", "rule": "knee"}
    numbers = {"difference": 0.0321, "standard_error": 0.004, "seeds": 5, "champion_seeds": 2}

    def told(**decided: object) -> dict[str, str]:
        history.add(events.Promoted.model_validate({**made, **decided}))
        return dict(champion_rows(history.ledger))

    moved = told(champion=True, reason="better than version 3 by so much", against=3, **numbers)
    assert moved["registered"] == "my decoder version 4, with my encoder"
    assert moved["champion"] == "moved from version 3 to version 4: better than version 3 by so much"
    assert moved["difference"] == "0.0321 (5 new seeds against 2); above 0 this one is better"
    assert moved["standard error"] == "0.004 of the difference"
    assert "study.select=knee on new seeds, by more than 2 standard errors of the difference" in moved["rule"]
    page = page_of(history, tmp_path)
    assert all(part in page for part in ("moved from version 3 to version 4", "0.0321 (5 new seeds against 2)"))
    kept = told(champion=False, reason="not better", against=3, **numbers | {"difference": -0.01})
    assert kept["champion"] == "kept at version 3: not better" and kept["difference"].startswith("-0.01 ")
    first = told(champion=True, reason="the first of its name")
    assert first["champion"] == "version 4: the first of its name" and first.keys() == {"registered", "champion"}
    assert "better by study.select=knee" in told(champion=False, reason="x", against=3, policy="better")["rule"]
    history = a_study(tmp_path / "alone", ended=False)
    assert champion_rows(history.ledger) == []
    history.add(events.Chosen(number=0, registration=None))
    assert champion_rows(history.ledger) == [("champion", "not decided: tracking.register_model is false")]


def test_a_figure_that_is_gone_and_a_study_without_any_trial_cost_no_report(tmp_path: Path) -> None:
    history = a_study(tmp_path)
    for path in tmp_path.rglob("samples.png"):
        path.write_bytes(b"no image")
    assert "Best trial: t0000" in page_of(history, tmp_path)
    history = History()
    history.add(events.StudyEnded())
    assert "0 trials" in page_of(history, tmp_path) and overview(history.ledger, tmp_path) is None


def test_a_study_of_many_trials_has_a_small_page_as_well(tmp_path: Path) -> None:
    history = History(Plan(replace(Settings(), {"study.budget.trials": 200}), SPACE, (), CONDITIONS))
    for number in range(200):
        history.finish(0.001 * number, 0.4 - 0.001 * number, params(2 + number % 14))
        if number < 15:
            draw_samples(history, tmp_path, number)
    page = html_report(history.ledger, None, tmp_path, {})
    assert len(page.encode()) < 3_000_000 and page.count("<img") <= 12


def test_the_overview_shows_the_newest_samples_of_every_trial_that_has_some(tmp_path: Path) -> None:
    history = a_study(tmp_path)
    png = overview(history.ledger, tmp_path)
    assert png is not None and png == overview(history.ledger, tmp_path)
    with Image.open(io.BytesIO(png)) as image:
        assert image.width > image.height > 200  # two beside each other


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (svg.Axis("x", 0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (svg.Axis("x", 1, 3, whole=True), ["1", "2", "3"]),
        (svg.Axis("x", 1e-4, 1e-2, log=True), ["0.0001", "0.01"]),
        (svg.Axis("x", -0.05, 0.05), ["-0.04", "-0.02", "0.00", "0.02", "0.04"]),
        (svg.Axis("x", 0, 12500), ["0", "2500", "5000", "7500", "10000", "12500"]),
        (svg.Axis("x", choices=("a", "b")), ["a", "b"]),
        (svg.Axis("x", 3.0, 3.0), ["3"]),
    ],
)
def test_an_axis_is_marked_at_round_numbers(axis: svg.Axis, labels: list[str]) -> None:
    assert [label for _, label in axis.ticks()] == labels
    assert all(-1e-9 <= at <= 1 + 1e-9 for at, _ in axis.ticks())


def test_a_chart_escapes_what_it_is_given_and_interrupts_a_line_where_a_value_is_missing() -> None:
    axes = [svg.Axis("a<b"), svg.Axis("b"), svg.Axis("c"), svg.Axis("d")]
    chart = svg.parallel([("<&>", "best", [0.0, None, 0.5, 1.0])], axes)
    assert "a&lt;b" in chart and "&lt;&amp;&gt;" in chart
    (path,) = re.findall(r'd="([^"]*)"', chart)
    assert re.sub(r"[\d. ]", "", path) == "MML"
