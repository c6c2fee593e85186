"""What several tests share."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

from comp.competition import COMPETITION
from comp.data.stage import prepare
from comp.progress import Reporter
from comp.store import Workspace

if TYPE_CHECKING:
    from kaggle_stand import Stand

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # a job in the background begins with Ctrl-C ignored, and so would its children
torch.set_num_threads(1)  # tests are small: more threads only wait for each other
hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def real_archive() -> Path:
    """A real, smaller edition of the competition, where there is one beside the checkout."""
    path = SHARED / "competition" / "dogs-vs-cats-redux-kernels-edition.zip"
    if not path.exists():
        pytest.skip("no real photos beside this checkout")
    return path


@pytest.fixture(scope="session")
def real_solution(real_archive: Path) -> Path:
    return real_archive.with_name("solution.csv")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Stand"]:
    """The client and the server that it asks."""
    from kaggle_stand import stand

    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


@pytest.fixture(scope="session")
def edition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An archive of 80 drawn training photos and 20 test photos, and its solution."""
    from comp.rehearsal.drawing import write_edition

    return write_edition(tmp_path_factory.mktemp("edition"), seed=2, n_train=80, n_test=20)


@pytest.fixture(scope="session")
def drawn(edition: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace after `make data` of `edition`. Not to be written to: take `drawn_copy`."""
    workspace = Workspace(tmp_path_factory.mktemp("drawn"))
    prepare(workspace, COMPETITION, edition[0], False, None, Reporter())
    return workspace


@pytest.fixture
def drawn_copy(drawn: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(drawn.root, tmp_path / "drawn")
    return Workspace(tmp_path / "drawn")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), "")
AXE = Path(__file__).parents[1] / ".browser/node_modules/axe-core/axe.min.js"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent = {}
    if not torch.cuda.is_available():
        absent["gpu"] = "no CUDA device here"
    if not (CHROMIUM and AXE.exists()) and config.option.markexpr != "browser":
        absent["browser"] = "no Chromium or no axe-core here: .ci/run installs them"
    for item in items:
        for marker, reason in absent.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))  # CI lacks a GPU alone
