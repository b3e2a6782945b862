"""When a study stops waiting for spot: Ray asks for spot for ever, and does not fall back by itself."""

import math
from dataclasses import dataclass, field

SPOT, ON_DEMAND = "spot", "on-demand"  # values of the label `market` of a node


@dataclass(frozen=True)
class Machines:
    """What a cluster has, and what work waits for, at one moment."""

    waiting: int  # workers that wait for a machine
    present: dict[str, int]  # machines by market that take work
    coming: dict[str, int]  # that were given, and are booting or being set up

    def of(self, market: str) -> int:
        return self.present.get(market, 0) + self.coming.get(market, 0)


class OnDemandFallback:
    """Decides how many workers are to have machines on demand.

    Workers that wait for `after` seconds, in which no machine has come, get them. A machine that is being set up is one
    that has come: the time begins anew with it. What is asked for becomes less as soon as fewer wait, and nothing when
    nobody does at two looks in a row, as Ray Train withdraws its request for a moment before it asks anew: a machine
    that is there stays while it has work, and then goes by the autoscaler's rule.
    """

    def __init__(self, after: float, most: int, workers_per_machine: int = 1) -> None:
        """At most for `most` workers at a time: a request for more than there can be gets nothing at all."""
        self.after, self.most, self.workers_per_machine = after, most, workers_per_machine
        self.asked = 0  # workers for which there are to be machines on demand, those that have one included
        self._since: float | None = None  # when the wait began, or the last machine came
        self._machines = 0
        self._idle = False  # whether nobody waited at the last look

    def look(self, now: float, machines: Machines) -> int | None:
        """How many workers are to have machines on demand from now on, `now` in seconds; None where that stays."""
        count = sum(machines.present.values())
        came, self._machines = count > self._machines or any(machines.coming.values()), count
        idle, self._idle = self._idle, not machines.waiting
        if not machines.waiting:
            if came:
                self._since = None
            if not idle:
                return None
            self._since = None
            return self._ask(0)
        if self._since is None or came:
            self._since = now
        needed = min(machines.of(ON_DEMAND) * self.workers_per_machine + machines.waiting, self.most)
        if needed < self.asked or now - self._since >= self.after:
            return self._ask(needed)
        return None

    def waited(self, now: float) -> float:
        """Seconds for which workers have waited."""
        return 0.0 if self._since is None else now - self._since

    def _ask(self, workers: int) -> int | None:
        if workers == self.asked:
            return None
        self.asked = workers
        return workers


@dataclass
class MachineHours:
    """Hours of machines by market, from how many there were at each change."""

    hours: dict[str, float] = field(default_factory=dict)
    present: dict[str, int] = field(default_factory=dict)
    since: float = math.nan  # seconds since 1970

    def change(self, time: float, present: dict[str, int]) -> None:
        """From a time on there are so many."""
        self.close(time)
        self.present, self.since = dict(present), time

    def close(self, time: float) -> None:
        """Up to a time there were as many as before, and from then on nobody has counted."""
        for market, count in self.present.items():
            self.hours[market] = self.hours.get(market, 0.0) + count * max(time - self.since, 0.0) / 3600
        self.present = {}
