"""What Ray's autoscaler (v2) would launch: its scheduler, asked without a cluster. Its classes are private, and named
in this file alone."""

import copy
from collections import Counter
from typing import Any

from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, Provider
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint, GangResourceRequest
from ray.core.generated.common_pb2 import LabelSelectorOperator

MACHINE = {"CPU": 4, "GPU": 1}  # what Ray fills in for a g5.xlarge


def launches(content: dict[str, Any], *, waiting: int, on_demand: int) -> dict[str, int]:
    """How many machines of each type are launched for so many placement groups that wait for a GPU each, and a request
    for so many GPUs on demand, in a cluster that has nothing but its head."""
    content = copy.deepcopy(content)
    for name, kind in content["available_node_types"].items():
        if name != content["head_node_type"]:
            kind["resources"] = MACHINE
    config = AutoscalingConfig(content, skip_content_hash=True)
    assert config.provider == Provider.AWS
    gpu = ResourceRequestUtil.make({"GPU": 1})
    labelled = ResourceRequestUtil.make(
        {"GPU": 1}, label_selectors=[[("market", LabelSelectorOperator.LABEL_OPERATOR_IN, ["on-demand"])]]
    )
    asked = ResourceRequestUtil.group_by_count([labelled] * on_demand)
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes() - 1,  # the head is one of them
            gang_resource_requests=[GangResourceRequest(requests=[gpu]) for _ in range(waiting)],
            cluster_resource_constraints=[ClusterResourceConstraint(resource_requests=asked)] if asked else [],
        )
    )
    count: Counter[str] = Counter()
    for launch in reply.to_launch:
        count[launch.instance_type] += launch.count
    return dict(count)
