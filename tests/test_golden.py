"""The commands make of a small fixed edition what is pinned in tests/golden/pinned."""

import pytest
from golden.pin import difference, pinned, produce

pytestmark = pytest.mark.slow
PINNED = pinned()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return produce(tmp_path_factory.mktemp("golden"), exact=False)


@pytest.mark.parametrize("golden", sorted({name.partition("/")[0] for name in PINNED}))
def test_the_commands_make_what_is_pinned(golden: str, made: dict[str, str]) -> None:
    names = sorted(name for name in {**PINNED, **made} if name.startswith(f"{golden}/"))
    found = [difference(name, PINNED.get(name, ""), made.get(name, "")) for name in names]
    assert not any(found), "\n".join(filter(None, found))


def test_a_command_makes_nothing_that_is_not_pinned(made: dict[str, str]) -> None:
    assert sorted(made) == sorted(PINNED)


@pytest.mark.parametrize(
    ("old", "new", "is_equal"),
    [
        ("id,logit\n1,0.500000\n", "id,logit\n1,0.500900\n", True),
        ("id,logit\n1,0.500000\n", "id,logit\n1,0.501100\n", False),
        ("id,logit\n1,0.500000\n", "id,logit\n2,0.500000\n", False),
        ('"clip": 0.005', '"clip": 0.0055', False),
    ],
)
def test_measured_numbers_may_differ_by_the_tolerance_and_nothing_else_may(
    old: str, new: str, is_equal: bool
) -> None:
    assert (difference("x/oof.csv", old, new) is None) == is_equal
