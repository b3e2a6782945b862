"""`python -m aae_ray` names the commands."""

import re
from pathlib import Path

import pytest

import aae_ray
from aae_ray.__main__ import commands, main
from aae_ray.errors import MISTAKE


def test_every_command_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    """Every module that is run as one: none is forgotten, and none without a word."""
    package = Path(aae_ray.__path__[0])
    runnable = {path.stem for path in package.glob("[a-z]*.py") if "if __name__ == " in path.read_text()}
    assert commands().keys() == runnable and all(commands().values())
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(bool(re.match(r"python -m aae_ray\.[a-z]+ +\S", line)) for line in lines) == len(runnable)
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(("word", "said"), [("tune", "aae_ray.tune"), ("tun", "Did you mean tune?"), ("x", "COMMAND")])
def test_a_command_that_is_written_without_its_dot_is_told(
    word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == MISTAKE
    told = capsys.readouterr().err
    assert said in told and ("Did you mean" in told) == (word == "tun")
