#!/bin/sh
# Tells Ray that AWS takes this spot machine away, which AWS says two minutes before, and only to the machine itself:
# no trial starts here any more, and the autoscaler looks for another machine at once. Runs beside Ray on each worker
# of gpu.yaml; on demand the notice never comes. Another place for the machine's metadata than AWS's is for tests.
metadata=${1:-http://169.254.169.254}/latest
notice=
until [ -n "$notice" ]; do
  token=$(curl -sf -m 2 -X PUT "$metadata/api/token" -H "X-aws-ec2-metadata-token-ttl-seconds: 60")
  # 404 until there is one, then {"action": "terminate", "time": ...}
  notice=$(curl -sf -m 2 "$metadata/meta-data/spot/instance-action" -H "X-aws-ec2-metadata-token: $token")
  [ -n "$notice" ] || sleep "${2:-5}"
done
exec ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "$notice" --deadline-remaining-seconds 110
