"""What a registered version is made again from, and when it counts as reproduced."""

import math
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aae_ray.datasets.dataset import Dataset, split_digest
from aae_ray.errors import UserError
from aae_ray.reading import Entry
from aae_ray.reporting.report import StudyReport
from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass
from aae_ray.search.space import SHIPPED, Plan, read_plan
from aae_ray.settings import Settings, replace
from aae_ray.study.reproduction import (
    Compared,
    Recorded,
    Reproduction,
    compared,
    differences,
    read,
    reproduce,
    settings_of,
)
from aae_ray.tracking.mapping import trial_params
from aae_ray.tracking.provenance import DEVICE, provenance
from tests.search.histories import JSD, MSE, History

OBJECTIVES = {"study.objectives": "val/reconstruction_mse,val/jsd_nats"}


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_settings_are_those_that_a_run_was_recorded_with(name: str) -> None:
    settings = replace(read_plan(name).settings, {"data.labels": None, "data.path": None, "optim.lr_milestones": ()})
    params = {key: str(value) for key, value in trial_params(settings).items()}  # as MLflow gives them back
    again = settings_of(params | OBJECTIVES, "a version")
    assert trial_params(again) == trial_params(settings) and again.study.objectives == (MSE, JSD)


def test_lists_numbers_and_truth_values_come_back_from_their_texts() -> None:
    values: dict[str, Any] = {
        "optim.lr_milestones": (0.5, 0.75),
        "model.hidden": (256,),
        "model.discriminator_spectral_norm": True,
        "task": "clustering",
        "model.clusters": 3,
        "model.label_prior": (0.5, 0.3, 0.2),
        "optim.reconstruction_lr": 1 / 3,
    }
    settings = replace(Settings(), values)
    params = {key: str(value) for key, value in trial_params(settings).items()}
    assert trial_params(settings_of(params, "a version")) == trial_params(settings)


def found(*metrics: Compared, differs: tuple[str, ...] = (), spread: float | None = None) -> Reproduction:
    recorded = Recorded(
        "aae-digits-decoder", "3", settings_of(OBJECTIVES, "x"), "d", {}, {}, {} if spread is None else {MSE: spread}
    )
    report = StudyReport(Path("runs"), Ledger(), "", None, 0, [], None)
    return Reproduction(recorded, dict.fromkeys(differs, ("a", "b")), metrics, report)


SAME = Compared("val/kl_nats", math.nan, math.nan, None)


def test_on_the_same_processor_nothing_may_differ() -> None:
    assert found(Compared(MSE, 0.02, 0.02, None), SAME).holds
    off = found(Compared(MSE, 0.02, math.nextafter(0.02, 1), 0.01), SAME)
    assert not off.holds and "same versions and processor" in off.verdict
    assert not found().holds and "not reproduced: " in found().verdict  # nothing to compare proves nothing


def test_half_a_training_is_compared_by_nothing() -> None:
    """Ctrl-C before the first suggestion, and a trial that failed under way, leave no metric that counts."""
    recorded = Recorded("aae-digits-decoder", "3", settings_of(OBJECTIVES, "x"), "d", {MSE: 0.02, JSD: 0.1}, {}, {})

    def metrics_of(history: History) -> list[str]:
        report = StudyReport(Path("runs"), history.ledger, "", None, 0, [], None)
        return [each.name for each in compared(recorded, report)]

    early, failed, whole = History(), History(), History()
    early.stop()
    failed.report(failed.begin(), 1, 0.02)
    failed.fail(0, FailureClass.BUG)
    failed.add(events.StudyEnded())
    whole.finish(0.02, 0.1)
    whole.add(events.Chosen(number=0, registration=None))
    assert metrics_of(whole) == []  # not at its end
    whole.add(events.StudyEnded())
    assert [metrics_of(each) for each in (early, failed, whole)] == [[], [], [MSE, JSD]]


def test_elsewhere_the_objectives_must_be_within_what_seeds_give() -> None:
    elsewhere = ("machine.processor",)
    near, far = Compared(MSE, 0.020, 0.021, 0.001), Compared(MSE, 0.020, 0.025, 0.001)
    assert found(near, differs=elsewhere, spread=0.001).holds
    assert not found(far, differs=elsewhere, spread=0.001).holds
    unknown = found(changed(near, spread=None), differs=elsewhere)
    assert not unknown.holds and "confirm it" in unknown.verdict
    assert found(near, differs=("version.aae-ray",), spread=0.001).holds is False  # our own version is no excuse


def test_a_gpu_need_not_give_the_same_digits() -> None:
    """Its sums have no fixed order: there the objectives are held against what seeds give, as on another machine."""
    near, far = Compared(MSE, 0.020, 0.021, 0.001), Compared(MSE, 0.020, 0.025, 0.001)
    gpu = settings_of(OBJECTIVES | {"study.resources_per_worker": "CPU=1,GPU=0.5"}, "x")
    assert gpu.device == "cuda" and gpu.study.resources_per_worker == {"CPU": 1, "GPU": 0.5}

    def there(metric: Compared) -> Reproduction:
        of = found(metric, spread=0.001)
        return changed(of, recorded=changed(of.recorded, settings=gpu))

    assert not found(near, spread=0.001).holds and there(near).holds and "on a GPU" in there(near).verdict
    assert not there(far).holds
    assert replace(gpu, {"train.device": "cpu"}).device == "cpu"  # kept from the GPU that it has


def test_another_split_of_the_same_images_is_not_trained_on(
    digits: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(plan: Plan, console: Any, **options: Any) -> Any:
        raise RuntimeError(plan.settings.study.name)

    monkeypatch.setattr("aae_ray.study.reproduction.start_study", start)
    settings = settings_of(OBJECTIVES | {"data.cache": str(cache)}, "x")
    recorded = changed(found().recorded, settings=settings, data_digest=digits.digest)
    for split in ("", split_digest(digits)):
        with pytest.raises(RuntimeError, match="reproduction"):
            reproduce(changed(recorded, split=split), "sqlite:///x.db", Console())
    with pytest.raises(UserError, match="version 3 was trained on another split of data.name digits"):
        reproduce(changed(recorded, split="another"), "sqlite:///x.db", Console())


def test_data_that_lie_elsewhere_by_now_are_named(digits: Dataset, cache: Path, tmp_path: Path) -> None:
    params = OBJECTIVES | {"data.name": "own", "data.path": "/gone/own.npy", "data.cache": str(cache)}
    recorded = changed(found().recorded, settings=settings_of(params, "x"), data_digest=digits.digest)
    with pytest.raises(UserError, match=r"/gone/own.npy does not exist.* lie elsewhere by now, give data.path=\.\.\."):
        reproduce(recorded, "sqlite:///x.db", Console())
    moved = settings_of(params, "x", {"data.path": Entry(str(tmp_path), "command line")})
    assert moved.data.path == str(tmp_path) and moved.data.name == "own"


def test_a_model_is_trained_as_it_was_wherever_its_data_lie(database: str) -> None:
    with pytest.raises(UserError, match="train.epochs: a model is trained as it was; give data.path, data.test_path,"):
        read("aae", database, ["train.epochs=3", "data.path=here"])


@pytest.mark.parametrize("reference", ["aae@", "aae/", "@champion", "/3", "a/b/"])
def test_half_a_reference_is_not_the_champion(reference: str, database: str) -> None:
    with pytest.raises(UserError, match="lacks .*; give NAME, NAME@ALIAS or NAME/VERSION"):
        read(reference, database)


def test_versions_and_processor_are_compared_with_those_here() -> None:
    here, recorded = dict(provenance()), found().recorded
    assert here["machine.processor"] and differences(changed(recorded, provenance=here)) == {}
    other = differences(changed(recorded, provenance=here | {"version.torch": "1.0", DEVICE: "cuda"}))
    assert other == {"version.torch": ("1.0", here["version.torch"]), DEVICE: ("cuda", "cpu")}
    assert differences(recorded)["machine.processor"][0] == "not recorded"


@pytest.mark.parametrize("reference", ["none", "none@champion", "none/3"])
def test_a_model_that_is_not_there_is_a_sentence(reference: str, database: str) -> None:
    with pytest.raises(UserError, match="there is no registered model 'none'"):
        read(reference, database)
