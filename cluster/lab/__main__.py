"""A cluster on one machine, to try before paying: python -m cluster.lab up aws

python -m cluster.lab up {aws|on_prem} [--mlflow]    network, AWS and, if asked for, MLflow; then `ray up`
python -m cluster.lab exec COMMAND ...               on its laptop, e.g. exec ray exec /tmp/cluster.yaml 'ray status'
python -m cluster.lab nodes                          what AWS says of its instances
python -m cluster.lab reclaim INSTANCE [--notice S]  AWS takes an instance away, S seconds after it has told Ray
python -m cluster.lab down                           all of it, at once

Needs root on Linux; README.md, beside this file, says what else, and what to look out for.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from cluster.lab.supervisor import FILE, UP
from cluster.lab.system import LabError
from cluster.lab.world import World

MISTAKE = 2
RAY_UP_SECONDS = 1200.0


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/aae-lab"), help="of its state and logs")
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="bring a cluster up")
    up.add_argument("kind", choices=("aws", "on_prem"))
    up.add_argument("--mlflow", action="store_true", help="with the team's tracking server, on Postgres and S3")
    up.add_argument("--machines-only", action="store_true", help="without `ray up`")
    run = actions.add_parser("exec", help="run a command on the lab's laptop")
    run.add_argument("command", nargs=argparse.REMAINDER)
    actions.add_parser("nodes", help="list instances")
    reclaim = actions.add_parser("reclaim", help="take an instance away")
    reclaim.add_argument("instance", help="its id, as `nodes` lists it")
    reclaim.add_argument("--notice", type=int, help="seconds between Ray's being told and the end; not told if none")
    actions.add_parser("down", help="end all of it")
    given = parser.parse_args(arguments)
    world = World(given.folder)
    try:
        if given.action == "up":
            world.up(given.kind, given.mlflow)
            if not given.machines_only:
                world.run(*UP[given.kind], "--yes", "--no-config-cache", seconds=RAY_UP_SECONDS)
            print(f"up; logs are in {world.folder}. Try: python -m cluster.lab exec ray exec {FILE} 'ray status'")
        elif given.action == "exec":
            command = world.command(*(given.command or ["bash"]))
            os.execvp(command[0], command)
        elif given.action == "nodes":
            for instance in world.instances():
                print("  ".join(instance[key] for key in ("id", "state", "type", "market", "address")))
        elif given.action == "reclaim":
            take_away(world, given.instance, given.notice)
        else:
            world.down()
    except LabError as error:
        refuse(str(error))


def take_away(world: World, identity: str, notice: int | None) -> None:
    running = {i["id"]: i["address"] for i in world.instances() if i["state"] == "running"}
    if identity not in running:
        raise LabError(f"{identity} is no running instance; there are {', '.join(running) or 'none'}")
    if notice is not None:
        world.warn(running[identity], notice)
        time.sleep(notice)
    world.terminate(identity)


def refuse(sentence: str) -> NoReturn:
    print(f"cluster.lab: {sentence}", file=sys.stderr)
    raise SystemExit(MISTAKE)


if __name__ == "__main__":
    main(sys.argv[1:])
