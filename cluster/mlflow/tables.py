"""Makes MLflow's tables in new databases, and refuses those of another MLflow, before the server takes requests.

python tables.py ADDRESS ADDRESS_OF_THE_ACCOUNTS

The server itself looks at its tables at the first request: it would come up, say that it is healthy, and then either
fail at everything else or, where a table is missing, upgrade the database by itself, without a backup.
"""

import logging
import sys
from pathlib import Path
from typing import NoReturn

import mlflow
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

MISTAKE = 2


def main(address: str, accounts: str) -> None:
    wanted = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations")).get_current_head()
    try:
        with create_engine(address).connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except SQLAlchemyError as error:
        refuse(address, str(getattr(error, "orig", None) or error).strip().splitlines()[0])
    if found not in (None, wanted):
        text = f"its tables are of revision {found}, this MLflow ({mlflow.__version__}) works with {wanted}"
        refuse(address, f"{text}; README.md, beside this file, says how to upgrade")
    if found is None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        mlflow.MlflowClient(tracking_uri=address).search_experiments(max_results=1)
    # Each worker of the server would bring these up to date by itself; two that do it at once disturb each other.
    from mlflow.server.auth.db.cli import commands

    commands(["upgrade", "--url", accounts], standalone_mode=False)


def refuse(address: str, reason: str) -> NoReturn:
    print(f"server.sh: database {address}: {reason}", file=sys.stderr)
    raise SystemExit(MISTAKE)


if __name__ == "__main__":
    main(*sys.argv[1:])
