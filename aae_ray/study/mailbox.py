"""The mailbox between a trial and its gang, and the muster of all gangs: async Ray actors that others wait at.

They stand alone in this file, so that their processes start light and fast.
"""

import asyncio
import contextlib
from typing import Any


class Mailbox:
    """Where orders wait until every worker has taken them, and replies until the trial has. Runs as an async Ray actor.

    Ray may carry out two calls of an async actor in another order than they were made, so every message has the number
    of its order. Messages are sealed: they pass through without being unpacked here.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.orders: dict[int, tuple[Any, int]] = {}  # number -> the order, and workers yet to take it
        self.replies: dict[int, Any] = {}
        self.last_words: Any = None  # the reply to everything once the gang is no more
        self.arrival = asyncio.Condition()

    async def post(self, number: int, order: Any) -> None:
        async with self.arrival:
            self.orders[number] = (order, self.workers)
            self.arrival.notify_all()

    async def take(self, number: int) -> Any:
        """This order, for one worker; waits for it. A taken order is dropped: it may carry a whole state."""
        async with self.arrival:
            await self.arrival.wait_for(lambda: number in self.orders)
            order, takers = self.orders[number]
            if takers == 1:
                del self.orders[number]
            else:
                self.orders[number] = (order, takers - 1)
            return order

    async def reply(self, number: int, reply: Any) -> None:
        async with self.arrival:
            self.replies[number] = reply
            self.arrival.notify_all()

    async def end(self, last_words: Any) -> None:
        async with self.arrival:
            self.last_words = last_words
            self.arrival.notify_all()

    async def reply_to(self, number: int) -> Any:
        """The reply to this order, or the gang's last words; waits for it. Replies to orders before it are dropped."""
        async with self.arrival:
            await self.arrival.wait_for(lambda: number in self.replies or self.last_words is not None)
            reply = self.replies.get(number, self.last_words)
            self.replies = {later: kept for later, kept in self.replies.items() if later > number}
            return reply


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
