"""What several tests share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """The archive of a real, smaller edition of the competition, where one lies beside the checkout."""
    path = SHARED / "competition" / "dogs-vs-cats-redux-kernels-edition.zip"
    if not path.exists():
        pytest.skip("no real photos beside this checkout")
    return path


@pytest.fixture(scope="session")
def real_solution(real_archive: Path) -> Path:
    return real_archive.with_name("solution.csv")
