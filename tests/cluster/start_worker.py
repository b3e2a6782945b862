"""Start one worker as the autoscaler on the head does: `start_worker.py NODE_TYPE HEAD_ADDRESS`.

Reads the ~/ray_bootstrap_config.yaml that `ray up` sends to the head; launches a machine and sets it up with
the classes of Ray's autoscaler (v2). They are private, and named in this file alone.
"""

import os
import sys
import time

from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
from ray.core.generated.instance_manager_pb2 import Instance

SECONDS_TO_LAUNCH = 30


def main(node_type: str, head_address: str) -> None:
    reader = FileConfigReader(os.path.expanduser("~/ray_bootstrap_config.yaml"), skip_content_hash=False)
    config = reader.get_cached_autoscaling_config()
    provider = _get_node_provider(config.get_config("provider"), config.get_config("cluster_name"))
    adapter = NodeProviderAdapter(provider, reader)
    adapter.launch({node_type: 1}, request_id="one worker")

    deadline = time.monotonic() + SECONDS_TO_LAUNCH
    while not (machines := [m for m in adapter.get_non_terminated().values() if m.node_type == node_type]):
        errors = adapter.poll_errors()
        if errors or time.monotonic() > deadline:
            raise SystemExit(f"no {node_type} was launched: {[(error, error.__cause__) for error in errors]}")
        time.sleep(0.1)
    instance = Instance(instance_type=node_type, cloud_instance_id=machines[0].cloud_instance_id)
    RayInstaller(provider, config).install_ray(instance, head_address)


if __name__ == "__main__":
    main(*sys.argv[1:])
