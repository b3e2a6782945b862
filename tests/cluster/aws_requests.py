"""What AWS was asked in a test, and by whom: from the record that the mock keeps of all requests."""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CREDENTIAL = re.compile(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/aws4_request")
PREFIXES = {"servicequotas": "servicequotas", "s3": "s3", "iam": "iam", "ec2": "ec2", "sts": "sts", "ssm": "ssm"}
S3_ACTIONS = {  # by method, and by whether the query says what is meant
    ("HEAD", ""): "s3:ListBucket",
    ("PUT", ""): "s3:CreateBucket",
    ("PUT", "publicAccessBlock"): "s3:PutBucketPublicAccessBlock",
}


@dataclass(frozen=True)
class Request:
    """One request: whose key it was signed with, the action as IAM names it, and the parameters that it had."""

    key: str
    action: str
    parameters: dict[str, str]


def read_requests(record: Path) -> list[Request]:
    """Every signed request in the mock's record."""
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    return [request for entry in entries if (request := _request(entry)) is not None]


def _request(entry: dict[str, Any]) -> Request | None:
    headers = {name.lower(): value for name, value in entry["headers"].items()}
    signed = CREDENTIAL.search(headers.get("authorization", ""))
    if signed is None:
        return None
    key, service = signed.groups()
    body = entry["body"] or ""
    text = base64.b64decode(body).decode(errors="replace") if entry["body_encoded"] else body
    query = urlsplit(entry["url"]).query
    if service == "s3":
        return Request(key, S3_ACTIONS[entry["method"], query.partition("=")[0]], {})
    parameters = {name: values[0] for name, values in parse_qs(text).items()}
    target = headers.get("x-amz-target", "").rpartition(".")[2]
    return Request(key, f"{PREFIXES[service]}:{target or parameters['Action']}", parameters)
