"""Gangs: what one trial leaves behind does not reach the next; a state goes on exactly, on a warm or a fresh gang."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.util.state import list_actors

from aae_ray.evaluation.figure_data import FIGURES, draw
from aae_ray.execution.gang import Begin, Failed, Gang, GangError, Train, Trained, precision_advice
from aae_ray.execution.mailbox import Mailbox, open_office
from aae_ray.execution.ray_cluster import cluster
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint

FOREVER = 1e9


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with cluster(verbose=False):
        yield


def new_gang(name: str, run: Settings) -> Gang:
    gang = Gang(name, run, open_office(1))
    gang.wait_until_ready()
    return gang


def worker_processes() -> list[int]:
    actors = list_actors(address=ray.get_runtime_context().gcs_address)  # another Ray may run on this machine
    found = [actor.pid for actor in actors if actor.class_name == "RayTrainWorker" and actor.state == "ALIVE"]
    assert found
    return found


def trained(gang: Gang, run: Settings, *epochs: int, state: bytes | None = None) -> Trained:
    """The last reply about a trial after these intervals, from its beginning or from a saved state."""
    begin: Begin | None = Begin(run, state)
    for epoch in epochs:
        reply, begin = gang.ask(Train(epoch, FOREVER, begin)), None
        assert isinstance(reply, Trained) and reply.interval.epoch == epoch
    assert isinstance(reply, Trained)
    return reply


def state_after(gang: Gang, run: Settings, *epochs: int, state: bytes | None = None) -> bytes:
    return trained(gang, run, *epochs, state=state).state


def assert_equal(a: Any, b: Any, place: str = "state") -> None:
    """Bit for bit, but for the clock."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            if not str(key).startswith("perf/"):
                assert_equal(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), place
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{place}[{index}]")
    else:
        assert a == b, place


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_warm_gang_gives_what_a_fresh_one_gives(
    ray_session: None, small_run: Settings, tmp_path: Path, workers: int
) -> None:
    base = replace(
        small_run,
        {"study.folder": f"{tmp_path}/trials", "study.workers_per_trial": workers, "train.dtype": "float32"},
    )
    other = replace(
        base, {"model.latent_dim": 7, "model.prior": "swiss_roll", "model.posterior": "universal", "seed": 9}
    )

    warm = new_gang("warm", base)
    state_after(warm, other, 2)  # somebody else's trial first
    unbroken = state_after(warm, base, 2, 4)
    half = state_after(warm, base, 2)
    state_after(warm, other, 1)
    warm.post(Train(1, FOREVER, Begin(other)))  # dropped: Tune may restore a trial that its gang has just begun
    last = trained(warm, base, 4, state=half)
    resumed_warm = last.state
    assert last.pictures is not None and set(draw(last.pictures)) == set(FIGURES)
    warm.close()
    assert not warm.thread.is_alive()

    fresh = new_gang("fresh", base)
    resumed_fresh = state_after(fresh, base, 4, state=half)
    alone = state_after(fresh, base, 2, 4)
    fresh.close()

    for other_way in (alone, resumed_warm, resumed_fresh):
        assert_equal(checkpoint.unpack(unbroken), checkpoint.unpack(other_way))


def test_a_dead_worker_is_an_error_of_the_trial_and_bad_input_is_not(
    ray_session: None, small_run: Settings, tmp_path: Path
) -> None:
    base = replace(small_run, {"study.folder": f"{tmp_path}/trials"})
    gang = new_gang("doomed", base)
    too_deep = replace(base, {"model.network": "convolutional", "model.channels": (4, 4, 4, 4, 4)})
    failed = gang.ask(Train(4, FOREVER, Begin(too_deep)))
    assert isinstance(failed, Failed) and failed.reason == "bad_input" and "model.channels" in failed.message
    trained(gang, base, 1)  # the gang lives on
    running = [actor.class_name for actor in list_actors(address=ray.get_runtime_context().gcs_address)]
    assert "RayTrainWorker" in running and "DatasetManager" not in running  # nobody needs that one

    for pid in worker_processes():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(GangError, match="died"):
        gang.ask(Train(4, FOREVER))
    assert gang.close()


@pytest.mark.slow
def test_a_gang_that_hangs_is_an_error_and_is_known_not_to_have_ended(
    ray_session: None, small_run: Settings, tmp_path: Path
) -> None:
    base = replace(small_run, {"study.folder": f"{tmp_path}/trials", "study.step_timeout": 10})
    gang = new_gang("hung", base)
    trained(gang, base, 1)
    for pid in worker_processes():
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(GangError, match="study.step_timeout=10 s"):
        gang.ask(Train(2, FOREVER))
    assert not gang.close(patience=1)
    for pid in worker_processes():
        os.kill(pid, signal.SIGCONT)
    assert gang.close(patience=60)


def test_the_mailbox_does_not_mind_in_which_order_calls_arrive() -> None:
    async def play() -> None:
        def call(coroutine: Any) -> asyncio.Task[Any]:
            return asyncio.create_task(coroutine)

        mailbox = Mailbox(workers=2)
        ready = call(mailbox.reply_to(-1))
        first = [call(mailbox.exchange(0, "ready")), call(mailbox.exchange(0))]
        assert await ready == "ready"
        asked = {1: call(mailbox.ask(1, "order 1"))}
        await asyncio.sleep(0)
        asked[0] = call(mailbox.ask(0, "order 0"))
        assert await asyncio.gather(*first) == ["order 0", "order 0"]
        second = [call(mailbox.exchange(1)), call(mailbox.exchange(1, "reply 0"))]
        assert await asyncio.gather(*second) == ["order 1", "order 1"]
        third = call(mailbox.exchange(2, "reply 1"))
        assert await asked[1] == "reply 1" and await asked[0] == "reply 0"
        assert not mailbox.replies and not third.done()
        asked[2] = call(mailbox.ask(2, "order 2"))
        assert await third == "order 2"
        await mailbox.exchange(2)
        assert not mailbox.orders and not mailbox.takers  # an order may carry a whole state

        last = call(mailbox.exchange(3, "reply 2"))
        await asyncio.sleep(0)
        mailbox.end("dead")
        await asyncio.wait([last])
        assert last.cancelled()
        assert await asked[2] == "reply 2"
        assert await mailbox.ask(3, "order 3") == "dead"
        assert not mailbox.orders and not mailbox.replies

    asyncio.run(play())


@pytest.mark.parametrize("gangs", [1, 3])
def test_gangs_muster_before_their_first_trial(ray_session: None, gangs: int) -> None:
    office = open_office(gangs)
    early = [office.arrive.remote(60) for _ in range(gangs - 1)]
    done, _ = ray.wait(early, timeout=1) if early else ([], [])
    assert not done  # they wait for the last one
    ray.get([*early, office.arrive.remote(60)], timeout=20)
    ray.get(office.arrive.remote(60), timeout=5)  # a gang that replaces a dead one waits for nobody


def test_a_muster_has_an_end(ray_session: None) -> None:
    ray.get(open_office(2).arrive.remote(0.2), timeout=20)


@pytest.mark.parametrize(
    ("values", "kind", "told"),
    [
        ({"train.mixed_precision": True}, "AVX2", True),
        ({"train.mixed_precision": True}, "AVX512", False),
        ({"train.mixed_precision": False}, "AVX2", False),
        ({"train.mixed_precision": True, "study.resources_per_worker": {"GPU": 1}}, "AVX2", False),
        ({"train.mixed_precision": True, "train.device": "cpu"}, "DEFAULT", True),
    ],
)
def test_bfloat16_on_a_cpu_without_it_is_told(
    values: dict[str, Any], kind: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: kind)
    advice = precision_advice(replace(Settings(), values))
    assert (advice is not None) == told
    assert not advice or f"({kind}) works without AVX512" in advice
