"""Machines that are there already: whether each can be reached as Ray's launcher will do it."""

import os
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aae_ray.provisioning.cluster_file import ClusterFile
from aae_ray.provisioning.findings import Finding, missing, ok

CONNECT_SECONDS, ANSWER_SECONDS = 5, 15
PLACEHOLDER = "192.0.2."  # addresses that are for documents, RFC 5737


def check_hosts(file: ClusterFile) -> list[Finding]:
    """A finding for each machine, all asked at a time; none takes longer than ANSWER_SECONDS."""
    if not file.hosts:
        return [missing("hosts", f"{file.path}: provider.head_ip and provider.worker_ips name no machine")]
    if examples := [host for host in file.hosts if host.startswith(PLACEHOLDER)]:
        text = f"{file.path}: {', '.join(examples)} stand for your machines in this file; put in their addresses"
        return [missing("hosts", text)]
    auth = file.content.get("auth")
    auth = auth if isinstance(auth, Mapping) else {}
    key = auth.get("ssh_private_key")
    if key and not Path(str(key)).expanduser().is_file():
        return [missing("hosts", f"{file.path}: auth.ssh_private_key {key} is not there")]
    with ThreadPoolExecutor(len(file.hosts)) as pool:
        return list(pool.map(lambda host: _check_host(host, auth), file.hosts))


def _check_host(host: str, auth: Mapping[str, object]) -> Finding:
    """Whether a machine takes ssh without a question, and has what the set-up asks for."""
    options = [
        "-o",
        "BatchMode=yes",
        "-o",
        f"ConnectTimeout={CONNECT_SECONDS}",
        "-o",
        "StrictHostKeyChecking=accept-new",
    ]
    if key := auth.get("ssh_private_key"):
        options += ["-i", str(Path(str(key)).expanduser())]
    command = ["ssh", *options, f"{auth.get('ssh_user')}@{host}", "command -v rsync && command -v curl"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS, env=os.environ
        )
    except FileNotFoundError:
        return missing("hosts", "this machine has no ssh; install OpenSSH's client")
    except subprocess.TimeoutExpired:
        return missing("hosts", f"{host}: ssh did not answer within {ANSWER_SECONDS} s")
    if done.returncode == 255:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return missing("hosts", f"{host}: ssh as {auth.get('ssh_user')} fails: {reason}")
    if done.returncode:
        return missing("hosts", f"{host}: rsync or curl is not there; install both")
    return ok("hosts", f"{host}: ssh as {auth.get('ssh_user')}")
