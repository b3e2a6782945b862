"""What AWS must have before `ray up`, asked of AWS itself: each answer is waited for some seconds, not for ever."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError, ProfileNotFound
from botocore.validate import ParamValidator

from aae_ray.provisioning.cluster_file import SPOT, ClusterFile, NodeType
from aae_ray.provisioning.findings import Finding, State, advice, missing, ok

CONNECT_SECONDS, ANSWER_SECONDS, ATTEMPTS = 5, 10, 2
DEADLINE_SECONDS = 60.0  # for all questions together
SSH_PORT = 22
EVERYWHERE = ("0.0.0.0/0", "::/0")
REFUSED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"}
BAD_CREDENTIALS = {"InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException", "AuthFailure"}
EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
SPOT_ROLE = "AWSServiceRoleForEC2Spot"


@dataclass(frozen=True)
class Quota:
    """Virtual CPUs of running machines that an account may have in a region, of all families together."""

    families: tuple[str, ...]  # how the name of an instance type begins, up to the first digit
    on_demand: str  # code of the quota in the API of Service Quotas
    spot: str


QUOTAS = (
    Quota(("g", "gr", "vt"), on_demand="L-DB2E81BA", spot="L-3819A6DF"),
    Quota(("p",), on_demand="L-417A185B", spot="L-7212CCBC"),
    Quota(("a", "c", "d", "h", "i", "m", "r", "t", "z"), on_demand="L-1216C47A", spot="L-34B43A08"),
)


class Account:
    """An account of AWS in the region of a cluster file, reached by the credentials of the environment."""

    def __init__(self, region: str) -> None:
        """Raises botocore's ProfileNotFound where AWS_PROFILE names none."""
        self.region = region
        self._session = boto3.Session(region_name=region)
        self._config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=ANSWER_SECONDS,
            retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
        )

    def client(self, service: str) -> Any:
        return self._session.client(service, config=self._config)

    def identity(self) -> Mapping[str, str]:
        """Account and Arn of the caller."""
        return self.client("sts").get_caller_identity()  # type: ignore[no-any-return]


def check_account(file: ClusterFile, bucket: str | None) -> list[Finding]:
    """What the account lacks for a cluster file, and for a bucket for its studies where one is given.

    Whatever AWS answers, or does not answer, is in a finding; nothing is raised, and nothing is made.
    """
    credentials, account = _credentials(file.region)
    if account is None:
        return [credentials, advice("account", "nothing else was asked of AWS, because the credentials do not hold")]
    findings, started, silent = [credentials], time.monotonic(), False
    for subject, check in _checks(account, file, bucket):
        if silent or time.monotonic() - started > DEADLINE_SECONDS:
            findings.append(missing(subject, "not asked, because AWS took too long for another answer; try again"))
            continue
        try:
            findings += check()
        except ClientError as error:
            findings.append(_refusal(subject, error))
        except BotoCoreError as error:
            silent = True
            findings.append(missing(subject, f"AWS does not answer: {error}"))
    return findings


def _checks(
    account: Account, file: ClusterFile, bucket: str | None
) -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    if bucket is None:
        yield "bucket", lambda: [advice("bucket", "not asked; name it with --folder s3://BUCKET/studies")]
    else:
        yield "bucket", lambda: bucket_findings(account, bucket)
    yield "profiles", lambda: profile_findings(account, file)
    yield "group", lambda: group_findings(account, file)
    yield "machines", lambda: machine_findings(account, file)
    yield "quota", lambda: quota_findings(account, file)
    yield "spot", lambda: spot_findings(account, file)


def _credentials(region: str) -> tuple[Finding, Account | None]:
    """Who asks; and the account, if AWS lets them in."""
    subject = "credentials"
    try:
        account = Account(region)
        identity = account.identity()
    except ProfileNotFound as error:
        return missing(subject, f"{error}; unset AWS_PROFILE, or name a profile of ~/.aws/config"), None
    except PartialCredentialsError as error:
        return missing(subject, f"{error}; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY go together"), None
    except NoCredentialsError:
        text = "none are found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run `aws configure`"
        return missing(subject, text), None
    except ClientError as error:
        code = _code(error)
        if code in EXPIRED:
            return missing(subject, f"they have expired ({code}); log in again, as with `aws sso login`"), None
        if code in BAD_CREDENTIALS:
            return missing(subject, f"AWS does not know them ({code}); see `aws configure list`"), None
        return _refusal(subject, error), None
    except BotoCoreError as error:
        return missing(subject, f"AWS does not answer in region {region}: {error}"), None
    return ok(subject, f"{identity['Arn']} in {region}"), account


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _refusal(subject: str, error: ClientError) -> Finding:
    """What an error of AWS says. Who may not ask is advised to look for themselves; the cluster may be ready."""
    code, operation = _code(error), error.operation_name
    if code in EXPIRED:
        return missing(subject, f"the credentials have expired ({code}); log in again")
    if code in REFUSED:
        return advice(
            subject, f"not known: your credentials may not ask ({operation}: {code}); see cluster/iam/user.json"
        )
    message = error.response.get("Error", {}).get("Message", "")
    return missing(subject, f"{operation}: {code} {message}".strip())


# ------------------------------------------------------------------------------------------------------------ storage


def bucket_findings(account: Account, bucket: str) -> list[Finding]:
    """Whether a bucket is there, ours to use, and in the region where its readers are."""
    try:
        answer = account.client("s3").head_bucket(Bucket=bucket)
    except ClientError as error:
        code = _code(error)
        if code in ("404", "NoSuchBucket"):
            text = f"there is no bucket {bucket}; `python -m aae_ray.cluster prepare` makes it"
            return [missing("bucket", text)]
        if code in REFUSED:
            text = f"you may not use {bucket} (403): it is of another account, or your credentials lack s3:ListBucket"
            return [missing("bucket", text)]
        raise
    place = answer.get("BucketRegion") or account.region
    if place != account.region:
        text = f"{bucket} is in {place}, the machines are in {account.region}: each checkpoint between them costs money"
        return [advice("bucket", text)]
    return [ok("bucket", f"{bucket} in {place}")]


# ------------------------------------------------------------------------------------------------------ who may what


def profile_findings(account: Account, file: ClusterFile) -> list[Finding]:
    """Whether the instance profiles that the file names are there, each with a role."""
    findings = []
    for name in sorted({kind.profile for kind in file.node_types if kind.profile}):
        try:
            profile = account.client("iam").get_instance_profile(InstanceProfileName=name)["InstanceProfile"]
        except ClientError as error:
            if _code(error) != "NoSuchEntity":
                raise
            text = f"there is no instance profile {name}; `python -m aae_ray.cluster prepare` makes it"
            findings.append(missing("profiles", text))
            continue
        roles = [role["RoleName"] for role in profile["Roles"]]
        without = f"{name} has no role, so that its machines may do nothing; remove it and let `prepare` make it"
        findings.append(ok("profiles", f"{name}, role {roles[0]}") if roles else missing("profiles", without))
    return findings


def group_findings(account: Account, file: ClusterFile) -> list[Finding]:
    """Who is let in by the security groups of the machines."""
    ec2 = account.client("ec2")
    stated = {group for kind in file.node_types for group in kind.security_groups}
    if all(kind.security_groups for kind in file.node_types):
        groups = ec2.describe_security_groups(GroupIds=sorted(stated))["SecurityGroups"]
    else:
        wanted = [{"Name": "group-name", "Values": [file.security_group]}]
        groups = ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
    making = "`python -m aae_ray.cluster prepare` with --ssh-from YOUR_ADDRESS/32 makes it"
    if not groups:
        text = (
            f"there is no security group {file.security_group}: Ray would make it, and open ssh to the whole internet"
        )
        return [missing("group", f"{text}; {making}")]
    return [_group_finding(group, {each["GroupId"] for each in groups}) for group in groups]


def _group_finding(group: Mapping[str, Any], own: set[str]) -> Finding:
    name, rules = f"{group['GroupName']} ({group['GroupId']})", group["IpPermissions"]
    if not rules:
        text = (
            "has no rules: Ray would add its own and open ssh to the whole internet; remove it, let `prepare` make it"
        )
        return missing("group", f"{name} {text}")
    for rule in rules:
        if open_to := [source for source in sources(rule) if source in EVERYWHERE]:
            text = f"is open to everyone ({open_to[0]}, {_ports(rule)}); remove this rule"
            return missing("group", f"{name} {text}")
    if not any(
        pair["GroupId"] in own and rule["IpProtocol"] == "-1" for rule in rules for pair in rule["UserIdGroupPairs"]
    ):
        return missing(
            "group", f"{name} does not admit all traffic from itself, without which no worker joins the head"
        )
    ssh = [source for rule in rules if _admits_ssh(rule) for source in sources(rule)]
    if not ssh:
        return missing(
            "group", f"{name} admits ssh from no address; add a rule for port {SSH_PORT} from your own, ADDRESS/32"
        )
    return ok("group", f"{name}: ssh from {', '.join(ssh)}, all else among the machines alone")


def sources(rule: Mapping[str, Any]) -> list[str]:
    """The networks that a rule of a security group lets in, of both versions of the internet protocol."""
    return [each.get("CidrIp") or each["CidrIpv6"] for each in (*rule["IpRanges"], *rule.get("Ipv6Ranges", []))]


def _ports(rule: Mapping[str, Any]) -> str:
    if rule["IpProtocol"] == "-1":
        return "all ports"
    low, high = rule.get("FromPort"), rule.get("ToPort")
    return f"port {low}" if low == high else f"ports {low} to {high}"


def _admits_ssh(rule: Mapping[str, Any]) -> bool:
    return rule["IpProtocol"] == "-1" or SSH_PORT in range(rule.get("FromPort", 0), rule.get("ToPort", -1) + 1)


# ----------------------------------------------------------------------------------------------------------- machines


def machine_findings(account: Account, file: ClusterFile) -> list[Finding]:
    """Whether each kind of machine can be asked for as the file does: its keys, its zones, and a dry run of EC2."""
    ec2, findings = account.client("ec2"), []
    shape = ec2.meta.service_model.operation_model("RunInstances").input_shape
    for kind in file.node_types:
        asked = {**kind.node_config, "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(asked, shape)
        if report.has_errors():
            errors = "; ".join(report.generate_report().splitlines())
            findings.append(missing("machines", f"{kind.name}: EC2 does not take its node_config: {errors}"))
            continue
        findings.append(_offer(ec2, file, kind) or _dry_run(ec2, kind, asked))
    return findings


def _offer(ec2: Any, file: ClusterFile, kind: NodeType) -> Finding | None:
    """What is wrong where no zone of the file, or not each of them, has such machines."""
    filters = [{"Name": "instance-type", "Values": [kind.instance_type]}]
    answer = ec2.describe_instance_type_offerings(LocationType="availability-zone", Filters=filters)
    offered = sorted(offer["Location"] for offer in answer["InstanceTypeOfferings"])
    if not offered:
        text = f"{kind.name}: region {file.region} has no {kind.instance_type}; give another InstanceType or region"
        return missing("machines", text)
    if file.zones and not set(file.zones) & set(offered):
        text = f"{kind.name}: {', '.join(file.zones)} have no {kind.instance_type}, but {', '.join(offered)} have"
        return missing("machines", f"{text}; change provider.availability_zone")
    return None


def _dry_run(ec2: Any, kind: NodeType, asked: Mapping[str, Any]) -> Finding:
    """What EC2 says to the request for a machine that it is told not to start."""
    try:
        ec2.run_instances(**asked, DryRun=True)
    except ClientError as error:
        code, message = _code(error), error.response["Error"].get("Message", "")
        if code == "DryRunOperation":
            return ok("machines", f"{kind.name}: {kind.instance_type}, {kind.market}, {kind.most} at most")
        if code == "UnauthorizedOperation":
            needed = (
                f"you may not start {kind.name} ({code}); see cluster/iam/user.json, iam:PassRole on its role included"
            )
            return missing("machines", needed)
        return missing("machines", f"{kind.name}: EC2 refuses it: {code} {message}".strip())
    return missing("machines", f"{kind.name}: EC2 started a machine at a dry run; look at its console")


def quota_findings(account: Account, file: ClusterFile) -> list[Finding]:
    """Whether the account may have as many virtual CPUs at a time as the file's machines."""
    types = sorted({kind.instance_type for kind in file.node_types if kind.instance_type})
    described = account.client("ec2").describe_instance_types(InstanceTypes=types)["InstanceTypes"]
    cpus = {each["InstanceType"]: int(each["VCpuInfo"]["DefaultVCpus"]) for each in described}
    quotas, findings = account.client("service-quotas"), []
    for kind in file.node_types:
        code = quota_code(kind)
        if code is None:
            findings.append(advice("quota", f"{kind.name}: the quota of {kind.instance_type} is not known here"))
            continue
        try:
            quota = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]
        except ClientError as error:
            if _code(error) in REFUSED or _code(error) in EXPIRED:
                raise
            findings.append(advice("quota", f"{kind.name}: AWS tells no quota {code} ({_code(error)})"))
            continue
        findings.append(
            quota_finding(kind, cpus[kind.instance_type], float(quota["Value"]), f"{code} of {account.region}")
        )
    return findings


def quota_code(kind: NodeType) -> str | None:
    """The code of the quota under which a kind of machine falls."""
    family = "".join(letter for letter in kind.instance_type.partition(".")[0] if letter.isalpha() or letter.isdigit())
    letters = next((family[:end] for end in range(len(family)) if family[end].isdigit()), family)
    for quota in QUOTAS:
        if letters in quota.families:
            return quota.spot if kind.market == SPOT else quota.on_demand
    return None


def quota_finding(kind: NodeType, cpus: int, allowed: float, quota: str) -> Finding:
    """How many of a kind of machine, of so many virtual CPUs each, a quota allows."""
    fit = int(allowed // cpus)
    need = f"{kind.name} asks for {kind.most} x {cpus} vCPUs, quota {quota} allows {allowed:g}"
    if fit >= kind.most:
        return ok("quota", need)
    increase = f"ask for more: Service Quotas, Amazon EC2, {quota}"
    if fit == 0:
        return Finding(
            "quota",
            State.MISSING if kind.market == SPOT or kind.most == 1 else State.ADVICE,
            f"{need}: not one machine; {increase}",
        )
    return advice("quota", f"{need}: {fit} at a time; {increase}")


def spot_findings(account: Account, file: ClusterFile) -> list[Finding]:
    """Whether the account has ever been allowed spot, and what such machines cost at present."""
    kinds = [kind for kind in file.node_types if kind.market == SPOT]
    if not kinds:
        return []
    findings = []
    try:
        account.client("iam").get_role(RoleName=SPOT_ROLE)
    except ClientError as error:
        if _code(error) != "NoSuchEntity":
            raise
        text = f"the account has no role {SPOT_ROLE}; `prepare` makes it, or `aws iam create-service-linked-role "
        findings.append(missing("spot", f"{text}--aws-service-name spot.amazonaws.com`"))
    for kind in kinds:
        answer = account.client("ec2").describe_spot_price_history(
            InstanceTypes=[kind.instance_type], ProductDescriptions=["Linux/UNIX"], StartTime=time.time()
        )
        prices = {
            each["AvailabilityZone"]: float(each["SpotPrice"])
            for each in answer["SpotPriceHistory"]
            if not file.zones or each["AvailabilityZone"] in file.zones
        }
        if prices:
            told = ", ".join(f"{zone} {price:.3f}" for zone, price in sorted(prices.items()))
            findings.append(ok("spot", f"{kind.instance_type} costs now, in US dollars an hour: {told}"))
    return findings
