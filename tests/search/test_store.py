"""Finding a study by its name, its id or its folder, without guessing."""

from pathlib import Path

import pytest

from aae_ray.errors import UserError
from aae_ray.search.store import find_study, studies
from tests.search.histories import START, History

DIGITS = ("digits-20270115-080000-abcd", "digits-20270116-080000-0123")
BEST = "digits-best-20270117-080000-9999"
MNIST = "mnist-20270114-080000-beef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index, name in enumerate((MNIST, *DIGITS, BEST)):
        History(time=START + index, study_id=name).write(tmp_path / "runs" / name)
    (tmp_path / "runs" / "no-study").mkdir()
    return tmp_path / "runs"


def test_studies_are_listed_newest_first(root: Path, tmp_path: Path) -> None:
    assert [folder.name for folder in studies(root)] == [BEST, *reversed(DIGITS), MNIST]
    assert studies(tmp_path / "nowhere") == []


@pytest.mark.parametrize("name", ["mnist", "mnist-2027", "mnist-20270114-080000", MNIST])
def test_a_study_by_its_name_its_id_or_the_beginning_of_it(root: Path, name: str) -> None:
    assert find_study(name, root) == root / MNIST


def test_a_study_by_its_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (root / MNIST, root / MNIST / "journal.jsonl"):
        assert find_study(str(given), tmp_path / "elsewhere") == root / MNIST
    monkeypatch.chdir(tmp_path)
    assert find_study(f"runs/{MNIST}/", root) == Path("runs", MNIST)
    assert find_study("digits-best", root).name == BEST  # and not those of digits


@pytest.mark.parametrize("name", ["digits", "digits-2027"])
def test_a_name_of_several_studies_is_refused_with_all_of_them_newest_first(root: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        find_study(name, root)
    first, *listed = str(error.value).splitlines()
    assert f"{name} fits 2 studies" in first and [line.strip() for line in listed] == list(reversed(DIGITS))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnits", f"Did you mean {MNIST}?"),
        ("digit", f"Did you mean {DIGITS[1]}"),  # of a name the newest
        ("mnist-20270114-080000-beff", MNIST),
        ("zzz", f"the newest there are {BEST}, {DIGITS[1]}, {DIGITS[0]}"),
        ("", "there is no study"),
    ],
)
def test_an_unknown_study_is_refused_with_names_like_it(root: Path, name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        find_study(name, root)
    assert hint in str(error.value)


def test_a_folder_without_a_journal_is_no_study(root: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a study"):
        find_study(str(root / "no-study"), root)


def test_where_there_is_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no study digits under .*, nor any other"):
        find_study("digits", tmp_path / "runs")
