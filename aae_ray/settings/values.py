"""The kinds of values that settings have: what is taken for one, and how it is spelled."""

import json
import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

MAX_SIDE = 4096  # pixels of an image's side: more is damaged, or would ask for all memory


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, got true or false")
    return value


def _widths(value: Any) -> Any:
    """`256`, `"128-64"` and `[128, 64]` all name the widths of hidden layers."""
    if isinstance(value, str) and re.fullmatch(r"\d+(-\d+)*", value):
        return tuple(int(width) for width in value.split("-"))
    if isinstance(value, str):
        raise ValueError("expected widths such as 128-64")
    return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `10m`, `2h` and `1h30m` are durations."""
    if isinstance(value, str) and value and re.fullmatch(r"(\d+h)?(\d+m)?(\d+s)?", value):
        units = {"h": 3600, "m": 60, "s": 1}
        return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", value))
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        written = _as_duration(value)
        hint = f"; {value.strip()} is written {written}" if written else ""
        raise ValueError(f"expected a number of seconds, or a duration such as 90s, 10m or 2h{hint}") from None


def _as_duration(text: str) -> str | None:
    """A duration in words, such as `2 minutes` or `1.5 h`, as a setting has it; None for anything else."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    part = r"(\d+(?:\.\d+)?)\s*(d|h|m|s)(?:ays?|ours?|rs?|in(?:ute)?s?|ec(?:ond)?s?)?\b[\s,]*"
    if not re.fullmatch(f"\\s*(?:{part})+", text, re.IGNORECASE):
        return None
    found = re.findall(part, text, re.IGNORECASE)
    minutes, seconds = divmod(round(sum(float(number) * units[unit.lower()] for number, unit in found)), 60)
    shown = zip((*divmod(minutes, 60), seconds), "hms", strict=True)
    return "".join(f"{amount}{unit}" for amount, unit in shown if amount)


def _name(value: str) -> str:
    """A part of the names of folders, runs, experiments and models, in all of which it must be the same."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            "expected letters, digits, dots, dashes and underscores, at most 100 of them, and neither a dot nor a dash "
            "first"
        )
    return value


def _model_name(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(?! )[A-Za-z0-9_][A-Za-z0-9._ -]{0,199}(?<! )", value):
        raise ValueError(
            "expected letters, digits, dots, dashes, underscores and spaces between them, at most 200 in all, and "
            "neither a dot nor a dash first"
        )
    if value is not None and value.endswith("-encoder"):
        raise ValueError("expected a name that does not end with -encoder, as that of the encoder beside it does")
    return value


def _experiment(value: str | None) -> str | None:
    if value is not None and (not value.strip() or len(value) > 500 or not value.isprintable()):
        raise ValueError("expected a line of text, of 1 to 500 letters")
    return value


def _folder(value: str) -> str:
    """A path, or a URI of a file system that there is."""
    scheme, remote, rest = value.partition("://")
    if remote and scheme not in FILE_SYSTEMS:
        raise ValueError(f"expected a folder, or a URI that begins with one of {', '.join(FILE_SYSTEMS)}")
    if not value.strip() or (remote and not rest.strip("/")):
        raise ValueError("expected a folder, or a URI such as s3://BUCKET/studies")
    if not remote and (not value.isprintable() or any(len(os.fsencode(part)) > 255 for part in value.split("/"))):
        raise ValueError("expected a path that can be printed, no part of which is longer than 255 bytes")
    return value


def _fractions(value: Any) -> Any:
    """`0.5,0.8`, as a list is recorded, is a list."""
    if isinstance(value, str) and re.fullmatch(r"[\d.,eE+-]*", value):
        return tuple(part for part in value.split(",") if part)
    if isinstance(value, str):
        raise ValueError("expected a list such as [0.5, 0.8]")
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _label_prior(value: Any) -> str | tuple[float, ...]:
    """`uniform`, `labels`, or shares such as [0.5, 0.3, 0.2], also as they are recorded."""
    if value in ("uniform", "labels"):
        return str(value)
    try:
        shares = tuple(float(_not_bool(share)) for share in _fractions(value))
    except (TypeError, ValueError):
        shares = ()
    if len(shares) < 2 or not all(0 < share < math.inf for share in shares):
        raise ValueError("expected uniform, labels, or a list of two or more shares above 0, such as [0.5, 0.3, 0.2]")
    return shares


def _names(value: Any) -> Any:
    """One name, or several joined by commas as a list is recorded, is a list."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _columns(value: Any) -> Any:
    """`a,b`, or a list, also as it is recorded: in JSON, where a name has a comma."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError('expected names of columns such as a,b, or a list such as ["a", "b, c"]') from None
    names = _names(value)
    # No set: what stands in the list may be a list itself, which is refused after this.
    if isinstance(names, list | tuple) and any(name in names[:index] for index, name in enumerate(names)):
        raise ValueError("expected each column once")
    return names


def _scale(value: Any) -> str:
    """`-1:1`, the values that become black and white, or `observed`."""
    low, colon, high = str(value).partition(":")
    try:
        ends = (float(low), float(high)) if colon else (0.0, 0.0)
    except ValueError:
        ends = (0.0, 0.0)
    if value == "observed":
        return "observed"
    if ends[0] == ends[1] or not all(map(math.isfinite, ends)):
        raise ValueError("expected LOW:HIGH, the values that become black and white, such as 0:16, or observed")
    return f"{low}:{high}"


def _size(value: Any) -> str:
    """`32` and `32x32` are the same height and width."""
    match = re.fullmatch(r"(\d{1,4})(?: ?x ?(\d{1,4}))?", str(value))
    sides = [int(side) for side in match.groups(default=match[1])] if match else []
    if not sides or not all(1 <= side <= MAX_SIDE for side in sides):
        raise ValueError(f"expected HEIGHTxWIDTH in pixels such as 32x24, or one side of a square, at most {MAX_SIDE}")
    return "x".join(map(str, sides))


def _colour(value: Any) -> str:
    """A name of CSS, or #rrggbb."""
    from PIL import ImageColor

    try:
        levels = len(ImageColor.getrgb(value))
    except (AttributeError, TypeError, ValueError):
        levels = 0
    if levels != 3:
        raise ValueError("expected a colour such as white, black or '#ff8000' (in quotes: # begins a comment)")
    return str(value)


def _channels(value: int) -> int:
    if value not in (1, 3):
        raise ValueError("expected 1 (grey) or 3 (colour)")
    return value


def _constraint(value: str) -> str:
    """`val/jsd_nats<=0.1` as `val/jsd_nats <= 0.1`: a metric, its side and a finite bound, each a word."""
    parts = [part.strip() for part in re.split("(<=|>=)", value, maxsplit=1)]
    metric, side, bound = parts if len(parts) == 3 else ("", "", "")
    try:
        finite = math.isfinite(float(bound))
    except ValueError:
        finite = False
    if not finite or not metric or " " in metric:
        raise ValueError("expected a metric, <= or >=, and a number, such as val/reconstruction_mse <= 0.03")
    return f"{metric} {side} {bound}"


FILE_SYSTEMS = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # of pyarrow

Name = Annotated[str, AfterValidator(_name)]
ModelName = Annotated[str | None, AfterValidator(_model_name)]
Experiment = Annotated[str | None, AfterValidator(_experiment)]
Folder = Annotated[str, AfterValidator(_folder)]
Int = Annotated[int, BeforeValidator(_not_bool)]
Float = Annotated[float, BeforeValidator(_not_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Int, Field(ge=1)]
Rate = Annotated[Float, Field(gt=0, le=10)]
Momentum = Annotated[Float, Field(ge=0, lt=1)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
Widths = Annotated[tuple[Positive, ...], BeforeValidator(_widths), Field(min_length=1, max_length=8)]
OptionalRate = Annotated[Float, Field(ge=0, le=10)]
Milestones = Annotated[tuple[Annotated[Float, Field(gt=0, lt=1)], ...], BeforeValidator(_fractions)]
LabelPrior = Annotated[str | tuple[float, ...], PlainValidator(_label_prior)]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1)]
Columns = Annotated[tuple[str, ...], BeforeValidator(_columns), Field(min_length=1)]
MaybeNames = Annotated[tuple[str, ...], BeforeValidator(_names)]
Constraints = Annotated[tuple[Annotated[str, AfterValidator(_constraint)], ...], BeforeValidator(_names)]
Duration = Annotated[Float, BeforeValidator(_seconds), Field(gt=0)]
PixelScale = Annotated[str, PlainValidator(_scale)]
Size = Annotated[str, PlainValidator(_size)]
Colour = Annotated[str, PlainValidator(_colour)]
Channels = Annotated[Int, AfterValidator(_channels)]

PriorName = Literal["gaussian", "uniform", "mixture", "swiss_roll"]
PosteriorName = Literal["deterministic", "gaussian", "universal"]
TaskName = Literal[
    "unsupervised",
    "label_informed",
    "supervised",
    "semi_supervised",
    "clustering",
    "reduction",
    "semi_supervised_reduction",
    "vae",
    "wae_mmd",
]
