"""The half of EC2 that moto has not: every instance that it calls running becomes a machine of the lab."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.lab.node import Machine, Spec

PREFIX = 16  # of moto's default VPC, 172.31.0.0/16
REGION = "us-west-2"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_REGION": REGION,
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "aae"
PROFILES = ("aae-ray-head", "aae-ray-worker")


def client(service: str, endpoint: str) -> Any:
    """A client of boto3 that asks the lab's AWS and nobody else, whatever the environment says."""
    import boto3

    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


def prepare(endpoint: str) -> None:
    """What cluster/gpu.yaml takes for granted: a bucket, and two instance profiles, which moto refuses if unknown."""
    client("s3", endpoint).create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    for name in PROFILES:
        client("iam", endpoint).create_instance_profile(InstanceProfileName=name)


def instances(ec2: Any) -> list[dict[str, Any]]:
    """All instances, in EC2's words, those that ended as well."""
    reservations = ec2.describe_instances()["Reservations"]
    return [instance for reservation in reservations for instance in reservation["Instances"]]


def node_type(instance: dict[str, Any]) -> str:
    """Of the cluster's file, such as head or gpu-spot."""
    tags: dict[str, str] = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", ())}
    return tags.get("ray-user-node-type", "")


def machine_name(instance: dict[str, Any]) -> str:
    return f"i{instance['InstanceId'][-8:]}"


class Follower:
    """Keeps the machines of the lab as EC2 says they are."""

    def __init__(
        self,
        endpoint: str,
        key: Path,
        folder: Path,
        spec_of: Callable[[str, str, str], Spec],
        log: Callable[[str], None],
    ) -> None:
        """`key` is the private half of the key pair that `ray up` makes; `spec_of` makes a spec of a machine's name,
        its address with prefix, and the public half."""
        self.key, self.folder, self.spec_of, self.log = key, folder, spec_of, log
        self.ec2 = client("ec2", endpoint)
        self.machines: dict[str, Machine] = {}

    def listed(self) -> list[dict[str, str]]:
        """Of each instance: its id, its type in the cluster's file, state, market, address and machine's name."""
        return [
            {
                "id": instance["InstanceId"],
                "type": node_type(instance),
                "state": instance["State"]["Name"],
                "market": instance.get("InstanceLifecycle", "on-demand"),
                "address": instance.get("PrivateIpAddress", ""),
                "name": machine_name(instance),
            }
            for instance in instances(self.ec2)
        ]

    def step(self) -> None:
        """Look once. Raises LabError when a machine cannot be booted."""
        for instance in instances(self.ec2):
            identity, state = instance["InstanceId"], instance["State"]["Name"]
            machine = self.machines.get(identity)
            if state == "running" and machine is None:
                public = self._public_key()
                if public is None:
                    continue
                begun = time.monotonic()
                name, address = machine_name(instance), f"{instance['PrivateIpAddress']}/{PREFIX}"
                machine = self.machines[identity] = Machine(self.spec_of(name, address, public), self.folder / name)
                machine.boot()
                self.log(f"{name} ({node_type(instance) or 'no type yet'}) is up at {address}, after "
                         f"{time.monotonic() - begun:.1f} s")  # fmt: skip
            elif state == "running" and machine is not None and machine.ended:
                # It was shut down from within. gpu.yaml's instances say InstanceInitiatedShutdownBehavior: terminate.
                self.ec2.terminate_instances(InstanceIds=[identity])
            elif state != "running" and machine is not None:
                machine.pull_the_plug()
                del self.machines[identity]
                self.log(f"{machine.spec.name} is gone: {state}")

    def _public_key(self) -> str | None:
        """None while `ray up` has not written the key."""
        if not self.key.exists():
            return None
        done = subprocess.run(["ssh-keygen", "-y", "-f", self.key], capture_output=True, text=True, timeout=30)
        return done.stdout if done.returncode == 0 else None
