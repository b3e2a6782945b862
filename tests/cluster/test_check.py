"""`python -m aae_ray.cluster check`: each thing that is missing is told, in a sentence, and in time."""

import functools
import http.server
import operator
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from aae_ray.cluster import cluster
from aae_ray.errors import UserError
from aae_ray.provisioning import on_prem
from aae_ray.provisioning.checks import bucket_of, check, check_here, check_versions, lock_problems
from aae_ray.provisioning.cluster_file import ClusterFile, NodeType, read_cluster_file
from aae_ray.provisioning.findings import Finding, State, is_ready, ok
from aae_ray.provisioning.lock import read_lock
from tests.cluster.laptop import REGION, REPOSITORY

aws = pytest.importorskip("aae_ray.provisioning.aws", reason="needs AWS's client: pip install -e '.[test]'")
preparation = pytest.importorskip("aae_ray.provisioning.preparation")
stub = pytest.importorskip("botocore.stub")

GPU_FILE = REPOSITORY / "cluster/gpu.yaml"


def gpu_file(*changes: tuple[str, str]) -> ClusterFile:
    """cluster/gpu.yaml with some of its text replaced."""
    text = GPU_FILE.read_text()
    for right, wrong in changes:
        assert right in text
        text = text.replace(right, wrong)
    return ClusterFile(GPU_FILE, yaml.safe_load(text))


class StubbedAccount:
    """An account whose answers are prepared, in their order: (service, call, answer or code of an error)."""

    def __init__(self, *answers: tuple[str, str, dict[str, Any] | str]) -> None:
        import boto3

        self.region = REGION
        self.clients = {
            service: boto3.client(service, region_name=REGION, aws_access_key_id="A", aws_secret_access_key="B")
            for service in {service for service, _, _ in answers}
        }
        for service, client in self.clients.items():
            stubber = stub.Stubber(client)
            for _, call, answer in (each for each in answers if each[0] == service):
                if isinstance(answer, str):
                    code, _, message = answer.partition(": ")
                    stubber.add_client_error(call, service_error_code=code, service_message=message)
                else:
                    stubber.add_response(call, answer)
            stubber.activate()

    def client(self, service: str) -> Any:
        return self.clients[service]


def only(findings: list[Finding]) -> tuple[State, str]:
    (finding,) = findings
    return finding.state, finding.text


# ------------------------------------------------------------------------------------------------------------ storage


@pytest.mark.parametrize(
    ("answer", "state", "words"),
    [
        ({"BucketRegion": REGION}, State.OK, "ours in us-west-2"),
        ({"BucketRegion": "eu-west-1"}, State.ADVICE, "in eu-west-1, the machines are in us-west-2"),
        ("404", State.MISSING, "there is no bucket ours"),
        ("403", State.MISSING, "of another account"),
    ],
)
def test_a_bucket(answer: dict[str, Any] | str, state: State, words: str) -> None:
    found, text = only(aws.bucket_findings(StubbedAccount(("s3", "head_bucket", answer)), "ours"))
    assert found is state
    assert words in text


@pytest.mark.parametrize("folder", ["studies", "gs://bucket/studies", "s3://", "s3://Upper/studies", "s3:/a/b"])
def test_a_folder_that_is_no_bucket_is_refused(folder: str) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"--folder {folder}: expected an address such as s3://BUCKET/studies")
    ):
        bucket_of(folder)


# ---------------------------------------------------------------------------------------------------- rights and doors


def test_profiles() -> None:
    role = {"RoleName": "r", "Path": "/", "RoleId": "A" * 16, "Arn": "arn:aws:iam::1:role/r", "CreateDate": 0}
    profile = {"Path": "/", "InstanceProfileId": "A" * 16, "Arn": "arn:aws:iam::1:instance-profile/x", "CreateDate": 0}
    there = {"InstanceProfile": {**profile, "InstanceProfileName": "aae-ray-head", "Roles": [role]}}
    findings = aws.profile_findings(
        StubbedAccount(("iam", "get_instance_profile", there), ("iam", "get_instance_profile", "NoSuchEntity")),
        gpu_file(),
    )
    assert [finding.state for finding in findings] == [State.OK, State.MISSING]
    assert "no instance profile aae-ray-worker" in findings[1].text
    empty = {"InstanceProfile": {**profile, "InstanceProfileName": "aae-ray-head", "Roles": []}}
    findings = aws.profile_findings(
        StubbedAccount(("iam", "get_instance_profile", empty), ("iam", "get_instance_profile", there)), gpu_file()
    )
    assert "has no role" in findings[0].text


ITSELF = {"IpProtocol": "-1", "IpRanges": [], "UserIdGroupPairs": [{"GroupId": "sg-1"}]}


def ssh(*sources: str, port: int = 22, protocol: str = "tcp") -> dict[str, Any]:
    ranges = {
        "IpRanges": [{"CidrIp": source} for source in sources if ":" not in source],
        "Ipv6Ranges": [{"CidrIpv6": source} for source in sources if ":" in source],
    }
    ports = {} if protocol == "-1" else {"FromPort": port, "ToPort": port}
    return {"IpProtocol": protocol, **ports, **ranges, "UserIdGroupPairs": []}


@pytest.mark.parametrize(
    ("rules", "state", "words"),
    [
        (
            None,
            State.MISSING,
            "there is no security group aae-ray: Ray would make it, and open ssh to the whole internet",
        ),
        ([], State.MISSING, "has no rules: Ray would add its own"),
        ([ITSELF, ssh("0.0.0.0/0")], State.MISSING, "is open to everyone (0.0.0.0/0, port 22)"),
        ([ITSELF, ssh("0.0.0.0/0", port=8265)], State.MISSING, "is open to everyone (0.0.0.0/0, port 8265)"),
        ([ITSELF, ssh("0.0.0.0/0", protocol="-1")], State.MISSING, "is open to everyone (0.0.0.0/0, all ports)"),
        ([ssh("203.0.113.7/32")], State.MISSING, "does not admit all traffic from itself"),
        ([ITSELF], State.MISSING, "admits ssh from no address"),
        ([ITSELF, ssh("203.0.113.7/32")], State.OK, "ssh from 203.0.113.7/32"),
        ([ITSELF, ssh("2001:db8::7/128")], State.OK, "ssh from 2001:db8::7/128"),
        ([ITSELF, ssh("203.0.113.7/32", "2001:db8::/48")], State.OK, "ssh from 203.0.113.7/32, 2001:db8::/48"),
        ([ITSELF, ssh("::/0")], State.MISSING, "is open to everyone (::/0, port 22)"),
    ],
)
def test_who_is_let_in(rules: list[dict[str, Any]] | None, state: State, words: str) -> None:
    group = {"GroupId": "sg-1", "GroupName": "aae-ray", "IpPermissions": rules or []}
    answer = {"SecurityGroups": [] if rules is None else [group]}
    found, text = only(aws.group_findings(StubbedAccount(("ec2", "describe_security_groups", answer)), gpu_file()))
    assert found is state
    assert words in text


def test_groups_that_the_file_names_are_asked_for() -> None:
    stated = ("IamInstanceProfile:", "SecurityGroupIds: [sg-1]\n      IamInstanceProfile:")
    group = {"GroupId": "sg-1", "GroupName": "mine", "IpPermissions": [ITSELF, ssh("10.0.0.0/16")]}
    account = StubbedAccount(("ec2", "describe_security_groups", {"SecurityGroups": [group]}))
    assert only(aws.group_findings(account, gpu_file(stated)))[0] is State.OK


# ----------------------------------------------------------------------------------------------------------- machines


def offers(*zones: str) -> dict[str, Any]:
    return {"InstanceTypeOfferings": [{"InstanceType": "x", "Location": zone} for zone in zones]}


@pytest.mark.parametrize(
    ("zones", "dry_run", "state", "words"),
    [
        (["us-west-2a"], "DryRunOperation", State.OK, "head: m7i.xlarge, on-demand, 1 at most"),
        ([], None, State.MISSING, "region us-west-2 has no m7i.xlarge"),
        (
            ["us-west-2d"],
            None,
            State.MISSING,
            "us-west-2a, us-west-2b, us-west-2c have no m7i.xlarge, but us-west-2d have",
        ),
        (["us-west-2a"], "UnauthorizedOperation", State.MISSING, "you may not start head"),
        (
            ["us-west-2a"],
            "InvalidAMIID.NotFound: no such image",
            State.MISSING,
            "refuses it: InvalidAMIID.NotFound no such",
        ),
    ],
)
def test_a_machine_is_asked_for_without_being_started(
    zones: list[str], dry_run: str | None, state: State, words: str
) -> None:
    file = gpu_file()
    only_head = {**file.content, "available_node_types": {"head": file.content["available_node_types"]["head"]}}
    answers: list[tuple[str, str, Any]] = [("ec2", "describe_instance_type_offerings", offers(*zones))]
    answers += [("ec2", "run_instances", dry_run)] if dry_run else []
    found, text = only(aws.machine_findings(StubbedAccount(*answers), ClusterFile(GPU_FILE, only_head)))
    assert found is state
    assert words in text


def test_a_key_that_ec2_does_not_know_is_told_without_asking_it() -> None:
    file = gpu_file(("InstanceType: g5", "InstanceTyp: g5"))
    spot = {"gpu-spot": file.content["available_node_types"]["gpu-spot"]}
    content = {**file.content, "available_node_types": spot}
    ec2: tuple[str, str, dict[str, Any]] = ("ec2", "describe_regions", {"Regions": []})  # which nobody asks
    found, text = only(aws.machine_findings(StubbedAccount(ec2), ClusterFile(GPU_FILE, content)))
    assert found is State.MISSING
    assert 'Unknown parameter in input: "InstanceTyp"' in text


def kind(instance_type: str, *, spot: bool, most: int = 4) -> NodeType:
    market: dict[str, Any] = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
    return NodeType("gpu", most, {"InstanceType": instance_type, **market})


@pytest.mark.parametrize(
    ("instance_type", "spot", "code"),
    [
        ("g5.xlarge", True, "L-3819A6DF"),
        ("g6e.xlarge", False, "L-DB2E81BA"),
        ("gr6.4xlarge", False, "L-DB2E81BA"),
        ("p4d.24xlarge", True, "L-7212CCBC"),
        ("p5.48xlarge", False, "L-417A185B"),
        ("m7i.xlarge", False, "L-1216C47A"),
        ("c7a.large", True, "L-34B43A08"),
        ("u-6tb1.metal", False, None),
        ("trn1.2xlarge", False, None),
        ("inf2.xlarge", False, None),
    ],
)
def test_the_quota_of_a_machine(instance_type: str, spot: bool, code: str | None) -> None:
    assert aws.quota_code(kind(instance_type, spot=spot)) == code


@pytest.mark.parametrize(
    ("allowed", "state", "words"),
    [
        (0, State.MISSING, "not one machine; ask for more: Service Quotas, Amazon EC2, L-3819A6DF"),
        (3, State.MISSING, "not one machine"),
        (8, State.ADVICE, "gpu asks for 4 x 4 vCPUs, quota L-3819A6DF allows 8: 2 at a time"),
        (16, State.OK, "allows 16"),
    ],
)
def test_a_quota(allowed: float, state: State, words: str) -> None:
    finding = aws.quota_finding(kind("g5.xlarge", spot=True), 4, allowed, "L-3819A6DF")
    assert finding.state is state
    assert words in finding.text


def test_quotas_are_asked_of_the_provider() -> None:
    types = [{"InstanceType": name, "VCpuInfo": {"DefaultVCpus": 4}} for name in ("g5.xlarge", "m7i.xlarge")]
    account = StubbedAccount(
        ("ec2", "describe_instance_types", {"InstanceTypes": types}),
        ("service-quotas", "get_service_quota", {"Quota": {"Value": 32.0}}),
        ("service-quotas", "get_service_quota", {"Quota": {"Value": 0.0}}),
        ("service-quotas", "get_service_quota", "NoSuchResourceException"),
    )
    states = [finding.state for finding in aws.quota_findings(account, gpu_file())]
    assert states == [State.OK, State.MISSING, State.ADVICE]


def test_spot_needs_its_role_and_tells_its_price() -> None:
    price = {"AvailabilityZone": "us-west-2a", "SpotPrice": "0.4321", "InstanceType": "g5.xlarge"}
    elsewhere = {**price, "AvailabilityZone": "us-west-2d", "SpotPrice": "9"}
    account = StubbedAccount(
        ("iam", "get_role", "NoSuchEntity"),
        ("ec2", "describe_spot_price_history", {"SpotPriceHistory": [price, elsewhere]}),
    )
    role, prices = aws.spot_findings(account, gpu_file())
    assert role.state is State.MISSING and "create-service-linked-role" in role.text
    assert prices.text == "g5.xlarge costs now, in US dollars an hour: us-west-2a 0.432"


# ------------------------------------------------------------------------------------------- credentials and deadlines


ERROR = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>{code}</Code><Message>no</Message></Error><RequestId>1</RequestId></ErrorResponse>"""


@contextmanager
def server(status: int, body: str) -> Iterator[str]:
    """The address of a server that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment with keys for AWS and nothing else of it."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "B")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr(aws, "ANSWER_SECONDS", 1)
    return monkeypatch


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ExpiredToken", "they have expired (ExpiredToken); log in again"),
        ("InvalidClientTokenId", "AWS does not know them (InvalidClientTokenId)"),
        ("SignatureDoesNotMatch", "AWS does not know them"),
    ],
)
def test_credentials_that_aws_refuses(code: str, words: str, keys: pytest.MonkeyPatch) -> None:
    with server(403, ERROR.format(code=code)) as address:
        keys.setenv("AWS_ENDPOINT_URL", address)
        first, rest = aws.check_account(gpu_file(), "ours")
    assert (first.subject, first.state) == ("credentials", State.MISSING)
    assert words in first.text
    assert rest.state is State.ADVICE, "the rest was asked in vain"


def test_no_credentials(keys: pytest.MonkeyPatch) -> None:
    keys.delenv("AWS_ACCESS_KEY_ID")
    assert "none are found; set AWS_PROFILE" in aws.check_account(gpu_file(), None)[0].text
    keys.setenv("AWS_ACCESS_KEY_ID", "A")
    keys.delenv("AWS_SECRET_ACCESS_KEY")
    assert "go together" in aws.check_account(gpu_file(), None)[0].text
    keys.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in aws.check_account(gpu_file(), None)[0].text


def test_aws_that_does_not_answer_is_waited_for_some_seconds(keys: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        first = aws.check_account(gpu_file(), "ours")[0]
    assert "AWS does not answer in region us-west-2" in first.text
    assert time.monotonic() - started < 30


IDENTITY = (
    '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
    "<Arn>arn:aws:iam::1:user/me</Arn><UserId>U</UserId><Account>1</Account></GetCallerIdentityResult>"
    "</GetCallerIdentityResponse>"
)


def test_aws_that_falls_silent_is_not_asked_again(keys: pytest.MonkeyPatch) -> None:
    """Each further question would take as long."""
    with server(200, IDENTITY) as sts, socket.create_server(("127.0.0.1", 0)) as silent:
        keys.setenv("AWS_ENDPOINT_URL_STS", sts)
        keys.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        _, bucket, *rest = aws.check_account(gpu_file(), "ours")
    assert "AWS does not answer" in bucket.text
    assert {finding.text.partition(",")[0] for finding in rest} == {"not asked"}
    assert time.monotonic() - started < 30


def test_a_server_that_answers_403_to_all_is_told_and_not_asked_for_ever(keys: pytest.MonkeyPatch) -> None:
    """Who may not ask learns nothing, and is told what right it takes; the cluster may be ready all the same."""
    with server(200, IDENTITY) as sts, server(403, ERROR.format(code="AccessDenied")) as rest:
        keys.setenv("AWS_ENDPOINT_URL_STS", sts)
        keys.setenv("AWS_ENDPOINT_URL", rest)
        findings = aws.check_account(gpu_file(), None)
    assert findings[0].text == "arn:aws:iam::1:user/me in us-west-2"
    assert {finding.subject for finding in findings[1:]} == {"bucket", "profiles", "group", "machines", "quota", "spot"}
    assert all("may not ask" in finding.text for finding in findings[2:] if finding.subject != "machines"), findings


# ------------------------------------------------------------------------------------------------------- this machine


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.chdir(REPOSITORY)
    return tmp_path


def about(findings: list[Finding], subject: str) -> list[str]:
    return [finding.text for finding in findings if finding.subject == subject and finding.state is State.MISSING]


def test_the_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = about(check_here(gpu_file()), "token")
    assert "holds no token" in text
    made = preparation.make_token(home / ".ray/auth_token")
    assert made.new
    assert about(check_here(gpu_file()), "token") == []
    assert not preparation.make_token(home / ".ray/auth_token").new
    (home / ".ray/auth_token").chmod(0o644)
    assert "chmod 600" in about(check_here(gpu_file()), "token")[0]
    preparation.make_token(home / ".ray/auth_token")
    assert (home / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert "RAY_AUTH_TOKEN is another token" in about(check_here(gpu_file()), "token")[0]


def test_the_folder_that_is_sent_and_the_programs_that_send_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert about(check_here(gpu_file()), "folder") == about(check_here(gpu_file()), "programs") == []
    monkeypatch.chdir(home)
    monkeypatch.setenv("PATH", str(home))
    assert "is not the root of this project" in about(check_here(gpu_file()), "folder")[0]
    assert [text.split()[0] for text in about(check_here(gpu_file()), "programs")] == ["ssh", "rsync"]


def test_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert is_ready(check_versions(gpu_file()))
    lock = (REPOSITORY / "cluster/requirements.txt").read_text()
    ray = re.search(r"^ray==(\S+)", lock, re.MULTILINE)
    assert ray
    (tmp_path / "requirements.txt").write_text(lock.replace(ray[0], "ray==2.59.9"))
    other = ClusterFile(tmp_path / "gpu.yaml", yaml.safe_load(GPU_FILE.read_text()))
    texts = about(check_versions(other), "versions")
    assert any(f"Ray is {ray[1]} here and 2.59.9 on the nodes" in text for text in texts)
    monkeypatch.setattr("platform.python_version", lambda: "3.12.1")
    findings = check_versions(gpu_file())
    assert is_ready(findings) and "Python is 3.12.1 here and 3.11.18 on the nodes" in findings[-1].text
    monkeypatch.setattr("platform.python_version", lambda: "3.11.1")  # the nodes agree among themselves
    assert [finding.state for finding in check_versions(gpu_file())] == [State.OK]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ray>=2.60", "'ray>=2.60' is not a version with hashes"),
        ("ray==2.60.0", "'ray==2.60.0' is not a version with hashes"),
        ("-r other.txt", "'-r other.txt' is not a version with hashes"),
        ("git+https://x.org/ray", "is not a version with hashes"),
    ],
)
def test_a_lock_file_that_locks_nothing_is_refused(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"# a comment\nnumpy==2.4.6 \\\n    --hash=sha256:00\n{line}\n")
    with pytest.raises(UserError, match=re.escape(words)):
        read_lock(path)


def test_a_lock_file_that_is_behind_the_project_is_told(tmp_path: Path) -> None:
    path, project = tmp_path / "requirements.txt", tmp_path / "pyproject.toml"
    path.write_text("Foo_Bar==1.0 \\\n    --hash=sha256:00\n")
    project.write_text('[project]\ndependencies = ["foo-bar>=2", "more"]\noptional-dependencies.cluster = ["boto3"]\n')
    old, absent, extra = lock_problems(read_lock(path), project)
    assert "has foo-bar 1.0, the project needs >=2" in old
    assert "has no more" in absent and "has no boto3" in extra


# ----------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("provider: {type: gcp, project_id: x}", "provider.type is gcp; this command knows aws and local"),
        ("apiVersion: ray.io/v1\nkind: RayJob", "is for Kubernetes (RayJob), not for `ray up`"),
        ("apiVersion: v1\n---\nkind: Pod", "is for Kubernetes"),
        ("cluster_name: x", "provider.type is missing"),
        ("provider: {type: aws}\n---\na: 1", "has 2 documents"),
        ("- a\n- b", "has no keys"),
        ("", "has no keys"),
        ("a: [1", "line 1: not YAML"),
    ],
)
def test_another_file_is_told(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        read_cluster_file(path)


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in a file, by its keys and indices."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*above, key)
        yield from places(part, (*above, key))


class AnsweringAccount(aws.Account):  # type: ignore[misc, name-defined]
    """An account that has all that cluster/gpu.yaml needs. Boto3 looks at each question before it is asked."""

    known: dict[tuple[str, str], Any] = {}

    def client(self, service: str) -> Any:
        if (service, self.region) not in self.known:  # it takes a while to make one
            client = super().client(service)
            client.meta.events.register("before-call", self.answer)
            self.known[service, self.region] = client
        return self.known[service, self.region]

    def answer(self, model: Any, params: Any, **_: Any) -> tuple[Any, dict[str, Any]]:
        asked = params["body"].items() if isinstance(params["body"], dict) else ()
        types = [value for name, value in asked if name.startswith("InstanceType.")]
        group = {"GroupId": "sg-1", "GroupName": "aae-ray", "IpPermissions": [ITSELF, ssh("203.0.113.7/32")]}
        answers: dict[str, dict[str, Any]] = {
            "GetCallerIdentity": {"Arn": "arn:aws:iam::1:user/me"},
            "GetInstanceProfile": {"InstanceProfile": {"Roles": [{"RoleName": "r"}]}},
            "DescribeSecurityGroups": {"SecurityGroups": [group]},
            "DescribeInstanceTypeOfferings": offers("us-west-2a"),
            "RunInstances": {"Error": {"Code": "DryRunOperation"}},
            "DescribeInstanceTypes": {
                "InstanceTypes": [{"InstanceType": name, "VCpuInfo": {"DefaultVCpus": 4}} for name in types]
            },
            "GetServiceQuota": {"Quota": {"Value": 64.0}},
            "DescribeSpotPriceHistory": {"SpotPriceHistory": []},
        }
        answer = answers.get(model.name, {})
        return SimpleNamespace(status_code=412 if "Error" in answer else 200), answer


@pytest.fixture
def all_there(keys: pytest.MonkeyPatch, home: Path) -> None:
    """Everything outside the file is as it must be."""
    (home / ".ssh").mkdir()
    (home / ".ssh/id_ed25519").touch()
    preparation.make_token(home / ".ray/auth_token")
    keys.setattr(aws, "Account", AnsweringAccount)
    keys.setattr(on_prem, "_check_host", lambda host, auth: ok("hosts", host))


@pytest.mark.parametrize("wrong", [None, 7, "x", ["x"], {"x": 1}], ids=repr)
@pytest.mark.parametrize("name", ["gpu.yaml", "on_prem.yaml"])
def test_whatever_stands_in_a_place_of_the_file_is_told_in_sentences(name: str, wrong: Any, all_there: None) -> None:
    path = REPOSITORY / "cluster" / name
    text = path.read_text().replace("192.0.2.", "10.0.0.")
    assert is_ready(check(ClusterFile(path, yaml.safe_load(text)), "s3://ours/studies")), "the fault is not the file's"
    for place in places(yaml.safe_load(text)):
        if place in (("provider",), ("provider", "type")):  # of which the reader of the file tells
            continue
        if "gpu-on-demand" in place[:-1]:  # read as gpu-spot is
            continue
        content = yaml.safe_load(text)
        *above, last = place
        functools.reduce(operator.getitem, above, content)[last] = wrong
        findings = check(ClusterFile(path, content), "s3://ours/studies")
        for told in (finding.text for finding in findings):
            assert len(told.splitlines()) == 1 and not re.search("(Type|Attribute|Key)Error", told), (place, told)


def test_what_rays_schema_refuses_is_told_by_its_key_and_nothing_else_is_read(all_there: None) -> None:
    mounts = '  "~/aae-ray": "."                      # .git too: every trial records the commit\n'
    for right, wrong, words in (
        ("max_workers: 4\nup", 'max_workers: "4"\nup', "max_workers: '4' is not of type 'integer'"),
        (mounts, "  - .\n", "file_mounts: "),
    ):
        text = GPU_FILE.read_text().replace('  "~/.ray/auth_token": "~/.ray/auth_token"\n', "")
        assert right in text
        file, unread, token = check(ClusterFile(GPU_FILE, yaml.safe_load(text.replace(right, wrong))), None)
        assert words in file.text and unread.text.startswith("nothing else in it was looked at"), file
        assert [finding.state for finding in (file, unread, token)] == [State.MISSING, State.ADVICE, State.OK]


def test_prepare_makes_nothing_for_a_file_that_ray_does_not_take(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text(GPU_FILE.read_text().replace("cluster_name: aae-gpu", "cluster_name: 7"))
    with pytest.raises(UserError, match="gpu.yaml: cluster_name: 7 is not of type 'string'"):
        cluster("prepare", path, "s3://ours/studies", "203.0.113.7/32")
    assert not (home / ".ray").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0.0.0.0/0", "lets in 4,294,967,296 addresses"),
        ("10.0.0.0/8", "lets in 16,777,216 addresses"),
        ("::/0", "give your own"),
        ("me", "expected your address and /32"),
        ("203.0.113.7/24", "expected your address"),
    ],
)
def test_prepare_lets_in_no_crowd(address: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        preparation.network(address)


def test_prepare_makes_the_role_for_spot_where_an_account_has_none() -> None:
    role = {"Path": "/", "RoleName": "r", "RoleId": "A" * 16, "Arn": "arn:aws:iam::1:role/r", "CreateDate": 0}
    answers = (("iam", "get_role", "NoSuchEntity"), ("iam", "create_service_linked_role", {"Role": role}))
    assert preparation._spot_role(StubbedAccount(*answers)).new
    assert not preparation._spot_role(StubbedAccount(("iam", "get_role", {"Role": role}))).new
