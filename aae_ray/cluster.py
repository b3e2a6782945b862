"""python -m aae_ray.cluster: whether a cluster file can be brought up, and what it needs, made once.

python -m aae_ray.cluster check cluster/gpu.yaml --folder s3://BUCKET/studies      what is missing before `ray up`
python -m aae_ray.cluster prepare cluster/gpu.yaml --folder s3://BUCKET/studies --ssh-from 203.0.113.7/32
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aae_ray.cli import main
from aae_ray.errors import MISTAKE, UserError, did_you_mean

if TYPE_CHECKING:
    from aae_ray.provisioning.cluster_file import ClusterFile

ACTIONS = ("check", "prepare")


def cluster(
    action: Annotated[str, typer.Argument(metavar="check|prepare", help="say what is missing, or make it on AWS")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a file for `ray up`, such as cluster/gpu.yaml")],
    folder: Annotated[
        str | None, typer.Option(help="where studies are to live: s3://BUCKET/studies; study.folder")
    ] = None,
    ssh_from: Annotated[
        str | None, typer.Option(metavar="ADDRESS/32", help="with prepare: who may open ssh to the cluster")
    ] = None,
) -> None:
    """Say before `ray up` what a cluster file lacks: rules, versions, token, credentials, bucket, rights, quota."""
    if action not in ACTIONS:
        raise UserError(f"{action}: expected {' or '.join(ACTIONS)}.{did_you_mean(action, ACTIONS)}")
    from aae_ray.provisioning.cluster_file import read_cluster_file

    read = read_cluster_file(file)
    if action == "check":
        if ssh_from is not None:
            raise UserError("--ssh-from goes with prepare")
        _check(read, folder)
        return
    if read.provider["type"] != "aws":
        raise UserError(f"{file}: prepare makes what AWS needs, and provider.type is {read.provider['type']}")
    if folder is None or ssh_from is None:
        raise UserError("prepare needs --folder s3://BUCKET/studies and --ssh-from ADDRESS/32, your own address")
    _prepare(read, folder, ssh_from)


def _check(file: "ClusterFile", folder: str | None) -> None:
    from aae_ray.provisioning.checks import check
    from aae_ray.provisioning.findings import is_ready
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.text import bullet

    console, findings = console_for(), check(file, folder)
    for finding in findings:
        mark = "" if finding.state == "ok" else f"{finding.state}: "
        console.print(bullet(finding.subject, f"{mark}{finding.text}"), soft_wrap=True)
    if not is_ready(findings):
        raise typer.Exit(MISTAKE)
    console.print(bullet("ready", f"ray up {file.path}"), soft_wrap=True)


def _prepare(file: "ClusterFile", folder: str, ssh_from: str) -> None:
    from aae_ray.provisioning.checks import TOKEN, bucket_of, require_boto3
    from aae_ray.reporting.console import console_for
    from aae_ray.reporting.text import bullet

    require_boto3()
    from aae_ray.execution.cluster_schema import schema_problem
    from aae_ray.provisioning.preparation import prepare

    if problem := schema_problem(file.content):
        raise UserError(f"{file.path}: {problem}")
    console = console_for()
    for made in prepare(file, bucket_of(folder), ssh_from, Path(TOKEN).expanduser()):
        console.print(bullet("made" if made.new else "there", made.what), soft_wrap=True)
    console.print(bullet("next", f"python -m aae_ray.cluster check {file.path} --folder {folder}"), soft_wrap=True)


if __name__ == "__main__":
    main(cluster, "cluster")
