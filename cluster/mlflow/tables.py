"""Makes MLflow's tables in a new database, and refuses those of an older MLflow, before the server takes requests.

The server itself looks at its tables at the first request: it would come up, answer that it is healthy, and fail at
everything else.
"""

import logging
import sys

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

MISTAKE = 2


def main(address: str) -> None:
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it would tell of each of ten attempts
    try:
        MlflowClient(tracking_uri=address).search_experiments(max_results=1)
    except MlflowException as error:
        if "out-of-date database schema" in str(error):
            reason = "its tables are those of an older MLflow; README.md, beside this file, says how to upgrade"
        else:
            reason = str(error).strip().splitlines()[0]
        print(f"server.sh: database {address}: {reason}", file=sys.stderr)
        raise SystemExit(MISTAKE) from None


if __name__ == "__main__":
    main(sys.argv[1])
