"""The mailbox between a trial and its gang, and the muster of all gangs: async Ray actors that others wait at.

They stand alone in this file, so that their processes start light and fast.
"""

import asyncio
import contextlib
from typing import Any


class Mailbox:
    """Where orders wait until every worker has taken them, and replies until the trial has. Runs as an async Ray actor.

    Messages are sealed: they pass through without being unpacked here.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.posted = 0
        self.orders: dict[int, tuple[Any, int]] = {}  # number -> the order, and workers yet to take it
        self.arrival = asyncio.Condition()
        self.replies: asyncio.Queue[Any] = asyncio.Queue()

    async def post(self, order: Any) -> None:
        async with self.arrival:
            self.orders[self.posted] = (order, self.workers)
            self.posted += 1
            self.arrival.notify_all()

    async def take(self, number: int) -> Any:
        """Order number `number`, for one worker; waits for it. A taken order is dropped: it may carry a whole state."""
        async with self.arrival:
            await self.arrival.wait_for(lambda: number < self.posted)
            order, takers = self.orders[number]
            if takers == 1:
                del self.orders[number]
            else:
                self.orders[number] = (order, takers - 1)
            return order

    async def reply(self, reply: Any) -> None:
        await self.replies.put(reply)

    async def next_reply(self) -> Any:
        return await self.replies.get()


class Muster:
    """Where new gangs wait for each other before their first trial.

    Ray Tune hands a trial whose process is still starting to the next process that gets free, and throws the starting
    one away. When trials are shorter than a start, the first gang takes everything and no other one ever comes up.
    """

    def __init__(self, gangs: int) -> None:
        self.missing = gangs
        self.complete = asyncio.Event()

    async def arrive(self, patience: float) -> None:
        """Return when as many gangs have arrived as there should be, or after so many seconds."""
        self.missing -= 1
        if self.missing <= 0:
            self.complete.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.complete.wait(), patience)
