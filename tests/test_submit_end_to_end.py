"""The submit stage through the real Kaggle client to the stand-in on loopback.

tests/test_faults.py plays the other faults against whole runs.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from finished_run import make_run, make_workspace
from kaggle_stand import Stand, stand

from comp.competition import COMPETITION
from comp.errors import KaggleError, RulesError, UnavailableError, UserError
from comp.metric import log_loss
from comp.submit import stage
from comp.submit.ledger import LedgerRow, read_ledger


class Trial:
    """A workspace with a run of its own, and the stand-in and client that all tests share."""

    def __init__(self, root: Path, scene: Stand) -> None:
        self.workspace = make_workspace(root)
        self.scene = scene
        self.server = scene.server
        self.n_before = len(scene.server.submissions), scene.server.n_uploads
        # A file that no test before has submitted.
        self.run = make_run(self.workspace, seed=1000 + len(scene.server.requests))

    def submit(self, force: bool = False) -> LedgerRow:
        kaggle, notebook = self.scene.kaggle, self.scene.notebook
        return stage.submit(self.workspace, COMPETITION, kaggle, self.run, notebook, force=force)

    @property
    def rows(self) -> list[LedgerRow]:
        return read_ledger(self.workspace.ledger)

    @property
    def refs(self) -> list[int]:
        """Of the submissions that arrived in this test."""
        return [made.ref for made in self.server.submissions[self.n_before[0] :]]

    @property
    def n_uploads(self) -> int:
        return self.server.n_uploads - self.n_before[1]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


@pytest.fixture
def trial(tmp_path: Path, scene: Stand) -> Trial:
    scene.arm()
    return Trial(tmp_path, scene)


def test_a_run_is_scored_once_by_the_bytes_on_disk_and_no_token_is_left_behind(
    trial: Trial, capfd: pytest.CaptureFixture[str]
) -> None:
    row = trial.submit()
    folder = trial.workspace.submissions
    cells = [line.split(",") for line in (folder / row.file).read_text().splitlines()[1:]]
    score = log_loss([int(id) % 2 for id, _ in cells], [float(prob) for _, prob in cells])
    assert row.public_score == pytest.approx(score, abs=6e-6)
    known = trial.server.submissions[-1]
    assert trial.refs == [known.ref] == [row.ref]
    assert (row.sha256, row.message, row.status) == (known.sha256, known.description, "complete")
    assert trial.submit() == row
    assert (trial.n_uploads, trial.rows) == (1, [row])
    trial.submit(force=True)
    assert trial.refs == [row.ref for row in trial.rows]
    assert len(trial.refs) == 2
    token = trial.server.account.token
    assert token not in "".join([*capfd.readouterr(), *trial.scene.notebook.lines])
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(token.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("403-rules", RulesError, "accept the rules"),
        ("daily-limit:on=CreateSubmission", KaggleError, "400"),
        ("upload-400", UnavailableError, "400"),
        ("submit-silent", KaggleError, "is not in the list"),
    ],
)
def test_a_refused_submission_leaves_nothing_that_the_next_run_waits_for(
    trial: Trial, fault: str, kind: type[UserError], words: str
) -> None:
    trial.scene.arm(fault)
    with pytest.raises(kind, match=words) as caught:
        trial.submit()
    assert "\n" not in str(caught.value)
    assert (trial.rows, trial.refs) == ([], [])
    trial.scene.arm()
    started = time.monotonic()
    assert trial.submit().status == "complete"
    assert time.monotonic() - started < stage.LISTED_S / 4
    assert len(trial.refs) == 1


def test_a_crash_after_the_upload_is_repaired_from_kaggles_list(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_row", crash)
        with pytest.raises(KeyboardInterrupt):
            trial.submit()
    assert trial.rows == []
    row = trial.submit()
    assert row.status == "complete"
    assert (trial.refs, trial.rows, trial.n_uploads) == ([row.ref], [row], 1)
