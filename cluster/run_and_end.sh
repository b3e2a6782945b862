#!/bin/sh
# On the head: run a command, then end the cluster, workers first.
#
#     ray exec cluster/gpu.yaml --tmux 'sh aae-ray/cluster/run_and_end.sh python -m aae_ray.tune ...'
#
# In place of `ray exec --stop`, which ends the head alone: it calls `ray teardown`, a command that Ray has no more, and
# leaves the workers to run, and to cost, with nobody to end them. A command that ends with code 2, a mistake in its
# arguments, has started nothing; then the cluster stays, and so does the message.
trap : INT HUP TERM # the command has its own manners after Ctrl-C; what follows it here must run all the same
"$@"
code=$?
if [ "$code" -eq 2 ]; then
    echo "Nothing was run, so the cluster stays up: try again, or end it with \`ray down\` at home."
    exec "${SHELL:-/bin/sh}"
fi
for wait in 0 10 60 300; do
    sleep "$wait"
    if ray down ~/ray_bootstrap_config.yaml --yes --workers-only; then
        exec sudo shutdown -h now
    fi
done
echo "The workers could not be ended, so the head stays up, whose autoscaler ends them when they are idle; type \`ray down\` at home."
exit "$code"
