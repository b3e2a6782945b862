"""More seeds go where they can change the verdict, and objectives are means over them."""

import math
import random
from pathlib import Path

import pytest

from aae_ray.errors import SettingsError
from aae_ray.search import events
from aae_ray.search.conductor import Conductor, NoSuggestion, Pause, Stop
from aae_ray.search.contract import Failure, Report, Suggestion
from aae_ray.search.journal import Journal
from aae_ray.search.ledger import Ledger
from aae_ray.search.outcomes import FailureClass, Reason, RungVerdict, State
from aae_ray.search.racing import Seeds, deviations, next_seed
from aae_ray.search.space import read_plan, record_plan
from tests.search.test_conductor import asked, begin, outcome, plan_of, resume

MSE, JSD, MEAN = "val/reconstruction_mse", "val/jsd_nats", "val/mean_image_mse"


def test_the_noise_of_seeds_is_pooled_over_configurations() -> None:
    assert deviations([Seeds(0, ((1.0,),)), Seeds(1, ((2.0,),))]) is None
    several = [Seeds(0, ((1.0,), (3.0,))), Seeds(1, ((5.0,), (5.0,), (8.0,))), Seeds(2, ((0.0,),))]
    assert deviations(several) == pytest.approx((math.sqrt((2 + 6) / 3),))


def test_before_any_noise_is_known_the_front_is_open() -> None:
    front = [Seeds(0, ((1.0, 3.0),)), Seeds(1, ((2.0, 2.0),)), Seeds(2, ((3.0, 3.0),))]
    assert next_seed(front, 3) == 0
    assert next_seed([Seeds(0, ((1.0, 3.0),), under_way=1), *front[1:]], 3) == 1
    assert next_seed([Seeds(0, ((1.0, 3.0),), under_way=2), Seeds(1, ((2.0, 2.0),), under_way=2), front[2]], 3) is None


def test_a_configuration_within_the_noise_of_the_front_gets_another_seed_and_one_far_behind_none() -> None:
    best = Seeds(0, ((1.0,), (1.2,), (0.8,)))  # a standard deviation of 0.2
    near, far = Seeds(1, ((1.15,),)), Seeds(2, ((2.0,),))
    assert next_seed([best, near, far], 3) == 1
    assert next_seed([best, far], 3) is None


def worth(suggestion: Suggestion, noise: float) -> dict[str, float]:
    """A configuration's worth is in its learning rate; a seed adds luck."""
    luck = random.Random(repr(sorted(suggestion.params.items())))
    rate = math.log10(suggestion.params["optim.reconstruction_lr"])
    return {
        "epoch": 27.0,
        MSE: 0.05 + 0.01 * abs(rate + 3) + noise * luck.random(),
        JSD: 0.3 + 0.1 * abs(rate + 3) + noise * luck.random(),
        MEAN: 0.5,
    }


def run(conductor: Conductor, noise: float) -> None:
    while isinstance(suggestion := asked(conductor), Suggestion):
        conductor.started(suggestion.number)
        conductor.reported(
            Report(
                suggestion.number, 27, (worth(suggestion, noise),), finished=True, checkpoint=f"{suggestion.name}/27"
            )
        )
    assert suggestion is NoSuggestion.DONE


def test_every_configuration_of_the_front_ends_with_all_its_seeds(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__seeds_per_trial=3, study__budget__trials=12))
    run(conductor, 0.02)
    ledger = conductor.ledger
    assert ledger.configurations == 12 and ledger.ended == 12 and len(ledger.trials) > 12
    assert all(len(ledger.seeds(trial).values) == 3 for trial in ledger.front())
    assert any(len(ledger.seeds(trial).values) == 1 for trial in ledger.complete())  # racing: not everybody
    for trial in ledger.front():
        assert trial.replicate_of is None
        seeds = [trial, *(ledger.trials[number] for number in trial.replicates)]
        assert [each.params.get("seed", 0) for each in seeds] == [0, 1, 2]
        assert ledger.values(trial)[0] == pytest.approx(sum(each.metrics[MSE] for each in seeds) / 3)
        errors = ledger.standard_errors(trial)
        mean = ledger.judged(trial)[MSE]
        spread = math.sqrt(sum((each.metrics[MSE] - mean) ** 2 for each in seeds) / 2)
        assert errors[MSE] == pytest.approx(spread / math.sqrt(3)) and ledger.judged(trial)[MEAN] == 0.5
    again = Ledger.replay(conductor.journal.history)
    assert outcome(again) == outcome(ledger) and [t.number for t in again.front()] == [t.number for t in ledger.front()]


def test_with_little_noise_few_seeds_are_spent(tmp_path: Path) -> None:
    spent = []
    for name, noise in (("quiet", 1e-6), ("loud", 0.05)):
        (tmp_path / name).mkdir()
        conductor = begin(tmp_path / name, plan_of(study__seeds_per_trial=3, study__budget__trials=12))
        run(conductor, noise)
        spent.append(len(conductor.ledger.trials) - 12)
    assert spent[0] < spent[1]


def test_a_seed_that_fails_counts_as_the_worst(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__seeds_per_trial=2, study__budget__trials=2, study__pruner__type="none"))
    configurations = []
    for number in (0, 1):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion) and "seed" not in suggestion.params
        configurations.append(worth(suggestion, 0.0))
        conductor.started(number)
        conductor.reported(Report(number, 27, (configurations[-1],), finished=True, checkpoint=f"t{number}/27"))
    second = conductor.suggest()
    assert isinstance(second, Suggestion) and second.params["seed"] == 1
    first = conductor.ledger.trials[2].replicate_of
    assert first is not None
    conductor.started(2)
    conductor.failed(Failure(2, FailureClass.DIVERGED, "nan"))
    assert conductor.ledger.trials[2].reason is Reason.DIVERGED
    alone = configurations[first]
    expected = [(alone[MSE] + 0.5) / 2, (alone[JSD] + math.log(2)) / 2]
    assert conductor.ledger.values(conductor.ledger.trials[first]) == pytest.approx(expected)


def test_a_seed_that_the_machine_has_lost_says_nothing(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__seeds_per_trial=2, study__budget__trials=2, study__pruner__type="none"))
    for number in (0, 1):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion)
        conductor.started(number)
        history = (worth(suggestion, 0.0),)
        conductor.reported(Report(number, 27, history, finished=True, checkpoint=f"t{number}/27"))
    conductor.suggest()
    first = conductor.ledger.trials[conductor.ledger.trials[2].replicate_of or 0]
    before = conductor.ledger.values(first)
    conductor.started(2)
    for _ in range(3):
        conductor.failed(Failure(2, FailureClass.NOT_SAVED, "the disk is full"))
        if conductor.ledger.trials[2].open:
            conductor.suggest()
            conductor.started(2)
    assert conductor.ledger.trials[2].reason is Reason.NOT_SAVED and conductor.ledger.values(first) == before


def test_seeds_of_old_configurations_keep_their_plan(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__budget__trials=2, study__pruner__type="none"))
    run(conductor, 0.02)
    conductor.record(events.StudyEnded())
    conductor.journal.close()
    journal = Journal.open(tmp_path)
    ledger = Ledger.replay(journal.history)
    longer = plan_of(study__budget__trials=2, study__pruner__type="none", study__seeds_per_trial=2, train__epochs=81)
    for event in journal.append(events.StudyResumed(plan=record_plan(longer), host="h", pid=2)):
        ledger.apply(event)
    suggestion = Conductor(journal, ledger, 1).suggest()
    assert isinstance(suggestion, Suggestion) and suggestion.settings["train.epochs"] == 27
    assert ledger.trials[2].replicate_of is not None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["study.seeds_per_trial=3", "space.seed={type: int, low: 0, high: 9}"], "remove one of them"),
        (["study.seeds_per_trial=3", "seed=4294967295"], "the largest is 4294967293"),
        (["study.seeds_per_trial=0"], "study.seeds_per_trial"),
    ],
)
def test_seeds_that_there_are_none_of_are_told_before_the_start(changes: list[str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        read_plan("digits", changes)


def test_a_study_with_seeds_goes_on_as_the_unbroken_one(tmp_path: Path) -> None:
    plan = plan_of(study__seeds_per_trial=3, study__budget__trials=8)
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = begin(tmp_path / "whole", plan)
    run(whole, 0.02)
    conductor = begin(tmp_path / "broken", plan)
    for _ in range(6):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion)
        conductor.started(suggestion.number)
        conductor.journal.close()
        conductor = resume(tmp_path / "broken")
        again = conductor.suggest()
        assert isinstance(again, Suggestion) and again.params == suggestion.params
        conductor.started(again.number)
        report = Report(again.number, 27, (worth(again, 0.02),), finished=True, checkpoint=f"{again.name}/27")
        conductor.reported(report)
    run(conductor, 0.02)
    assert [t.params for t in conductor.ledger.trials] == [t.params for t in whole.ledger.trials]
    assert [t.number for t in conductor.ledger.front()] == [t.number for t in whole.ledger.front()]


def test_replicates_are_not_held_against_others_at_a_rung(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(study__seeds_per_trial=2, study__budget__trials=1))
    conductor.record(
        events.Suggested(number=0, params={"optim.reconstruction_lr": 1e-3, "model.latent_dim": 2}),
        events.Suggested(
            number=1, params={"optim.reconstruction_lr": 1e-3, "model.latent_dim": 2, "seed": 1}, replicate_of=0
        ),
    )
    assert conductor.ledger.trials[0].replicates == [1]
    conductor.started(1)
    conductor.reported(Report(1, 3, ({"epoch": 3.0, MSE: 9.0, MEAN: 0.5},), checkpoint="t1/3"))
    assert conductor.ledger.trials[1].state is State.RUNNING and not conductor.ledger.rungs


# ----------------------------------------------------------------------------------------------------- from a rung on


def at(suggestion: Suggestion, epoch: int, noise: float) -> dict[str, float]:
    """What a seed of a configuration is worth after so many epochs."""
    luck = random.Random(repr((sorted(suggestion.params.items()), epoch)))
    rate = abs(math.log10(suggestion.params["optim.reconstruction_lr"]) + 3)
    return {
        "epoch": float(epoch),
        MSE: 0.05 + 0.01 * rate + 0.5 / epoch + noise * luck.random(),
        JSD: 0.2 + 0.1 * rate + 1.0 / epoch + noise * luck.random(),
        MEAN: 5.0,
    }


def train(conductor: Conductor, noise: float, crash_after: int = 10**9) -> None:
    """An executor with one gang, which does so many intervals at most."""
    levels = [3, 9, 27]
    while isinstance(suggestion := conductor.suggest(), Suggestion):
        conductor.started(suggestion.number)
        epoch, answer = suggestion.epoch, object()
        while not isinstance(answer, Pause | Stop):
            if crash_after == 0:
                return
            crash_after -= 1
            until = next(level for level in levels if level > epoch)
            history = tuple(at(suggestion, each, noise) for each in range(epoch + 1, until + 1))
            checkpoint = f"{suggestion.name}/{until}"
            answer = conductor.reported(
                Report(suggestion.number, until, history, finished=until == 27, checkpoint=checkpoint)
            )
            epoch = until
    assert suggestion is NoSuggestion.DONE


RACING = {"study__seeds_per_trial": 3, "study__seeds_from_rung": 9, "study__budget__trials": 18}


def test_from_a_rung_on_nobody_goes_further_whose_verdict_another_seed_may_change(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(**RACING))
    train(conductor, 0.05)
    ledger = conductor.ledger
    rung, pruner = ledger.rungs[9], ledger.pruner
    assert not pruner.undecided(9, rung)
    spent = {number: len(values) for number, values in rung.values.items()}
    assert max(spent.values()) == 3 and min(spent.values()) == 1  # racing: not everybody
    for number, values in rung.values.items():
        seeds = [number, *ledger.trials[number].replicates]
        assert set(values) <= set(seeds)
        means = [sum(column) / len(values) for column in zip(*values.values(), strict=True)]
        assert rung.ranks.values[number] == pytest.approx(means)
    went_on = [number for number, verdict in rung.verdicts.items() if verdict is RungVerdict.CONTINUE]
    firsts = [number for number in went_on if ledger.trials[number].replicate_of is None]
    assert firsts and all(spent[number] >= 2 for number in firsts)
    for number in set(went_on) - set(firsts):  # a seed goes no further than its configuration
        assert ledger.trials[number].replicate_of in firsts
    for trial in ledger.front():
        assert len(ledger.seeds(trial).values) == 3
    paused = [t for t in ledger.trials if t.replicate_of is not None and t.reason is Reason.PAUSED]
    assert all(trial.epoch == 9 for trial in paused)


def test_the_front_takes_up_seeds_that_wait_at_a_rung_before_it_begins_new_ones(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(**RACING))
    train(conductor, 0.05)
    ledger = conductor.ledger
    for trial in ledger.complete():
        assert len(trial.replicates) <= 2, "three seeds at the rung, the same three at the end"
    resumed = [event for event in conductor.journal.history if isinstance(event, events.AttemptStarted) and event.epoch]
    assert any(ledger.trials[event.number].replicate_of is not None for event in resumed)


def test_quiet_seeds_cost_a_rung_less_than_loud_ones(tmp_path: Path) -> None:
    spent = []
    for name, noise in (("quiet", 1e-7), ("loud", 0.05)):
        (tmp_path / name).mkdir()
        conductor = begin(tmp_path / name, plan_of(**RACING))
        train(conductor, noise)
        spent.append(sum(len(values) for values in conductor.ledger.rungs[9].values.values()))
    assert spent[0] < spent[1]


@pytest.mark.parametrize("after", [5, 11, 17, 23, 31, 47])
def test_a_killed_race_goes_on_as_if_nothing_had_happened(tmp_path: Path, after: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    whole = begin(tmp_path / "whole", plan_of(**RACING))
    train(whole, 0.05)
    killed = begin(tmp_path / "killed", plan_of(**RACING))
    train(killed, 0.05, crash_after=after)
    killed.journal.close()
    again = resume(tmp_path / "killed")
    train(again, 0.05)
    assert outcome(again.ledger) == outcome(whole.ledger)
    assert outcome(Ledger.replay(again.journal.history)) == outcome(whole.ledger)


def test_a_seed_that_diverges_on_its_way_to_the_rung_puts_its_configuration_last(tmp_path: Path) -> None:
    conductor = begin(tmp_path, plan_of(**RACING))
    ledger = conductor.ledger
    while not (ledger.trials and ledger.trials[-1].replicate_of is not None):
        suggestion = conductor.suggest()
        assert isinstance(suggestion, Suggestion)
        conductor.started(suggestion.number)
        if ledger.trials[suggestion.number].replicate_of is None:
            epoch, answer = suggestion.epoch, object()
            while not isinstance(answer, Pause | Stop):
                epoch = next(level for level in (3, 9, 27) if level > epoch)
                answer = conductor.reported(
                    Report(suggestion.number, epoch, (at(suggestion, epoch, 0.05),), checkpoint="c")
                )
    replicate = ledger.trials[-1]
    first = replicate.replicate_of
    assert first is not None
    conductor.failed(Failure(replicate.number, FailureClass.DIVERGED, "nan"))
    rung = ledger.rungs[9]
    assert rung.ranks.values[first] == (math.inf, math.inf) and first not in ledger.pruner.undecided(9, rung)
    train(conductor, 0.05)
    assert ledger.trials[first].reason is Reason.PAUSED and ledger.trials[first].epoch == 9


@pytest.mark.parametrize("first_rung", [3, 9])
@pytest.mark.parametrize("draw", range(6))
def test_gangs_that_report_in_any_order_race_to_an_end_also_when_killed(
    tmp_path: Path, first_rung: int, draw: int
) -> None:
    """Three gangs, two rungs, trials that diverge, and a process that is killed now and then."""
    chance = random.Random(f"{first_rung} {draw}")
    plan = plan_of(**RACING | {"study__seeds_from_rung": first_rung, "study__budget__failures_in_a_row": 50})
    conductor = begin(tmp_path, plan, gangs=3)
    under_way: dict[int, Suggestion] = {}
    epochs: dict[int, int] = {}
    for _ in range(2000):
        while isinstance(suggestion := conductor.suggest(), Suggestion):
            conductor.started(suggestion.number)
            under_way[suggestion.number], epochs[suggestion.number] = suggestion, suggestion.epoch
        if not under_way:
            break
        if chance.random() < 0.03:
            conductor.journal.close()
            conductor = resume(tmp_path, gangs=3)
            under_way, epochs = {}, {}
            continue
        number = chance.choice(sorted(under_way))
        if chance.random() < 0.03:
            conductor.failed(Failure(number, FailureClass.DIVERGED, "nan"))
            del under_way[number]
            continue
        suggestion, before = under_way[number], epochs[number]
        epoch = next(level for level in (3, 9, 27) if level > before)
        history = tuple(at(suggestion, each, 0.05) for each in range(before + 1, epoch + 1))
        answer = conductor.reported(
            Report(number, epoch, history, finished=epoch == 27, checkpoint=f"{number}/{epoch}")
        )
        epochs[number] = epoch
        if isinstance(answer, Pause | Stop):
            del under_way[number]
    ledger = conductor.ledger
    assert suggestion is NoSuggestion.DONE and ledger.configurations == 18
    for trial in ledger.trials:
        if trial.replicate_of is not None and ledger.trials[trial.replicate_of].state is not State.COMPLETE:
            assert trial.rung <= ledger.trials[trial.replicate_of].rung, "a seed is never ahead of its configuration"
    assert outcome(Ledger.replay(conductor.journal.history)) == outcome(ledger)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("seeds_from_rung: 9", "study.seeds_per_trial=1 asks for none"),
        ("seeds_per_trial: 2\n  seeds_from_rung: 10", "is no rung; the rungs are 3, 9"),
        ("seeds_per_trial: 2\n  seeds_from_rung: 27", "is no rung; the rungs are 3, 9"),
        (
            "seeds_per_trial: 2\n  seeds_from_rung: 9\n  pruner: {type: median}",
            "study.pruner.type is median; give asha",
        ),
    ],
)
def test_a_rung_for_seeds_that_is_none_is_told(tmp_path: Path, settings: str, told: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        f"study:\n  {settings}\nrun: {{train.epochs: 27}}\n"
        "space:\n  optim.reconstruction_lr: {type: float, low: 1e-4, high: 1e-2}\n"
    )
    with pytest.raises(SettingsError, match=told) as error:
        read_plan(str(file))
    assert "study.yaml:" in str(error.value)
