#!/bin/sh
# Ray's launcher for machines of your own, around two of its faults.
#
#     sh cluster/on_prem.sh up|down|exec|attach|monitor|dashboard|rsync-down ... [the options of `ray up` and the others]
#
# * `up`: the autoscaler that is Ray's default takes the head for a worker, so that one worker never comes. The one
#   before it does not.
# * `down`: Ray stops the head alone; its workers linger, and join the next head, which one without a token brings down.
#   They are stopped first. A worker that cannot be reached is told, and the exit code is then 1.
#
# AAE_RAY_CLUSTER names another file than cluster/on_prem.yaml.
set -u
file=${AAE_RAY_CLUSTER:-cluster/on_prem.yaml}
action=${1:?expected up, down, exec, attach, monitor, dashboard or rsync-down}
shift
export RAY_UP_enable_autoscaler_v2=0 RAY_AUTH_MODE=token

# A line for each worker: the arguments of ssh that reach it.
workers() {
    python - "$file" <<'PYTHON'
import os, shlex, sys, yaml

content = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
auth = content["auth"]
key = auth.get("ssh_private_key")
options = ["-i", os.path.expanduser(key)] if key else []
for host in content["provider"]["worker_ips"]:
    print(shlex.join([*options, f"{auth['ssh_user']}@{host}"]))
PYTHON
}

case $action in
up | exec | attach | monitor | dashboard | rsync-down)
    exec ray "$action" "$file" "$@"
    ;;
down)
    listed=$(workers) || exit 1
    unreached=0
    while IFS= read -r worker; do
        # stdin is closed, or ssh would swallow the workers that are still to come. Only the head has reached them so far.
        if ! eval "ssh -o BatchMode=yes -o ConnectTimeout=10 -o StrictHostKeyChecking=accept-new $worker '~/venv/bin/ray stop'" \
            < /dev/null; then
            echo "no answer from a worker, which may join the next head: ssh $worker '~/venv/bin/ray stop'" >&2
            unreached=1
        fi
    done <<LIST
$listed
LIST
    ray down "$file" "$@" || exit
    exit "$unreached"
    ;;
*)
    echo "$action: expected up, down, exec, attach, monitor, dashboard or rsync-down" >&2
    exit 2
    ;;
esac
