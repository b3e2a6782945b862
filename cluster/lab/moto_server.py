"""moto, the mock of AWS, with three changes to its EC2.

python -m cluster.lab.moto_server -H ADDRESS -p PORT

* RunInstances launches MaxCount instances, as EC2 does where it can; moto launches MinCount.
* While the file that AAE_LAB_NO_SPOT names is there, spot cannot be had: InsufficientInstanceCapacity.
* It knows the instance types of cluster/gpu.yaml alone. `ray up` asks for all that there are, and to answer with EC2's
  nine hundred takes a busy machine so long that the client asks again.
"""

import os
import sys
from typing import Any

from moto import __version__
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instance_types import InstanceTypeBackend
from moto.ec2.responses.instances import InstanceResponse
from moto.server import main
from packaging.version import Version

from cluster.lab.cluster_files import aws_file

NEEDED = Version("5.2.5")  # older ones break pyarrow's multipart uploads
NO_SPOT = "AAE_LAB_NO_SPOT"


class Instances(InstanceResponse):  # type: ignore[misc]
    """moto's answers for instances, changed."""

    parameter = InstanceResponse._get_param
    run = InstanceResponse.run_instances

    def _get_param(self, name: str, *arguments: Any, **options: Any) -> Any:
        return Instances.parameter(self, "MaxCount" if name == "MinCount" else name, *arguments, **options)

    def run_instances(self) -> Any:
        spot = Instances.parameter(self, "InstanceMarketOptions.MarketType") == "spot"
        if spot and os.path.exists(os.environ.get(NO_SPOT, "")):
            raise EC2ClientError("InsufficientInstanceCapacity", "There is no Spot capacity available.")
        return Instances.run(self)


if __name__ == "__main__":
    if Version(__version__) < NEEDED:
        raise SystemExit(f"moto is {__version__}; the lab needs {NEEDED}: pip install -e '.[test]'")
    InstanceResponse._get_param = Instances._get_param
    InstanceResponse.run_instances = Instances.run_instances
    wanted = {node["node_config"]["InstanceType"] for node in aws_file()["available_node_types"].values()}
    known = InstanceTypeBackend.instance_types
    InstanceTypeBackend.instance_types = [kind for kind in known if kind["InstanceType"] in wanted]
    main(sys.argv[1:])
