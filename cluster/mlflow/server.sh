#!/bin/bash
# MLflow's tracking server for a team, in the foreground, as a service manager or a container wants it. README.md, beside
# this file, tells what to prepare and how to back it up.
#
# From the environment, which a file of mode 600 may fill (`set -a; . ./server.env; set +a`):
#   PGHOST PGUSER PGPASSWORD ...       the Postgres server, in libpq's own variables, with databases mlflow and mlflow_auth
#   MLFLOW_ARTIFACTS_DESTINATION       s3://BUCKET/mlflow; S3's credentials are needed here and nowhere else
#   MLFLOW_AUTH_ADMIN_PASSWORD         of the account admin, which is made at the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY     any long random text, the same at each start
#   MLFLOW_SERVER_ALLOWED_HOSTS        names by which clients may call it, e.g. mlflow.example.org,10.*
#   MLFLOW_HOST MLFLOW_PORT MLFLOW_WORKERS      127.0.0.1, 5000 and 2 unless given
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

for name in PGHOST PGUSER MLFLOW_ARTIFACTS_DESTINATION MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY \
  MLFLOW_SERVER_ALLOWED_HOSTS; do
  if [ -z "${!name:-}" ]; then
    echo "server.sh: $name is not set; the head of $here/server.sh says what it is" >&2
    exit 2
  fi
done
if [[ ! $MLFLOW_ARTIFACTS_DESTINATION =~ ^s3://[^/]+ ]]; then
  echo "server.sh: MLFLOW_ARTIFACTS_DESTINATION $MLFLOW_ARTIFACTS_DESTINATION is no place on S3; give s3://BUCKET/mlflow" >&2
  exit 2
fi

export MLFLOW_HOST=${MLFLOW_HOST:-127.0.0.1} MLFLOW_PORT=${MLFLOW_PORT:-5000} MLFLOW_WORKERS=${MLFLOW_WORKERS:-2}
export MLFLOW_AUTH_CONFIG_PATH=${MLFLOW_AUTH_CONFIG_PATH:-$here/auth.ini}
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false         # the jobs of MLflow's GenAI parts: seven more processes
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=1
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}      # token_auth
export PGCONNECT_TIMEOUT=${PGCONNECT_TIMEOUT:-10}

python "$here/tables.py" postgresql+psycopg:///mlflow postgresql+psycopg:///mlflow_auth
exec python -m mlflow server --app-name basic-auth --backend-store-uri postgresql+psycopg:///mlflow
