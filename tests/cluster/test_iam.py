"""cluster/iam: each policy allows what the mock of AWS was asked by the one who has it, and nothing else."""

import fnmatch
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aae_ray.provisioning.cluster_file import ClusterFile
from tests.cluster.aws_requests import Request
from tests.cluster.laptop import BUCKET, REGION, REPOSITORY, Life

pytestmark = pytest.mark.timeout(900)  # the first test that asks for a cluster's life waits for it

ACCOUNT, CLUSTER = "123456789012", "aae-gpu"
FOLDER = REPOSITORY / "cluster/iam"
KEYS = {"prepare": "OWNER", "user": "LAPTOP", "head": "HEAD"}  # who has a policy, by the key in the mock's record
# Asked by pyarrow, for the journal and the checkpoints of a study, which no test here runs.
BY_STUDIES = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
BY_STUDIES |= {"s3:ListBucket", "s3:GetBucketLocation"}
NEEDS_NO_RIGHT = {"sts:GetCallerIdentity"}
SPOT_ROLE = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
# What makes the role for spot where an account has none; the mock's account has one.
ONCE_IN_AN_ACCOUNT = {"iam:CreateServiceLinkedRole"}

Asked = tuple[str, str, dict[str, str]]  # action, resource, and what conditions see


def policy(name: str) -> dict[str, Any]:
    text = (FOLDER / f"{name}.json").read_text()
    for placeholder, value in {"BUCKET": BUCKET, "ACCOUNT": ACCOUNT, "REGION": REGION, "CLUSTER": CLUSTER}.items():
        text = text.replace(placeholder, value)
    content: dict[str, Any] = json.loads(text)
    return content


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allows(rules: dict[str, Any], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a policy of statements that allow, with conditions of equal strings, allows one request."""
    for statement in rules["Statement"]:
        assert statement["Effect"] == "Allow"
        conditions = statement.get("Condition", {"StringEquals": {}})
        assert set(conditions) == {"StringEquals"}, "this test understands no other condition"
        if (
            action in listed(statement["Action"])
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
            and all(context.get(key) == value for key, value in conditions["StringEquals"].items())
        ):
            return True
    return False


def asked_by(request: Request) -> list[Asked]:
    """What IAM has to allow for a request, with what EC2 asks for in its name."""
    ec2, given = f"arn:aws:ec2:{REGION}:{ACCOUNT}", request.parameters
    service, _, verb = request.action.partition(":")
    context = {"aws:RequestedRegion": REGION}
    if request.action == "ec2:RunInstances":
        role = f"arn:aws:iam::{ACCOUNT}:role/{given['IamInstanceProfile.Name']}"
        asked: list[Asked] = [(request.action, f"{ec2}:instance/*", context)]
        asked += [("iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})]
        if given["ImageId"].startswith("resolve:ssm:"):
            place = given["ImageId"].removeprefix("resolve:ssm:")
            asked += [("ssm:GetParameters", f"arn:aws:ssm:{REGION}::parameter{place}", context)]
        if "TagSpecification.1.ResourceType" in given:
            asked += [("ec2:CreateTags", f"{ec2}:instance/*", {"ec2:CreateAction": "RunInstances"})]
        return asked
    if verb in ("TerminateInstances", "CreateTags"):
        ours = {"aws:ResourceTag/ray-cluster-name": CLUSTER}  # the mock has no other machines
        return [(request.action, f"{ec2}:instance/i-1", ours)]
    if verb == "AddRoleToInstanceProfile":
        profile = f"arn:aws:iam::{ACCOUNT}:instance-profile/{given['InstanceProfileName']}"
        return [
            (request.action, profile, context),
            ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{given['RoleName']}", {}),
        ]
    resources = {
        "s3": f"arn:aws:s3:::{BUCKET}",
        "CreateKeyPair": f"{ec2}:key-pair/{given.get('KeyName')}",
        "CreateSecurityGroup": f"{ec2}:security-group/*",
        "AuthorizeSecurityGroupIngress": f"{ec2}:security-group/sg-1",
        "GetRole": SPOT_ROLE,
    }
    named = "InstanceProfileName" in given
    kind = "instance-profile" if named else "role"
    thing = f"arn:aws:iam::{ACCOUNT}:{kind}/{given.get('InstanceProfileName') or given.get('RoleName')}"
    place = resources.get(verb) or resources.get(service) or (thing if service == "iam" else "*")
    return [] if request.action in NEEDS_NO_RIGHT else [(request.action, place, context)]


@pytest.mark.parametrize("name", KEYS)
def test_a_policy_allows_all_that_was_asked(name: str, life: Life) -> None:
    requests = [request for request in life.asked if request.key == KEYS[name]]
    assert requests, f"nobody asked with the key {KEYS[name]}"
    rules = policy(name)
    refused = {asked[:2] for request in requests for asked in asked_by(request) if not allows(rules, *asked)}
    assert not refused


@pytest.mark.parametrize("name", KEYS)
def test_a_policy_allows_nothing_that_was_not_asked(name: str, life: Life) -> None:
    needed = {asked[0] for request in life.asked if request.key == KEYS[name] for asked in asked_by(request)}
    needed |= ONCE_IN_AN_ACCOUNT if name == "prepare" else BY_STUDIES
    given = {action for statement in policy(name)["Statement"] for action in listed(statement["Action"])}
    assert given == needed


def test_workers_may_use_the_bucket_and_nothing_else() -> None:
    statements = policy("worker")["Statement"]
    assert {action for statement in statements for action in listed(statement["Action"])} == BY_STUDIES
    places = {place for statement in statements for place in listed(statement["Resource"])}
    assert places == {f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"}


@pytest.mark.parametrize("name", ["head", "user"])
@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("ec2:TerminateInstances", "instance/i-1", {"aws:ResourceTag/ray-cluster-name": "of-others"}),
        ("ec2:CreateTags", "instance/i-1", {}),  # by which a machine of others would become ours
        ("ec2:RunInstances", "instance/*", {"aws:RequestedRegion": "eu-west-1"}),
        ("iam:PassRole", "role/administrator", {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", "role/aae-ray-worker", {"iam:PassedToService": "lambda.amazonaws.com"}),
        ("s3:GetObject", "of-others/key", {}),
    ],
)
def test_what_is_not_of_the_cluster_is_out_of_reach(
    name: str, action: str, resource: str, context: dict[str, str]
) -> None:
    place = {"ec2": f"arn:aws:ec2:{REGION}:{ACCOUNT}:", "iam": f"arn:aws:iam::{ACCOUNT}:", "s3": "arn:aws:s3:::"}
    assert not allows(policy(name), action, place[action.partition(":")[0]] + resource, context)


def test_the_head_may_not_start_another_head() -> None:
    passed = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert not allows(policy("head"), "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/aae-ray-head", passed)


def test_roles_got_the_policies_with_the_names_of_the_account(endpoint: str, life: Life) -> None:
    from tests.cluster.laptop import aws_client

    iam = aws_client("iam", endpoint)
    for name in ("head", "worker"):
        (made,) = iam.list_role_policies(RoleName=f"aae-ray-{name}")["PolicyNames"]
        stored = iam.get_role_policy(RoleName=f"aae-ray-{name}", PolicyName=made)["PolicyDocument"]
        assert stored == policy(name)
        assert not any(placeholder in json.dumps(stored) for placeholder in ("BUCKET", "ACCOUNT", "REGION", "CLUSTER"))
        trust = iam.get_role(RoleName=f"aae-ray-{name}")["Role"]["AssumeRolePolicyDocument"]
        assert trust["Statement"][0]["Principal"] == {"Service": "ec2.amazonaws.com"}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """IAM of an empty account, mocked in this process."""
    moto = pytest.importorskip("moto", reason="needs moto, the mock of AWS: pip install -e '.[test]'")
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws():
        import boto3

        yield boto3.client("iam")


def prepared(bucket: str, tmp_path: Path, **changes: str) -> None:
    """What `prepare` makes for cluster/gpu.yaml with some of its text replaced."""
    from aae_ray.provisioning.preparation import prepare

    text = (REPOSITORY / "cluster/gpu.yaml").read_text()
    for right, wrong in changes.items():
        text = text.replace(right.replace("_", "-"), wrong)
    content = yaml.safe_load(text)
    del content["available_node_types"]["gpu-spot"]  # whose role the mock does not know
    for _ in prepare(ClusterFile(REPOSITORY / "cluster/gpu.yaml", content), bucket, "203.0.113.7/32", tmp_path / "t"):
        pass


def granted(iam: Any, role: str) -> list[dict[str, Any]]:
    """The statements of all policies of a role."""
    names = iam.list_role_policies(RoleName=role)["PolicyNames"]
    policies = [iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"] for name in names]
    return [statement for policy in policies for statement in policy["Statement"]]


def test_another_bucket_cluster_or_region_takes_nothing_from_the_first(account: Any, tmp_path: Path) -> None:
    before: dict[str, list[dict[str, Any]]] = {"aae-ray-head": [], "aae-ray-worker": []}
    for bucket, changes in (
        ("first", {}),
        ("second", {}),
        ("first", {"aae_gpu": "other cluster"}),
        ("first", {"us_west_2": "eu-west-1"}),
    ):
        prepared(bucket, tmp_path, **changes)
        for role, statements in before.items():
            now = granted(account, role)
            assert all(statement in now for statement in statements)
            assert any(f"arn:aws:s3:::{bucket}" in listed(statement["Resource"]) for statement in now)
            before[role] = now
    prepared("first", tmp_path)
    assert {role: granted(account, role) for role in before} == before, "the same again adds nothing"


def test_the_head_may_give_workers_the_role_that_the_file_names(account: Any, tmp_path: Path) -> None:
    prepared("ours", tmp_path, aae_ray_worker="team-worker", aae_ray_head="team-head")
    (passing,) = (each for each in granted(account, "team-head") if "iam:PassRole" in listed(each["Action"]))
    assert passing["Resource"] == [f"arn:aws:iam::{ACCOUNT}:role/team-worker"]
