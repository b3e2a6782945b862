"""python -m aae_ray: the commands, a line each."""

import ast
import pkgutil
import sys
from pathlib import Path

import aae_ray
from aae_ray.cli import CLOSED_PIPE, NO_ROOM, leave, no_room
from aae_ray.errors import MISTAKE, did_you_mean


def commands() -> dict[str, str]:
    """What each command does, by its name: as the first line of its module says, which is not imported for it."""
    found = {}
    for module in pkgutil.iter_modules(aae_ray.__path__):
        path = Path(aae_ray.__path__[0], f"{module.name}.py")
        if module.ispkg:
            continue
        head, colon, text = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition(": ")
        if colon and head == f"python -m aae_ray.{module.name}":
            found[module.name] = text.partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    """Print the commands; the exit code."""
    known = commands()
    if arguments and arguments[0] not in ("-h", "--help"):
        name, hint = ("COMMAND", did_you_mean(arguments[0], known)) if arguments[0] not in known else (arguments[0], "")
        print(f"a command is written with a dot: python -m aae_ray.{name}.{hint}", file=sys.stderr)
        return MISTAKE
    print("python -m aae_ray.COMMAND --help says how each of these is used.\n")
    width = max(map(len, known))
    for name, text in known.items():
        print(f"python -m aae_ray.{name:<{width}}  {text}")
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except BrokenPipeError:  # the reader has what it wanted, as `head` does
        code = CLOSED_PIPE
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        code = no_room(error)
    leave(SystemExit(code))
