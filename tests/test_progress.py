"""What a user sees while a stage works."""

from itertools import chain, repeat

import pytest

from comp.progress import Reporter


@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "(4.0 s each)"), (10, "(2.5 steps/s)"), (8000, "(2,000 steps/s)"), (0, "(0.0 steps/s)")],
)
def test_speed_has_two_digits_or_is_in_seconds_per_unit(
    n: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = chain([0.0], repeat(4.0))
    monkeypatch.setattr("comp.progress.time.monotonic", lambda: next(clock))
    with Reporter().track("work", n, "steps") as advance:
        for _ in range(min(n, 1)):
            advance(n)
    assert words in capsys.readouterr().err
