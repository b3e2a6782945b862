"""When machines on demand are asked for, as plain decisions over what a cluster shows."""

import pytest

from aae_ray.search import events
from aae_ray.search.ledger import Ledger
from aae_ray.search.market import MachineHours, Machines, OnDemandFallback

AFTER = 600.0


def machines(waiting: int, spot: int = 0, on_demand: int = 0, coming: int = 0, coming_on_demand: int = 0) -> Machines:
    return Machines(waiting, {"spot": spot, "on-demand": on_demand}, {"spot": coming, "on-demand": coming_on_demand})


def decisions(*seen: tuple[float, Machines], most: int = 4, each: int = 1) -> list[int | None]:
    """What is asked for at each look."""
    fallback = OnDemandFallback(AFTER, most, each)
    return [fallback.look(now, what) for now, what in seen]


def test_spot_that_cannot_be_had_is_waited_for_as_long_as_was_said() -> None:
    assert decisions((0, machines(2)), (599, machines(2)), (600, machines(2)), (900, machines(2))) == [
        None,
        None,
        2,
        None,
    ]


def test_a_machine_that_is_being_set_up_has_come() -> None:
    """Its installation takes minutes, in which nothing is wrong."""
    installing = machines(2, coming=1)
    assert decisions((0, machines(2)), (500, installing), (1000, installing), (1500, machines(1, spot=1))) == [None] * 4
    assert decisions((0, installing), (900, machines(1, spot=1)), (1499, machines(1, spot=1))) == [None] * 3


def test_the_wait_begins_anew_with_each_machine() -> None:
    seen = ((0, machines(3)), (500, machines(2, spot=1)), (1000, machines(2, spot=1)), (1100, machines(2, spot=1)))
    assert decisions(*seen) == [None, None, None, 2]


def test_what_nobody_waits_for_is_asked_for_no_longer() -> None:
    seen = (
        (0, machines(2)),
        (600, machines(2)),
        (610, machines(2, coming_on_demand=2)),
        (900, machines(0, on_demand=2)),
        (910, machines(0, on_demand=2)),
        (920, machines(0, on_demand=2)),
    )
    assert decisions(*seen) == [None, 2, None, None, 0, None]


def test_a_request_that_is_withdrawn_for_a_moment_still_waits() -> None:
    """Ray Train asks anew every 30 seconds for what has not come; one look may fall in between."""
    seen = ((0, machines(2)), (590, machines(0)), (600, machines(2)), (610, machines(0)), (620, machines(2)))
    assert decisions(*seen) == [None, None, 2, None, None]


def test_a_wait_is_over_when_a_machine_has_come_for_the_last_one_who_waited() -> None:
    seen = ((0, machines(1)), (590, machines(0, spot=1)), (600, machines(1, spot=1)), (1200, machines(1, spot=1)))
    assert decisions(*seen) == [None, None, None, 1]


def test_less_is_asked_for_as_soon_as_spot_comes_after_all() -> None:
    seen = ((0, machines(3)), (600, machines(3)), (700, machines(1, spot=2)), (710, machines(0, spot=3)))
    assert decisions(*seen, (720, machines(0, spot=3))) == [None, 3, 1, None, 0]


def test_a_lost_spot_machine_is_replaced_on_demand_after_another_wait() -> None:
    """Those that have a machine on demand already count, or the request would mean the same machine."""
    seen = (
        (0, machines(1)),
        (600, machines(1)),
        (900, machines(0, on_demand=1, spot=2)),
        (910, machines(0, on_demand=1, spot=2)),
        (1000, machines(1, on_demand=1, spot=1)),
        (1599, machines(1, on_demand=1, spot=1)),
        (1600, machines(1, on_demand=1, spot=1)),
    )
    assert decisions(*seen) == [None, 1, None, 0, None, None, 2]


def test_never_is_more_asked_for_than_there_can_be() -> None:
    assert decisions((0, machines(9)), (600, machines(9))) == [None, 4]


def test_a_machine_may_hold_several_workers() -> None:
    seen = ((0, machines(2, on_demand=1)), (600, machines(2, on_demand=1)))
    assert decisions(*seen, most=16, each=4) == [None, 6]


def test_on_demand_that_cannot_be_had_either_stays_asked_for() -> None:
    assert decisions((0, machines(1)), (600, machines(1)), (9000, machines(1))) == [None, 1, None]


def test_hours_are_counted_from_change_to_change() -> None:
    hours = MachineHours()
    hours.change(0, {"spot": 2})
    hours.change(1800, {"spot": 2, "on-demand": 1})
    hours.change(3600, {"on-demand": 1})
    hours.close(7200)
    hours.close(9000)
    assert hours.hours == pytest.approx({"spot": 2.0, "on-demand": 1.5})


def test_the_ledger_counts_no_hours_in_which_nobody_looked() -> None:
    """A driver that died told of no machine that went."""
    ledger = Ledger()
    there = {"present": {"on-demand": 1}, "asked_on_demand": 0}
    ledger.apply(events.MachinesChanged(time=1000, **there))
    ledger.apply(events.Noted(time=4600, text="the last sign of life"))
    ledger.apply(events.StudyResumed(time=90000, host="h", pid=1))
    ledger.apply(events.MachinesChanged(time=90000, **there))
    ledger.apply(events.StudyEnded(time=93600, message=None))
    assert ledger.machines.hours == pytest.approx({"on-demand": 2.0})
