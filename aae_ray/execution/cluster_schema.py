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
        key = ".".join(map(str, error.absolute_path)) or "the file"
        return f"{key}: {error.message}"
    except SystemExit:  # Ray's launcher has printed why
        return "Ray's cluster launcher refuses the file, for the reason above"
    except Exception as error:  # ValueError, KeyError and others, by what is missing
        return f"{type(error).__name__}: {error}"
    return None
