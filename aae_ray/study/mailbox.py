"""The mailbox between a trial and its gang, and the muster of all gangs: async Ray actors that others wait at.

They stand alone in this file, so that their processes start light and fast.
"""

import asyncio
import contextlib
from collections import defaultdict
from typing import Any


class Mailbox:
    """Where orders wait until every worker has taken them, and trials for their replies. Runs as an async Ray actor.

    Ray may carry out two calls of an async actor in another order than they were made, so every message has the number
    of its order. Messages are sealed: they pass through without being unpacked here.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.orders: dict[int, asyncio.Future[Any]] = defaultdict(asyncio.Future)
        self.takers: dict[int, int] = defaultdict(int)  # by order, how many workers have taken it
        self.replies: dict[int, asyncio.Future[Any]] = defaultdict(asyncio.Future)
        self.last_words: Any = None  # the reply to everything once the gang is no more

    async def ask(self, number: int, order: Any) -> Any:
        """Give an order and wait for its reply, or for the gang's last words."""
        self.orders[number].set_result(order)
        return await self.reply_to(number)

    async def reply_to(self, number: int) -> Any:
        """The reply to this order, or the gang's last words; waits for it."""
        if self.last_words is not None:
            self._answer(number, self.last_words)
        reply = await self.replies[number]
        del self.replies[number]
        return reply

    async def exchange(self, number: int, reply: Any = None) -> Any:
        """A worker's reply to the order before this one, if it has something to reply, for this order."""
        if reply is not None:
            self._answer(number - 1, reply)
        order = await self.orders[number]
        self.takers[number] += 1
        if self.takers[number] == self.workers:  # an order may carry a whole state
            del self.orders[number], self.takers[number]
        return order

    async def end(self, last_words: Any) -> None:
        """The gang is no more."""
        self.last_words = last_words
        for number in self.replies:
            self._answer(number, last_words)

    def _answer(self, number: int, reply: Any) -> None:
        if not self.replies[number].done():
            self.replies[number].set_result(reply)


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
