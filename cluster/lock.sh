#!/bin/sh
# Write cluster/requirements.txt anew: what the nodes of a cluster install, each version with the hashes of its files.
# Needs uv (pip install uv). Versions that the file has already stay where pyproject.toml still allows them; give
# --upgrade for the newest of all, or --upgrade-package NAME.
set -eu
cd "$(dirname "$0")/.."
exec uv pip compile --quiet --generate-hashes --extra cluster --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --custom-compile-command 'sh cluster/lock.sh' --no-annotate --output-file cluster/requirements.txt "$@" pyproject.toml
