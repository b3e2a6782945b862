"""The real thing in miniature: cluster/gpu.yaml on a mock of AWS whose instances are network namespaces with real SSH.

A gang of two workers on two nodes, storage on S3, MLflow on Postgres with accounts; one instance is taken away with
notice and one without; the study ends complete, and the cluster goes without a trace.
"""

import time
from collections.abc import Iterator

import pytest

from cluster.lab.node import user_id_is_taken
from cluster.lab.services import missing_for_mlflow
from cluster.lab.supervisor import FILE, NO_SPOT_FILE
from cluster.lab.system import missing
from cluster.lab.world import World
from tests.cluster.lab_study import (
    HeadStudy,
    check_complete,
    check_mlflow,
    failures,
    last_epoch,
    mlflow_runs,
    ray_up,
    until,
)

reason = missing() or user_id_is_taken() or missing_for_mlflow()
pytestmark = [
    pytest.mark.skipif(reason is not None, reason=str(reason)),
    pytest.mark.slow,
    pytest.mark.timeout(14400),
]
NODES_SECONDS = 1200.0
PROGRESS_SECONDS = 1500.0
NOTICE_SECONDS = 20
GOES_ON_SECONDS = 60.0  # after the machines are back
TRIALS, EPOCHS = 3, 243
ON_GPU_NODES = ("study.resources_per_worker.GPU=1", "train.device=cpu")  # whose GPU is a number


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    lab = World(tmp_path_factory.mktemp("aws"))
    lab.up("aws", with_mlflow=True)
    try:
        ray_up(lab)
        yield lab
    finally:
        lab.down()


def workers(world: World) -> list[dict[str, str]]:
    return [i for i in world.instances() if i["state"] == "running" and i["type"] not in ("", "head")]


def test_a_study_outlives_its_instances(world: World) -> None:
    assert workers(world) == []
    began = time.monotonic()

    def say(text: str) -> None:
        with (world.folder / "times.log").open("a") as log:
            log.write(f"{time.monotonic() - began:6.0f} s  {text}\n")

    study = HeadStudy(
        world, "s3://aae/studies", "study.name=lab", "study.workers_per_trial=2",
        *ON_GPU_NODES, f"study.budget.trials={TRIALS}", f"train.epochs={EPOCHS}",
    )  # fmt: skip
    try:
        until("two workers", lambda: len(workers(world)) == 2, NODES_SECONDS, world)
        say("two instances run")
        until("a checkpoint of the first trial", lambda: last_epoch(study.events(), 0), PROGRESS_SECONDS, world)
        say("the first trial has reported")

        victim = workers(world)[0]
        world.warn(victim["address"], NOTICE_SECONDS)
        time.sleep(NOTICE_SECONDS)
        world.terminate(victim["id"])
        say("an instance was taken away, with notice")
        until("a failed attempt", lambda: failures(study.events()), PROGRESS_SECONDS, world)
        before = len(study.events())
        say(f"that attempt has ended: {failures(study.events())}")
        until(
            "two workers again",
            lambda: len(now := workers(world)) == 2 and victim["id"] not in {i["id"] for i in now},
            NODES_SECONDS, world,
        )  # fmt: skip
        back = time.monotonic()
        say("two instances run again")
        until(
            "a report after it",
            lambda: any(event["event"] == "reported" for event in study.events()[before:]),
            PROGRESS_SECONDS, world,
        )  # fmt: skip
        assert time.monotonic() - back < GOES_ON_SECONDS, "not within a minute of the machines' return"
        say("a trial goes on")

        known = len(failures(study.events()))
        world.terminate(workers(world)[-1]["id"])
        say("an instance was taken away, without notice")
        until("a failed attempt", lambda: len(failures(study.events())) > known, PROGRESS_SECONDS, world)
        say(f"that attempt has ended: {failures(study.events())}")
        study.wait(3 * PROGRESS_SECONDS)
        say("the study has ended")
    finally:
        study.kill()
    events = study.events()
    check_complete(events, TRIALS, EPOCHS)
    check_mlflow(mlflow_runs(world), TRIALS, EPOCHS)
    assert set(failures(events)) <= {"preempted", "lost_worker"}
    begun = [event["epoch"] for event in events if event["event"] == "attempt_started" and event["attempt"] > 1]
    assert any(epoch > 0 for epoch in begun), "no trial went on from a checkpoint"


def test_idle_instances_go_and_the_head_stays(world: World) -> None:
    until("no workers", lambda: not workers(world), NODES_SECONDS, world)
    running = [instance["type"] for instance in world.instances() if instance["state"] == "running"]
    assert running == ["head"]


def test_machines_on_demand_come_where_spot_cannot_be_had(world: World) -> None:
    world.run("touch", NO_SPOT_FILE, seconds=30)
    study = HeadStudy(
        world, "s3://aae/dear", "study.name=dear", "study.concurrent_trials=1", "study.cluster.on_demand_after=30",
        *ON_GPU_NODES, "study.budget.trials=1", "train.epochs=9", "tracking.experiment=dear",
    )  # fmt: skip
    try:
        said = study.wait(2 * PROGRESS_SECONDS)
    finally:
        study.kill()
        world.run("rm", NO_SPOT_FILE, seconds=30)
    events = study.events()
    check_complete(events, trials=1, epochs=9)
    changes = [event for event in events if event["event"] == "machines_changed"]
    first = next(event for event in changes if event["asked_on_demand"])
    assert first["asked_on_demand"] == 1 and first["waited"] >= 30 and not first["present"], changes
    assert any(event["present"] == {"on-demand": 1} for event in changes), changes
    assert not any("spot" in event["present"] for event in changes), changes
    assert "h on-demand" in said, said  # in the report
    until("no workers", lambda: not workers(world), NODES_SECONDS, world)


def test_a_study_goes_on_at_a_new_head_as_if_nothing_had_been(world: World) -> None:
    """The head is taken away in mid-trial; the same command with --resume on a new cluster ends the study."""
    same = (
        "study.workers_per_trial=2", *ON_GPU_NODES, "study.budget.trials=2", "train.epochs=81",
        "tracking.experiment=head",
    )  # fmt: skip
    calm = HeadStudy(world, "s3://aae/calm", "study.name=calm", *same)
    try:
        calm.wait(3 * PROGRESS_SECONDS)
    finally:
        calm.kill()
    lost = HeadStudy(world, "s3://aae/lost", "study.name=lost", *same)
    try:
        until("a report of the second trial", lambda: last_epoch(lost.events(), 1), 2 * PROGRESS_SECONDS, world)
        (head,) = (i for i in world.instances() if i["type"] == "head" and i["state"] == "running")
        world.terminate(head["id"])
    finally:
        lost.kill()
    assert "study_ended" not in {event["event"] for event in lost.events()}
    for worker in workers(world):  # they have no head, and nobody who would end them
        world.terminate(worker["id"])
    ray_up(world)
    study_id = lost.events()[0]["study_id"]
    lost.begin(f"cd ~/aae-ray && python -m aae_ray.tune --resume s3://aae/lost/{study_id}")
    try:
        lost.wait(3 * PROGRESS_SECONDS)
    finally:
        lost.kill()
    for number in range(2):
        assert history(lost, number) == history(calm, number)


def history(study: HeadStudy, number: int) -> dict[int, dict[str, float]]:
    """Metrics of a trial by epoch, but for its speed. What was trained twice counts as it was last."""
    return {
        int(epoch["epoch"]): {name: value for name, value in epoch.items() if not name.startswith("perf/")}
        for event in study.events()
        if event["event"] == "reported" and event["number"] == number
        for epoch in event["history"]
    }


def test_down_leaves_nothing(world: World) -> None:
    world.run("ray", "down", FILE, "--yes", seconds=300)
    assert {instance["state"] for instance in world.instances()} == {"terminated"}
    until("no machine", lambda: not world.run("ip", "netns", "list", seconds=30).stdout.strip(), 60, world)
