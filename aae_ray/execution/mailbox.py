"""The mailboxes: an async Ray actor where trials and their worker groups wait for each other's messages.

It stands alone in this file, so that its process starts light and fast.
"""

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CONCURRENT_CALLS = 10_000  # one of each trial and of each worker


def start_mailbox_hub(gangs: int) -> ActorHandle:
    """The mailboxes of so many gangs, on this node: they are lost with the process that starts them.

    Ray does not restart the actor: where memory is short, it kills first what it can restart.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": CONCURRENT_CALLS, "scheduling_strategy": here}
    return ray.remote(**options)(MailboxHub).remote(gangs)


class MailboxHub:
    """The mailboxes of all gangs of a study, and their startup barrier. Runs as an async Ray actor.

    One process for all of them: one that only waits costs about a hundredth of a core, which small trials feel.
    """

    def __init__(self, gangs: int) -> None:
        self.barrier = StartupBarrier(gangs)
        self.mailboxes: dict[str, Mailbox] = {}

    async def open(self, gang: str, workers: int) -> None:
        """A new mailbox for a gang of so many workers."""
        self.mailboxes[gang] = Mailbox(workers)

    async def close(self, gang: str) -> None:
        """Forget a gang that has ended."""
        self.mailboxes.pop(gang, None)

    async def wait_for_all(self, timeout_s: float) -> None:
        await self.barrier.wait(timeout_s)

    async def register(self, gang: str, rank: int, member: Any) -> None:
        self.mailboxes[gang].members[rank] = member

    async def members(self, gang: str) -> dict[int, Any]:
        """What the workers of a gang said about themselves when they started, by rank."""
        return dict(self.mailboxes[gang].members) if gang in self.mailboxes else {}

    async def ask(self, gang: str, number: int, order: Any) -> Any:
        return await self.mailboxes[gang].ask(number, order)

    async def reply_to(self, gang: str, number: int) -> Any:
        return await self.mailboxes[gang].reply_to(number)

    async def exchange(self, gang: str, number: int, reply: Any) -> Any:
        return await self.mailboxes[gang].exchange(number, reply)

    async def progress(self, gang: str, number: int, reply: Any) -> None:
        if gang in self.mailboxes:
            self.mailboxes[gang].progress(number, reply)

    async def end(self, gang: str, final_reply: Any) -> None:
        if gang in self.mailboxes:
            self.mailboxes[gang].end(final_reply)


class Mailbox:
    """Where orders wait until every worker has taken them, and a trial for their replies.

    Ray may carry out two calls of an async actor in another order than they were made, so every message has the number
    of its order. Messages are packed: they pass through without being unpacked here.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.members: dict[int, Any] = {}
        self.orders: dict[int, asyncio.Future[Any]] = defaultdict(asyncio.Future)
        self.takers: dict[int, int] = defaultdict(int)  # by order, how many workers have taken it
        self.replies: dict[int, asyncio.Future[Any]] = defaultdict(asyncio.Future)
        self.passing: set[int] = set()  # orders whose reply, as it stands, says only how far they are
        self.answered = -2  # the last order that has its reply
        self.final_reply: Any = None  # the reply to everything once the gang has ended

    async def ask(self, number: int, order: Any) -> Any:
        """Give an order and wait for its reply, or for the gang's final reply."""
        if self.final_reply is None:
            self.orders[number].set_result(order)
        return await self.reply_to(number)

    async def reply_to(self, number: int) -> Any:
        """The reply to this order, or the gang's final reply; waits for it."""
        if self.final_reply is not None:
            self._answer(number, self.final_reply)
        waited = self.replies[number]
        reply = await waited
        if self.replies.get(number) is waited:  # and nothing newer has come meanwhile
            del self.replies[number]
            self.passing.discard(number)
        return reply

    async def exchange(self, number: int, reply: Any = None) -> Any:
        """A worker's reply to the order before this one, if it has something to reply, for this order."""
        if reply is not None:
            self.answered = max(self.answered, number - 1)
            self._answer(number - 1, reply)
        order = await self.orders[number]
        self.takers[number] += 1
        if self.takers[number] == self.workers:  # an order may carry a whole state
            del self.orders[number], self.takers[number]
        return order

    def progress(self, number: int, reply: Any) -> None:
        """How far an order is: a reply before its reply. Of several that nobody has asked for, the last one counts."""
        if number > self.answered and self.final_reply is None:
            self._answer(number, reply)
            self.passing.add(number)

    def end(self, final_reply: Any) -> None:
        """The gang has ended."""
        self.final_reply = final_reply
        for order in self.orders.values():
            order.cancel()  # a dead worker may still be waiting for it
        self.orders.clear()
        for number in self.replies:
            self._answer(number, final_reply)

    def _answer(self, number: int, reply: Any) -> None:
        if number in self.passing and self.replies[number].done():
            self.replies[number] = asyncio.Future()
        self.passing.discard(number)
        if not self.replies[number].done():
            self.replies[number].set_result(reply)


class StartupBarrier:
    """Where new gangs wait for each other before their first trial.

    Ray Tune hands a trial whose process is still starting to the next process that gets free, and throws the starting
    one away. When trials are shorter than a start, the first gang takes everything and no other one ever comes up.
    """

    def __init__(self, gangs: int) -> None:
        self.missing = gangs
        self.complete = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        """Return when as many gangs have arrived as there should be, or after so many seconds."""
        self.missing -= 1
        if self.missing <= 0:
            self.complete.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.complete.wait(), timeout_s)
