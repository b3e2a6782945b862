"""The mailbox between a trial and its gang. It stands alone in this file, so that its process starts light and fast."""

import asyncio
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
