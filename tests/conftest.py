"""What several tests share."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests are small: more threads only wait for each other
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
