"""Ctrl-C, SIGTERM and SIGHUP, obeyed in every part of a study: the first stops it gracefully, the second at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from aae_ray.errors import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CTRL_C = "stopping gracefully; press Ctrl-C again to stop immediately"
OTHER = "{name} received: stopping gracefully; a second signal stops immediately"


class Signals:
    """Whether the study was asked to stop.

    While something runs that polls `requested` (the search: its journal must not be interrupted in the middle of a
    line), the first signal is only noted; everywhere else it raises KeyboardInterrupt in the main thread.
    """

    def __init__(self, say: Callable[[str], None], leave: Callable[[], None], *, ends_process: bool = True) -> None:
        """`leave` is called before the process ends at once, at the second signal. A program that runs a study, such as
        a notebook, is not ended: there the second one raises KeyboardInterrupt wherever the study is."""
        self.say, self.leave, self.ends_process = say, leave, ends_process
        self.requested = False
        self.insisted = False  # a second signal, in a process that goes on
        self.polled = False
        self.deferrals = 0
        self.ours: list[signal.Signals] = []  # not those that are ignored from the start, as `nohup` has it

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Signals are noted, and not raised, as long as this lasts."""
        self.polled = True
        try:
            yield
        finally:
            self.polled = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What must not be left half done: a signal that comes meanwhile is raised at the end."""
        self.deferrals += 1
        requested, insisted = self.requested, self.insisted
        try:
            yield
        finally:
            self.deferrals -= 1
        if (self.requested and not requested and not self.polled) or self.insisted != insisted:
            raise KeyboardInterrupt

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Signals are ours as long as this lasts."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.ours = [number for number in SIGNALS if before[number] is not signal.SIG_IGN]
        self.take()
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def take(self) -> None:
        """Take the signals, also from Ray, which has a handler of its own from its start on."""
        for number in SIGNALS:
            signal.signal(number, self._handle if number in self.ours else signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and self.ends_process:  # what stays open is closed by the next --resume or --close
            self.leave()
            os._exit(INTERRUPTED)
        if self.requested:
            self.insisted = True
            if not self.deferrals:
                raise KeyboardInterrupt
            return
        self.requested = True
        self.say(CTRL_C if number == signal.SIGINT else OTHER.format(name=signal.Signals(number).name))
        if not (self.polled or self.deferrals):
            raise KeyboardInterrupt
