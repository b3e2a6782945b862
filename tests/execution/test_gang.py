"""Gangs: what one trial leaves behind does not reach the next; a state goes on exactly, on a warm or a fresh gang; the
ranks stay in step whatever happens to one of them; and every failure has its class."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
from ray import cloudpickle, tune
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import FailureDecision, create_failure_policy
from ray.train.v2.api.exceptions import ControllerError
from ray.util.state import list_actors

from aae_ray.errors import UserError
from aae_ray.evaluation.figure_data import FIGURES, draw
from aae_ray.execution import gang as gangs
from aae_ray.execution import worker
from aae_ray.execution.failures import Failed, GangError
from aae_ray.execution.gang import Gang, LocalGang, Patience, StartOnce, WorkerGang
from aae_ray.execution.mailbox import Mailbox, start_mailbox_hub
from aae_ray.execution.orders import Begin, Train, Trained
from aae_ray.execution.ray_cluster import ray_cluster
from aae_ray.execution.trial import Trial
from aae_ray.execution.worker import Worker, precision_advice
from aae_ray.search.contract import Failure, Progress, Report, Suggestion, from_result
from aae_ray.search.outcomes import FailureClass
from aae_ray.settings import Settings, replace
from aae_ray.training import checkpoint

FOREVER = 1e9
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same mapped into IPv6


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with ray_cluster(verbose=False, stuck=print):
        yield


@pytest.fixture(scope="module")
def own_niceness() -> Iterator[None]:
    """A gang of one lowers the priority of its thread alone."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    yield
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def new_gang(name: str, settings: Settings, folder: Path) -> Gang:
    gang: Gang
    if settings.study.workers_per_trial == 1:
        gang = LocalGang(name, settings)
    else:
        gang = WorkerGang(name, settings, str(folder), start_mailbox_hub(1))
    gang.wait_until_ready()
    return gang


def two_workers(settings: Settings, **values: Any) -> Settings:
    return replace(settings, {"study.workers_per_trial": 2, **values})


def worker_processes() -> list[int]:
    actors = list_actors(address=ray.get_runtime_context().gcs_address)  # another Ray may run on this machine
    pids = [actor.pid for actor in actors if actor.class_name == "RayTrainWorker" and actor.state == "ALIVE"]
    assert pids
    return pids


def listening(pids: list[int]) -> set[str]:
    """The addresses at which these processes listen, as the kernel writes them."""
    inodes = {os.readlink(file) for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir() if file.is_symlink()}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def trained(gang: Gang, settings: Settings, *epochs: int, state: bytes | None = None) -> Trained:
    """The last reply about a trial after these intervals, from its beginning or from a saved state."""
    begin: Begin | None = Begin(settings, state)
    for epoch in epochs:
        gang.post(Train(epoch, FOREVER, begin))
        reply, begin = gang.reply(), None
        assert isinstance(reply, Trained) and reply.interval.epoch == epoch, reply
    assert isinstance(reply, Trained)
    return reply


def state_after(gang: Gang, settings: Settings, *epochs: int, state: bytes | None = None) -> bytes:
    return trained(gang, settings, *epochs, state=state).state


def resources_come_back(cpus: float) -> bool:
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < cpus and time.monotonic() < deadline:
        time.sleep(0.2)
    return bool(ray.available_resources().get("CPU", 0) >= cpus)


def assert_equal(a: Any, b: Any, path: str = "state") -> None:
    """Bit for bit, but for the clock."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if not str(key).startswith("perf/"):
                assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{index}]")
    else:
        assert a == b, path


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_warm_gang_gives_what_a_fresh_one_gives(
    ray_session: None, own_niceness: None, small_run: Settings, tmp_path: Path, workers: int
) -> None:
    base = replace(small_run, {"study.workers_per_trial": workers, "train.dtype": "float32", "train.epochs": 5})
    other = replace(
        base, {"model.latent_dim": 7, "model.prior": "swiss_roll", "model.posterior": "universal", "seed": 9}
    )

    warm = new_gang("warm", base, tmp_path)
    state_after(warm, other, 2)  # somebody else's trial first
    unbroken = state_after(warm, base, 2, 4)
    half = state_after(warm, base, 2)
    state_after(warm, other, 1)
    warm.post(Train(1, FOREVER, Begin(other)))  # dropped: nobody asked for its reply
    last = trained(warm, base, 4, state=half)
    resumed_warm = last.state
    assert last.figures is not None and set(draw(last.figures)) == set(FIGURES)
    assert last.training_seconds > 0 and last.evaluation_seconds > 0
    finished = checkpoint.unpack(state_after(warm, base, 5))
    assert "optimizers" not in finished and "optimizers" in checkpoint.unpack(unbroken)
    assert warm.close() and not warm.alive
    assert not (tmp_path / "gangs" / "warm").exists()

    fresh = new_gang("fresh", base, tmp_path)
    resumed_fresh = state_after(fresh, base, 4, state=half)
    alone = state_after(fresh, base, 2, 4)
    assert fresh.close()

    for other_way in (alone, resumed_warm, resumed_fresh):
        assert_equal(checkpoint.unpack(unbroken), checkpoint.unpack(other_way))


def test_two_workers_equal_one_and_a_killed_one_is_a_lost_worker(
    ray_session: None, small_run: Settings, tmp_path: Path
) -> None:
    one, two = new_gang("one", small_run, tmp_path), new_gang("two", two_workers(small_run), tmp_path)
    a = checkpoint.unpack(state_after(one, small_run, 2))
    b = checkpoint.unpack(state_after(two, two_workers(small_run), 2))
    for name, network in a["networks"].items():
        for key, tensor in network.items():
            torch.testing.assert_close(tensor, b["networks"][name][key], rtol=1e-9, atol=1e-12)
    one.close()

    if sys.platform == "linux":
        assert listening(worker_processes()) <= LOOPBACK
    running = [actor.class_name for actor in list_actors(address=ray.get_runtime_context().gcs_address)]
    assert "RayTrainWorker" in running and "DatasetManager" not in running  # nobody needs that one
    assert "_AutoscalingCoordinatorActor" not in running  # whose requests would replace the study's own
    too_deep = two_workers(small_run, **{"model.network": "convolutional", "model.channels": (4, 4, 4, 4, 4)})
    two.post(Train(4, FOREVER, Begin(too_deep)))
    failed = two.reply()
    assert isinstance(failed, Failed) and failed.kind is FailureClass.BAD_DATA and "model.channels" in failed.message
    trained(two, two_workers(small_run), 1)  # the gang lives on

    os.kill(worker_processes()[-1], signal.SIGKILL)
    two.post(Train(4, FOREVER))
    with pytest.raises(GangError) as caught:
        two.reply()
    assert caught.value.failed.kind is FailureClass.LOST_WORKER, caught.value.failed
    assert two.close()
    assert resources_come_back(2)


class OneRankFails(Worker):
    """Fails on the second rank alone, where the name of the data says so."""

    def _begin(self, trial: Begin) -> Any:
        if self.rank == 1 and trial.settings.data.split_seed == 1:
            self.in_step = False
            raise UserError("this node has no data")
        training = super()._begin(trial)
        if self.rank == 1 and trial.settings.data.split_seed == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return training

    def _train(self, training: Any, order: Train) -> Trained | None:
        if self.rank == 1 and training.settings.data.split_seed == 3:
            raise KeyError("a bug in the middle of an epoch")  # while the other rank waits in a collective
        return super()._train(training, order)


def work_of_one_rank_fails(config: dict[str, Any]) -> None:
    worker.Worker = OneRankFails  # type: ignore[misc]
    worker.AGREEMENT_SECONDS = 2.0
    worker.work(config)


@pytest.mark.slow
def test_a_failure_of_one_rank_leaves_the_ranks_in_step(
    ray_session: None, small_run: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = sys.modules[__name__]  # workers cannot import the tests
    cloudpickle.register_pickle_by_value(this)
    base = two_workers(small_run)
    with monkeypatch.context() as patched:
        patched.setattr(gangs, "work", work_of_one_rank_fails)
        gang = new_gang("one-rank", base, tmp_path)
    cloudpickle.unregister_pickle_by_value(this)
    for seed, kind in ((1, FailureClass.BAD_DATA), (2, FailureClass.OUT_OF_MEMORY)):
        gang.post(Train(4, FOREVER, Begin(replace(base, {"data.split_seed": seed}))))
        failed = gang.reply()
        assert isinstance(failed, Failed) and (failed.kind, failed.rank) == (kind, 1)
        trained(gang, base, 1, 2)  # the gang is as good as before
    gang.post(Train(4, FOREVER, Begin(replace(base, {"data.split_seed": 3}))))
    with pytest.raises(GangError) as caught:
        gang.reply()
    assert caught.value.failed.kind is FailureClass.BUG and "middle of an epoch" in caught.value.failed.message
    assert gang.close()


def test_a_gang_whose_resources_never_come_fails_in_time(
    ray_session: None, small_run: Settings, tmp_path: Path
) -> None:
    never = {"study.resources_per_worker": {"CPU": 64}, "study.start_timeout": 12.0, "study.capacity_timeout": 14.0}
    start = time.monotonic()
    gang = WorkerGang("too-large", two_workers(small_run, **never), str(tmp_path), start_mailbox_hub(1))
    with pytest.raises(GangError) as caught:
        gang.wait_until_ready()
    assert 12 <= time.monotonic() - start < 25
    failed = caught.value.failed
    assert failed.kind is FailureClass.CANNOT_START and "2 workers of {'CPU': 64.0}" in failed.message, failed
    assert gang.close() and resources_come_back(2)


def test_the_time_to_start_begins_when_the_machines_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a limit. That nobody waits for one is seen for a moment whenever Train asks anew."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    settings = replace(Settings(), {"study.start_timeout": 10, "study.capacity_timeout": 100})

    def last_wait(waiting: Callable[[float], bool]) -> float:
        nonlocal now
        now = 0.0
        patience = Patience(settings)
        while patience.still(waiting(now)):
            now += 1.0
        return patience.waited

    assert last_wait(lambda now: False) == 10
    assert last_wait(lambda now: now < 50) == 49 + 10
    assert last_wait(lambda now: now % 8 > 0) == last_wait(lambda now: True) == 100
    settings = replace(settings, {"study.start_timeout": 200})
    assert last_wait(lambda now: True) == 200


def test_a_gang_of_one_that_hangs_is_known_not_to_have_ended(
    small_run: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(Worker, "carry_out", lambda self, order: release.wait(60))
    gang = LocalGang("hung", replace(small_run, {"study.step_timeout": 1}))
    gang.wait_until_ready()
    gang.post(Train(1, FOREVER, Begin(small_run)))
    with pytest.raises(GangError, match="study.step_timeout=1 s") as caught:
        gang.reply()
    assert caught.value.failed.kind is FailureClass.HUNG and "in wait" in caught.value.failed.traceback
    assert not gang.close(timeout_s=0.1) and not gang.alive
    release.set()
    gang.thread.join(10)
    assert not gang.thread.is_alive()


@pytest.mark.slow
def test_workers_that_hang_are_killed(ray_session: None, small_run: Settings, tmp_path: Path) -> None:
    base = two_workers(small_run, **{"study.step_timeout": 10})
    gang = new_gang("hung", base, tmp_path)
    trained(gang, base, 1)
    for pid in worker_processes():
        os.kill(pid, signal.SIGSTOP)
    gang.post(Train(2, FOREVER))
    with pytest.raises(GangError, match="study.step_timeout=10 s"):
        gang.reply()
    assert gang.close() and resources_come_back(2)


def test_a_trial_goes_on_bit_for_bit_in_another_process_and_leaves_nothing_behind(
    ray_session: None, small_run: Settings, tmp_path: Path
) -> None:
    kind = tune.with_parameters(Trial, settings=small_run, folder=str(tmp_path), hub=None)
    remote = ray.remote(num_cpus=1)(kind)

    def one_step(actor: Any) -> tuple[Report | Failure, int]:
        while True:
            result = ray.get(actor.train.remote(), timeout=60)
            said = from_result(result)
            if not isinstance(said, Progress):  # which a slow machine tells of in between
                return said, result["pid"]

    whole = remote.remote(config=Suggestion(0, 1, {}, {"train.epochs": 12}).to_config())
    first, pid = one_step(whole)
    assert isinstance(first, Report) and (first.epoch, first.checkpoint) == (3, "trials/t0000/epoch_00003")
    for epoch in (9, 12):
        last, _ = one_step(whole)
        assert isinstance(last, Report) and last.epoch == epoch
    assert isinstance(last, Report) and last.finished
    os.kill(pid, signal.SIGKILL)
    assert resources_come_back(2)

    after = Suggestion(1, 2, {}, {"train.epochs": 12}, epoch=3, checkpoint=first.checkpoint)
    second = remote.remote(config=after.to_config())
    for epoch in (9, 12):
        last, pid = one_step(second)
        assert isinstance(last, Report) and last.epoch == epoch
    for name in ("epoch_00009", "epoch_00012"):
        a, b = (checkpoint.load(tmp_path / f"trials/t000{number}/{name}") for number in (0, 1))
        assert_equal(a, b)
    ray.get(second.stop.remote(), timeout=30)
    ray.kill(second)
    assert resources_come_back(2)


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


def test_progress_is_a_reply_before_the_reply_and_the_newest_counts() -> None:
    async def play() -> None:
        mailbox = Mailbox(workers=1)
        first = asyncio.create_task(mailbox.exchange(0, "ready"))
        await asyncio.sleep(0)
        assert await mailbox.reply_to(-1) == "ready"
        asked = asyncio.create_task(mailbox.ask(0, "order 0"))
        assert await first == "order 0"
        mailbox.progress(0, "a tenth")
        assert await asked == "a tenth"
        mailbox.progress(0, "a fifth")
        mailbox.progress(0, "a half")
        assert await mailbox.reply_to(0) == "a half"
        mailbox.progress(0, "nearly all")  # and nobody asks before the reply is there
        waiting = asyncio.create_task(mailbox.exchange(1, "reply 0"))
        await asyncio.sleep(0)
        mailbox.progress(0, "late")  # calls of an async actor may swap
        assert await mailbox.reply_to(0) == "reply 0"
        mailbox.progress(0, "later")
        assert not mailbox.replies and not mailbox.passing
        mailbox.end("dead")
        mailbox.progress(1, "a tenth")
        assert await mailbox.reply_to(1) == "dead"
        await asyncio.wait([waiting])

    asyncio.run(play())


@pytest.mark.parametrize("gangs", [1, 3])
def test_gangs_wait_for_each_other_before_their_first_trial(ray_session: None, gangs: int) -> None:
    hub = start_mailbox_hub(gangs)
    early = [hub.wait_for_all.remote(60) for _ in range(gangs - 1)]
    done, _ = ray.wait(early, timeout=1) if early else ([], [])
    assert not done  # they wait for the last one
    ray.get([*early, hub.wait_for_all.remote(60)], timeout=20)
    ray.get(hub.wait_for_all.remote(60), timeout=5)  # a gang that replaces a dead one waits for nobody


def test_the_startup_barrier_has_an_end(ray_session: None) -> None:
    ray.get(start_mailbox_hub(2).wait_for_all.remote(0.2), timeout=20)


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


def test_workers_that_die_at_their_start_are_no_reason_to_start_others_untold() -> None:
    """Those who wait for resources are: Train asks again, as often as it is told to."""
    policy = StartOnce(create_failure_policy(ray.train.FailureConfig(max_failures=0, controller_failure_limit=3)))
    died = ControllerError(WorkerGroupStartupFailedError("One of the worker actors failed to initialize"))
    assert policy.make_decision(died) is FailureDecision.RAISE
    waits = ControllerError(WorkerGroupStartupTimeoutError(2))
    decisions = [policy.make_decision(waits) for _ in range(4)]
    assert decisions == [FailureDecision.RETRY] * 3 + [FailureDecision.RAISE]
