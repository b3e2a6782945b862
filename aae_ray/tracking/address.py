"""The MLflow server or database: where it is, and how its client behaves."""

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import ssl
import tempfile
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from aae_ray.errors import UserError
from aae_ray.secrets import redact, without_userinfo

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
LOGGERS = ("mlflow", "alembic", "sqlalchemy", "sqlalchemy.engine")  # those that MLflow gives handlers of their own
# What no path of an SQLite database can have: ? begins options; %20 is a space to SQLAlchemy 2.1, but not to 2.0 and
# MLflow; and the last are bytes that are not UTF-8.
UNFIT = re.compile(r"\?|%[0-9A-Fa-f]{2}|[\udc80-\udcff]")
ANSWER_SECONDS = 5.0
MOST_READ = 1 << 16  # bytes of an answer
SEARCH = "api/2.0/mlflow/experiments/search?max_results=1"
GUARDED = (401, 403, 407, 429)  # statuses of guards before a server
NO_ACCOUNT = (401, 403)
SQLITE = b"SQLite format 3\0"  # how a database begins
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
LONGEST_NAME = 255  # bytes, of a folder
DATABRICKS = "databricks"  # as MLflow spells the workspace that is logged in to, without a colon


def tracking_uri(given: str | None) -> str:
    """The MLflow server or database: as given, else MLFLOW_TRACKING_URI, else sqlite:///mlflow.db of this folder.

    Raises UserError for an address that MLflow cannot write to.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, colon, rest = uri.partition(":")
    scheme = scheme.lower().partition("+")[0]
    source, told = "tracking.uri" if given else "MLFLOW_TRACKING_URI", repr(redact(uri))
    if uri == DATABRICKS:
        return uri
    if not colon or scheme not in SCHEMES or (scheme.startswith("http") and not _host(uri)):
        raise UserError(
            f"{source} {told} is not a server or database of MLflow; give http(s)://host:port or sqlite:///file.db"
        )
    if scheme == "sqlite":
        # As SQLAlchemy reads it: # is a character, and behind a ? stand options.
        name, mark, options = rest.removeprefix("///").partition("?")
        if not rest.startswith("///") or not name:
            raise UserError(f"{source} {told} names no file; give sqlite:///file.db")
        path = Path(name).absolute()
        refused = UNFIT.search(f"{path}{mark}" if options and "=" not in options else str(path))
        if refused:
            where = str(path.parent) if UNFIT.search(str(path.parent)) else f"{source} {told}"
            text = (
                f"{where}: the path of an SQLite database cannot have a {refused.group()} in it; "
                "rename the folder, or give tracking.uri with another path"
            )
            raise UserError(text.encode(errors="backslashreplace").decode())
        if os.path.isdir(path):
            raise UserError(f"{source} {told}: {path} is a folder")
        if not os.path.isdir(path.parent):
            raise UserError(f"{source} {told}: there is no folder {path.parent}")
        uri = f"sqlite:///{path}"
    return uri


def _host(uri: str) -> str | None:
    try:
        return urlsplit(uri).hostname
    except ValueError:
        return None


def check_answers(uri: str, what: str = "tracking.uri") -> None:
    """Raises UserError when nothing answers at an address within ANSWER_SECONDS, what is there is no database, or it
    asks for an account and is given none that it knows; `what` it is that has the address."""
    told = f"{what} {redact(uri)}"
    if uri.startswith("http"):
        try:
            if not _is_mlflow(without_userinfo(uri).rstrip("/")):
                raise UserError(f"{told} answers, but is no server of MLflow; see that host, port and path are right")
            if (status := _refused_account(uri)) is not None:
                hosts = ", and see that MLFLOW_SERVER_ALLOWED_HOSTS of the server has this host" * (status == 403)
                raise UserError(
                    f"{told} asks for an account and was given none that it knows ({status}); set "
                    f"MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD{hosts}"
                )
        except (OSError, HTTPException) as error:  # URLError is one
            raise UserError(f"{told} does not answer: {_why(error)}") from None
    elif uri.startswith("sqlite:"):
        path = Path(uri.partition(":///")[2].partition("?")[0])
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if file.read(len(SQLITE)) not in (b"", SQLITE):
                raise UserError(f"{told}: {path} is not an SQLite database; give another file")
        if not _can_be_written(path):
            raise UserError(f"{told}: {path} cannot be written to")
    elif uri == DATABRICKS or uri.startswith(f"{DATABRICKS}:"):
        try:
            mlflow_client(uri).search_experiments(max_results=1)
        except Exception as error:  # of MLflow, of its requests, or of the SDK: of no common type
            reason = redact(str(error).partition(". ")[0].strip() or type(error).__name__)
            raise UserError(f"{told} does not answer; log in to it first ({reason})") from None
    else:
        _check_server(uri, told)


def _is_mlflow(address: str) -> bool:
    """Whether what answers is MLflow, or a guard before it, which asks for an account or has trouble of its own.

    Raises OSError or HTTPException where nothing answers.
    """
    for path in ("health", SEARCH):  # a proxy may hand on the second alone
        asked = f"{address}/{path}"
        try:
            with urlopen(asked, timeout=ANSWER_SECONDS) as answer:
                content = answer.read(MOST_READ)
                if answer.geturl() != asked or content.strip() == b"OK" or _says_mlflow(content):
                    return True  # led elsewhere: to where an account is asked for
        except HTTPError as error:
            with error:
                if error.code in GUARDED or error.code >= 500 or _says_mlflow(error.read(MOST_READ)):
                    return True
    return False


def _refused_account(uri: str) -> int | None:
    """The status by which a server turns MLflow's client away with the account that it has; None where it does not.

    Raises OSError or HTTPException where nothing answers.
    """
    try:
        urlopen(f"{without_userinfo(uri).rstrip('/')}/{SEARCH}", timeout=ANSWER_SECONDS).close()
        return None  # anybody may come in, and MLflow, which takes seconds to import, is not needed yet
    except HTTPError as error:
        with error:
            if error.code not in NO_ACCOUNT:
                return None
    try:
        mlflow_client(uri).search_experiments(max_results=1)
    except Exception as error:  # of MLflow or of its requests
        status = getattr(error, "get_http_status_code", lambda: None)()
        return status if status in NO_ACCOUNT else None
    return None


def _says_mlflow(content: bytes) -> bool:
    """Whether an answer is one of MLflow's interface: JSON with experiments, an error, or nothing."""
    try:
        answer = json.loads(content)
    except ValueError:
        return False
    return isinstance(answer, dict) and (not answer or not answer.keys().isdisjoint(("experiments", "error_code")))


def _can_be_written(path: Path) -> bool:
    """Whether a file can be changed, or made. Permissions do not tell: root has all of them, on /proc as well."""
    try:
        if os.path.exists(path):
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError:
        return False
    return True


def _check_server(uri: str, told: str) -> None:
    """The same of a database that has a server."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        url.get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        raise UserError(f"{told} needs the package {error.name}, which is not installed") from None
    except (ArgumentError, NoSuchModuleError):
        raise UserError(f"{told} is not the address of a database") from None
    port = url.port or PORTS.get(url.get_backend_name())
    if url.host and port:
        try:
            socket.create_connection((url.host, port), ANSWER_SECONDS).close()
        except OSError as error:
            raise UserError(f"{told} does not answer: {_why(error)}") from None


def _why(error: BaseException) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    if isinstance(reason, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(reason, socket.gaierror):
        return "there is no such host"
    if isinstance(reason, TimeoutError):
        return f"no answer within {ANSWER_SECONDS:g} s"
    if isinstance(reason, ssl.SSLError):
        return "what listens there speaks no TLS, or has a certificate that is not trusted"
    return "what listens there does not speak HTTP" if isinstance(reason, HTTPException) else "it is unreachable"


def quiet_mlflow() -> None:
    """No telemetry, no minutes of waiting for a server that is down, no warnings, no text on the screen.

    Before MLflow is imported.
    """
    defaults = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # a server waits 20 s itself where its database is locked
        "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_CONFIGURE_LOGGING": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # of every run that ends, where there is a server
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    for name in LOGGERS:  # a study's log gets what they say, through the root logger
        own = logging.getLogger(name)
        own.handlers, own.propagate = [logging.NullHandler()], True
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def mlflow_client(uri: str) -> Any:
    """MLflow's client for an address. It tries a database that does not answer once, and not ten times for 100 s: who
    calls it tries again, and can say meanwhile why."""
    quiet_mlflow()
    from mlflow import MlflowClient

    if not uri.startswith("http"):
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = 1
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def artifact_location(uri: str, experiment: str) -> str | None:
    """Beside an SQLite database, as an absolute address; a server has its own place."""
    if not uri.startswith("sqlite:"):
        return None
    database = Path(uri.partition(":///")[2].partition("?")[0])
    name = experiment.replace("/", "-")
    if name in (".", "..") or len(os.fsencode(name)) > LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(experiment)).hexdigest()[:16]
    return (database.parent / "mlartifacts" / name).as_uri()


def make_database(uri: str) -> None:
    """Make a new SQLite database of MLflow under another name first: a process that is killed in the middle of MLflow's
    migrations would leave one that MLflow can never open again."""
    path = Path(uri.partition(":///")[2].partition("?")[0])
    if not uri.startswith("sqlite:///") or os.path.exists(path):
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        mlflow_client(f"sqlite:///{partial}").search_experiments()
        with contextlib.suppress(FileExistsError):  # another study has just made it
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
