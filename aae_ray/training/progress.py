"""How far a long epoch is, told now and then: by time, so that short ones say nothing and a step costs little."""

import time
from collections.abc import Callable

TELL_SECONDS = 10.0  # an epoch that takes less is not told of
TELL_SHARE = 0.05  # of an epoch, at least, between two times

Tell = Callable[[int, int], None]


class EpochProgress:
    """Calls `tell(done, batches)` while an epoch of so many batches goes on, the last batch excepted."""

    def __init__(self, tell: Tell | None, seconds: float = TELL_SECONDS) -> None:
        self.tell, self.seconds = tell, seconds
        self.batches = self.done = 0
        self.began = self.next = 0.0

    def begin(self, batches: int) -> None:
        self.batches, self.done, self.began = batches, 0, time.monotonic()
        self.next = self.began + self.seconds

    def step(self) -> None:
        """A batch is done."""
        self.done += 1
        if self.tell is None or self.done >= self.batches or (now := time.monotonic()) < self.next:
            return
        self.tell(self.done, self.batches)
        epoch_seconds = (now - self.began) * self.batches / self.done
        self.next = now + max(self.seconds, TELL_SHARE * epoch_seconds)
