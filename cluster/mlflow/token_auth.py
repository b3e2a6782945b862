"""Lets an account in by a token, `NAME.SECRET` in MLFLOW_TRACKING_TOKEN, as well as by its name and password.

The secret is the account's password, and has no dot in it: accounts.py makes both. MLflow's own function then judges,
with its cache, and sees no difference.
"""

from flask import Response, request
from mlflow.server import auth
from werkzeug.datastructures import Authorization


def authenticate() -> Authorization | Response:
    """Who sent the request that Flask serves at the moment, or the answer 401."""
    given = request.authorization
    if given is not None and given.type == "bearer":
        name, _, secret = (given.token or "").rpartition(".")
        given = Authorization("basic", {"username": name, "password": secret})
        request.authorization = given
    known = given is not None and given.username and given.password
    answer: Authorization | Response = (
        auth.authenticate_request_basic_auth() if known else auth.make_basic_auth_response()
    )
    return answer
