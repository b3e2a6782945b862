"""Accounts of the team's tracking server, and the tokens that let studies in.

python cluster/mlflow/accounts.py add studies        prints a token: put it into MLFLOW_TRACKING_TOKEN of the clients
python cluster/mlflow/accounts.py renew studies      prints a new one; the old one is refused after a minute at most
python cluster/mlflow/accounts.py remove studies

Asks the server at MLFLOW_TRACKING_URI, as admin, whose password is in MLFLOW_AUTH_ADMIN_PASSWORD.
"""

import argparse
import os
import re
import secrets
import sys
from typing import NoReturn

NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
MISTAKE = 2


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("add", "renew", "remove"))
    parser.add_argument("name", help="of the account: letters, digits, dots, dashes and underscores")
    given = parser.parse_args(arguments)
    if not NAME.fullmatch(given.name):
        refuse(f"{given.name!r} is no name of an account; give letters, digits, dots, dashes and underscores")
    uri, password = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")
    if not uri.startswith(("http://", "https://")):
        refuse(f"MLFLOW_TRACKING_URI {uri!r} is not the tracking server; give http(s)://HOST:PORT")
    if not password:
        refuse("MLFLOW_AUTH_ADMIN_PASSWORD is not set; it is the password of the server's account admin")

    os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    os.environ.pop("MLFLOW_TRACKING_TOKEN", None)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    from mlflow.exceptions import MlflowException
    from mlflow.server.auth.client import AuthServiceClient

    client = AuthServiceClient(uri)
    secret = secrets.token_urlsafe(32)  # letters, digits, - and _: no dot, so the last one of a token ends the name
    try:
        if given.action == "add":
            client.create_user(given.name, secret)
        elif given.action == "renew":
            client.update_user_password(given.name, secret)
        else:
            client.delete_user(given.name)
    except MlflowException as error:
        refuse(f"{uri} did not {given.action} {given.name}: {error.message.strip().splitlines()[0]}")
    if given.action != "remove":
        print(f"{given.name}.{secret}")


def refuse(sentence: str) -> NoReturn:
    print(f"accounts.py: {sentence}", file=sys.stderr)
    raise SystemExit(MISTAKE)


if __name__ == "__main__":
    main(sys.argv[1:])
