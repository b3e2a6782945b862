"""Ray's own schema of a cluster file. Its functions are private, and named in this file alone."""

import copy
from collections.abc import Mapping
from typing import Any

from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config


def schema_problem(content: Mapping[str, Any]) -> str | None:
    """What Ray's schema refuses in a cluster file, in a sentence; None where it takes the file."""
    try:
        validate_config(prepare_config(copy.deepcopy(dict(content))))
    except ValidationError as error:
        return _told(error)
    except SystemExit:  # Ray's launcher has printed why
        return "Ray's cluster launcher refuses the file, for the reason above"
    except Exception as error:  # ValueError, KeyError and others, by what is missing
        return _wrong_type(content) or f"{type(error).__name__}: {error}"
    return None


def _wrong_type(content: Mapping[str, Any]) -> str | None:
    """What the schema refuses in a file as it is written: Ray fills in what is missing first, and stumbles there over
    what is of another type."""
    try:
        validate_config(dict(content))
    except ValidationError as error:
        return _told(error)
    except Exception:  # what Ray would have filled in is missing
        mounts = content.get("file_mounts") or {}  # of whose values the schema says nothing
        wrong = (place for place, source in mounts.items() if not isinstance(source, str))
        return next((f"file_mounts.{place}: {mounts[place]!r} is not of type 'string'" for place in wrong), None)
    return None


def _told(error: ValidationError) -> str:
    key = ".".join(map(str, error.absolute_path)) or "the file"
    return f"{key}: {error.message}"
