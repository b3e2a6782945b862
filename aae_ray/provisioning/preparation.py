"""What an account must have before the first `ray up`, made once: a token, a bucket, roles, a security group.

Nothing of it costs money by itself. What is there already stays, but for the policies that the two roles have by an
earlier call for the same cluster, region and bucket, which become those of the files in cluster/iam.
"""

import ipaddress
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aae_ray.errors import UserError
from aae_ray.provisioning.aws import SPOT_ROLE, SSH_PORT, Account, sources
from aae_ray.provisioning.cluster_file import SPOT, ClusterFile

NARROWEST = {4: 24, 6: 48}  # bits of a network that may be let in: a wider one is not yours
TOKEN_BYTES = 32


@dataclass(frozen=True)
class Made:
    """One thing that a cluster needs: whether it was made just now, or was there."""

    what: str
    new: bool


def prepare(file: ClusterFile, bucket: str, ssh_from: str, token: Path) -> Iterator[Made]:
    """Make what is missing, one after the other.

    Raises UserError for an address that lets in too many, and when AWS refuses or does not answer.
    """
    source = network(ssh_from)
    yield make_token(token)
    try:
        account = Account(file.region)
        identity = account.identity()
        _, partition, *_ = identity["Arn"].split(":")
        names = {"BUCKET": bucket, "ACCOUNT": identity["Account"], "REGION": file.region}
        names |= {"CLUSTER": str(file.content["cluster_name"]), "arn:aws:": f"arn:{partition}:"}
        yield _bucket(account, bucket)
        roles = _roles(file)
        workers = sorted(kind for kind in roles if kind != file.head.profile)
        for kind, policy in roles.items():
            text = read_policy(file.path.parent / "iam" / policy, names, workers)
            yield _role(account, kind, policy_name(file, bucket), text)
        if any(kind.market == SPOT for kind in file.node_types):
            yield _spot_role(account)
        yield _security_group(account, file.security_group, source)
    except ClientError as error:
        told = error.response.get("Error", {})
        raise UserError(
            f"AWS refuses {error.operation_name}: {told.get('Code')} {told.get('Message', '')}".strip()
        ) from None
    except BotoCoreError as error:
        raise UserError(f"AWS does not answer, or not to you: {error}") from None


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The addresses that may open ssh. Raises UserError for what is none, or holds more than an office."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        raise UserError(f"--ssh-from {text}: expected your address and /32, such as 203.0.113.7/32") from None
    if found.prefixlen < NARROWEST[found.version]:
        raise UserError(
            f"--ssh-from {text} lets in {found.num_addresses:,} addresses; give your own, such as 203.0.113.7/32, or a "
            f"network of at most /{NARROWEST[found.version]}"
        )
    return found


def policy_name(file: ClusterFile, bucket: str) -> str:
    """What the policy for a cluster and a bucket is called in its role: others of the role stay as they are."""
    return re.sub(r"[^a-zA-Z0-9_.+-]", "-", f"aae-ray+{file.content['cluster_name']}+{file.region}+{bucket}")


def read_policy(path: Path, names: dict[str, str], workers: list[str]) -> str:
    """A policy of cluster/iam with the names of this account in place of BUCKET, ACCOUNT, REGION and CLUSTER. Who may
    give a role to machines may give those of the cluster's workers."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for name, value in names.items():
        text = text.replace(name, value)
    policy = json.loads(text)
    for statement in policy["Statement"]:
        if workers and "iam:PassRole" in statement["Action"]:
            roles = f"{names['arn:aws:']}iam::{names['ACCOUNT']}:role"
            statement["Resource"] = [f"{roles}/{worker}" for worker in workers]
    return json.dumps(policy)


def make_token(path: Path) -> Made:
    """The secret by which nodes, drivers and jobs know each other, in a file that its owner alone can read."""
    if path.exists():
        path.chmod(0o600)
        return Made(f"token {path}", new=False)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(TOKEN_BYTES))
    return Made(f"token {path}", new=True)


def _roles(file: ClusterFile) -> dict[str, str]:
    """The policy's file for each instance profile: the head may start machines, the others may not."""
    policies = {kind.profile: "worker.json" for kind in file.node_types[1:] if kind.profile}
    if file.head.profile in policies:
        raise UserError(f"{file.path}: head and workers share the profile {file.head.profile}; give the head its own")
    return {**policies, str(file.head.profile): "head.json"} if file.head.profile else policies


def _bucket(account: Account, name: str) -> Made:
    s3 = account.client("s3")
    try:
        s3.head_bucket(Bucket=name)
        return Made(f"bucket {name}", new=False)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
            raise
    region: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": account.region}}
    s3.create_bucket(Bucket=name, **({} if account.region == "us-east-1" else region))
    closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
    return Made(f"bucket {name}, closed to the public", new=True)


def _role(account: Account, name: str, policy: str, text: str) -> Made:
    """A role of machines with a policy, in an instance profile of the same name."""
    iam, new = account.client("iam"), False
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
    }
    try:
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        new = True
    except iam.exceptions.EntityAlreadyExistsException:
        pass
    iam.put_role_policy(RoleName=name, PolicyName=policy, PolicyDocument=text)
    try:
        iam.create_instance_profile(InstanceProfileName=name)
        new = True
    except iam.exceptions.EntityAlreadyExistsException:
        pass
    if not iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return Made(f"role and instance profile {name}", new)


def _spot_role(account: Account) -> Made:
    """The role by which EC2 itself starts machines on spot, of which an account has one."""
    iam = account.client("iam")
    try:
        iam.get_role(RoleName=SPOT_ROLE)
        return Made(f"role {SPOT_ROLE}", new=False)
    except iam.exceptions.NoSuchEntityException:
        iam.create_service_linked_role(AWSServiceName="spot.amazonaws.com")
        return Made(f"role {SPOT_ROLE}", new=True)


def _security_group(account: Account, name: str, source: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Made:
    """A group of the default VPC that admits its own members, and ssh from a network."""
    ec2 = account.client("ec2")
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise UserError(
            f"{account.region} has no default VPC; make a security group {name} in yours, and give SubnetIds and "
            "SecurityGroupIds in each node_config"
        )
    vpc = vpcs[0]["VpcId"]
    filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
    groups, new = ec2.describe_security_groups(Filters=filters)["SecurityGroups"], False
    if groups:
        group, rules = groups[0]["GroupId"], groups[0]["IpPermissions"]
    else:
        text = "Ray clusters of aae_ray: ssh from stated addresses, all else among themselves"
        group, rules, new = ec2.create_security_group(GroupName=name, Description=text, VpcId=vpc)["GroupId"], [], True
    ranges = (
        {"IpRanges": [{"CidrIp": str(source)}]} if source.version == 4 else {"Ipv6Ranges": [{"CidrIpv6": str(source)}]}
    )
    wanted: list[dict[str, Any]] = []
    if not any(pair["GroupId"] == group for rule in rules for pair in rule["UserIdGroupPairs"]):
        wanted.append({"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]})
    if str(source) not in {known for rule in rules for known in sources(rule)}:
        wanted.append({"IpProtocol": "tcp", "FromPort": SSH_PORT, "ToPort": SSH_PORT, **ranges})
    if wanted:
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=wanted)
    return Made(f"security group {name}, ssh from {source}", new or bool(wanted))
