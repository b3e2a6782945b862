"""Studies side by side."""

import io
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from PIL import Image
from rich.console import Console

from aae_ray.cli import run_command
from aae_ray.compare import compare as command
from aae_ray.errors import UserError
from aae_ray.reporting.comparison import Comparison, compare, difference_table, draw, fronts_table, names, study_table
from aae_ray.search import events
from aae_ray.search.hypervolume import dominated_share, references
from aae_ray.search.ledger import Ledger
from aae_ray.search.space import Plan
from aae_ray.settings import Settings
from tests.search.histories import JSD, MSE, History

LATENT = "model.latent_dim"
LONG = "a-study-with-a-name-of-its-own-20261127-191258-"


def studied(name: str, *points: tuple[float, float], **settings: Any) -> History:
    """A study with these values of its two objectives."""
    history = History(study_id=f"{LONG}{name}", **settings)
    for mse, jsd in points:
        history.finish(mse, jsd, data__mean_image_mse=0.07)
    return history


FIRST = studied("f5a8", (0.02, 0.30), (0.03, 0.10), (0.05, 0.40))
SECOND = studied("0b1c", (0.015, 0.20), (0.06, 0.05), optim__reconstruction_lr=3e-4, study__name="other")


def shown(*tables: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in tables:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def of(*histories: History) -> Comparison:
    return compare([each.events for each in histories], [each.ledger for each in histories])


def test_the_joint_front_and_the_hypervolume_are_those_of_the_same_references() -> None:
    found = of(FIRST, SECOND)
    assert found.same_data and found.joint_front == {("A", 1), ("B", 0), ("B", 1)}  # A's first is dominated by B's
    for each, history in zip(found.studies, (FIRST, SECOND), strict=True):
        points = [history.ledger.values(trial) for trial in history.ledger.front()]
        expected = dominated_share(points, references(FIRST.ledger))
        assert each.progress[-1].hypervolume == pytest.approx(expected) and expected > 0


def test_a_study_that_has_measured_nothing_changes_nobodys_hypervolume() -> None:
    alone, beside = of(FIRST, SECOND), of(FIRST, SECOND, studied("77aa"))
    assert [each.progress for each in beside.studies[:2]] == [each.progress for each in alone.studies]
    assert beside.studies[2].progress[-1:] == () or beside.studies[2].progress[-1].hypervolume == 0


def test_only_settings_that_change_what_is_found_are_told() -> None:
    found = of(FIRST, SECOND)
    assert dict(found.differences) == {"optim.reconstruction_lr": ("0.001", "0.0003")}


def test_what_was_searched_is_told_as_in_the_report() -> None:
    numbers = History(Plan(Settings(), {LATENT: IntDistribution(2, 16, log=True)}), study_id="a")
    choices = History(Plan(Settings(), {LATENT: CategoricalDistribution((4, 8))}), study_id="b")
    assert of(numbers, choices).differences[LATENT] == ("int: 2 to 16, log", "categorical: 4, 8")


def test_the_tables_are_whole_at_80_columns() -> None:
    found = of(FIRST, SECOND)
    text = shown(*names(found), study_table(found), fronts_table(found, Console(width=80)), difference_table(found))
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    for part in ("hypervolume", "t0001", "0.0150", f"{MSE} ↓", f"{JSD} ↓", "optim.reconstruction_lr", "0.0003"):
        assert part in text
    assert f"A  {LONG}f5a8\nB  {LONG}0b1c\n" in text


def test_the_figure_shows_both(tmp_path: Path) -> None:
    with Image.open(io.BytesIO(draw(of(FIRST, SECOND)))) as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50
    alone = [studied("a", study__objectives=(MSE,)), studied("b", study__objectives=(MSE,))]
    with Image.open(io.BytesIO(draw(of(*alone)))) as picture:
        assert picture.width < 1000  # without a second objective there is no front to draw


def test_other_data_are_told_and_nothing_is_said_of_a_joint_front() -> None:
    other = studied("2d3e", (0.02, 0.1), data__split_seed=1)
    found = of(FIRST, other)
    assert not found.same_data and found.differences["data.split_seed"] == ("0", "1")
    assert "★" not in shown(fronts_table(found, Console(width=80)))


@pytest.mark.parametrize(("splits", "same"), [(("a", "a"), True), (("a", "b"), False), (("a", ""), True)])
def test_the_same_images_in_other_parts_are_other_data(splits: tuple[str, str], same: bool) -> None:
    """Whatever the settings are, as a source may give its parts; without a record the settings have to do."""
    both = [
        [
            event.model_copy(update={"data": event.data.model_copy(update={"split": split})})
            if isinstance(event, events.StudyStarted)
            else event
            for event in history.events
        ]
        for history, split in zip((FIRST, SECOND), splits, strict=True)
    ]
    assert compare(both, [Ledger.replay(each) for each in both]).same_data is same


@pytest.mark.parametrize(
    ("histories", "said"),
    [
        ([FIRST], "give 2 to 10 studies"),
        ([FIRST, FIRST], "given twice"),
        ([FIRST, studied("x", study__objectives=(MSE,))], "same objectives"),
    ],
)
def test_what_does_not_compare_is_refused(histories: list[History], said: str) -> None:
    with pytest.raises(UserError, match=said):
        of(*histories)


def test_the_command_finds_studies_by_name_and_writes_the_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, history in (("first-20261127-191258-f5a8", FIRST), ("second-20261127-191258-0b1c", SECOND)):
        history.write(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", "first", "second", "--out", "both.png"])
    with pytest.raises(SystemExit, match="0"):
        run_command(command, "compare")
    out = capsys.readouterr().out
    assert "Settings that differ" in out and "both.png" in out
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.width > 1000
    for refused in ("none/both.png", f"{'x' * 300}.png"):
        monkeypatch.setattr("sys.argv", ["compare", "first", "second", "--out", refused])
        with pytest.raises(SystemExit, match="2"):
            run_command(command, "compare")
        assert not capsys.readouterr().out
