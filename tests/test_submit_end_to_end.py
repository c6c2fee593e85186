"""The submit stage through the real Kaggle client to a rehearsal server on loopback, faults included."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from finished_run import SAMPLE_IDS, make_run, make_workspace
from twin.server import Twin

from comp.competition import COMPETITION
from comp.errors import KaggleError, SubmissionError, UserError
from comp.kaggle import Kaggle, Patience
from comp.metric import log_loss
from comp.progress import Reporter
from comp.submit import stage, upload
from comp.submit.ledger import LedgerRow, read_ledger

LABELS = {name: place % 2 for place, name in enumerate(SAMPLE_IDS)}
HASTE = Patience(
    wait_first_s=0.02,
    wait_most_s=0.1,
    poll_first_s=0.02,
    poll_most_s=0.1,
    listed_s=1.0,
    retry_s=20.0,
)


class Bench:
    """A workspace and a run of its own, and the server and client that all tests share: the client takes a second to start."""

    def __init__(self, root: Path, server: Twin, kaggle: Kaggle) -> None:
        self.workspace = make_workspace(root)
        self.server = server
        self.kaggle = kaggle
        self._n_before = (len(server.submissions), server.n_uploads)
        self.run = make_run(
            self.workspace, seed=1000 + len(server.requests)
        )  # a file that no test before has submitted

    def submit(self, limit_s: float = 20.0, force: bool = False) -> LedgerRow:
        return stage.submit(
            self.workspace,
            COMPETITION,
            self.kaggle,
            self.run,
            Reporter(),
            force=force,
            limit_s=limit_s,
        )

    @property
    def rows(self) -> tuple[LedgerRow, ...]:
        return read_ledger(self.workspace.ledger).rows

    @property
    def submissions(self) -> list[SimpleNamespace]:
        """What has arrived in this test."""
        return self.server.submissions[self._n_before[0] :]

    @property
    def n_uploads(self) -> int:
        return self.server.n_uploads - self._n_before[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Twin, Kaggle]]:
    folder = tmp_path_factory.mktemp("kaggle")
    archive, solution = folder / "archive.zip", folder / "solution.csv"
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr(COMPETITION.sample, "id,label\n")
    solution.write_text(
        "id,label\n" + "".join(f"{name},{label}\n" for name, label in LABELS.items())
    )
    with Twin(archive, solution, daily_limit=1000) as server:
        kaggle = Kaggle(
            COMPETITION, Reporter(), env=server.environment(folder / "home"), patience=HASTE
        )
        yield server, kaggle


@pytest.fixture
def start(tmp_path: Path, shared: tuple[Twin, Kaggle]) -> Callable[..., Bench]:
    """Arms the server with faults, and gives what submits to it."""

    def started(*faults: str) -> Bench:
        shared[0].arm(faults)
        return Bench(tmp_path, *shared)

    return started


def test_a_run_is_scored_once_by_the_very_bytes_on_disk_and_no_token_is_left_behind(
    start: Callable[..., Bench], capfd: pytest.CaptureFixture[str]
) -> None:
    bench = start()
    assert bench.kaggle.endpoint().startswith("http://localhost")
    row = bench.submit()
    lines = (bench.workspace.submissions / row.file).read_text().splitlines()[1:]
    probs = {name: float(prob) for name, prob in (line.split(",") for line in lines)}
    assert row.public_score == pytest.approx(
        log_loss(list(LABELS.values()), [probs[name] for name in LABELS]), abs=6e-6
    )
    (known,) = bench.submissions
    assert (row.ref, row.sha256, row.message, row.status) == (
        known.ref,
        known.sha256,
        known.description,
        "complete",
    )
    assert bench.submit() == row
    assert (bench.n_uploads, bench.rows) == (1, (row,))
    assert bench.submit(force=True).ref != row.ref
    assert len(bench.submissions) == len(bench.rows) == 2
    token = bench.server.account.token
    written = [
        path.read_bytes() for path in bench.workspace.submissions.rglob("*") if path.is_file()
    ]
    assert token not in "".join(capfd.readouterr())
    assert not any(token.encode() in content for content in written)


@pytest.mark.parametrize(
    "fault",
    [
        "submit-lost:1",
        "upload-503:1",
        "upload-reset:1",
        "score-delayed:3",
        "list-delayed:2",
        "503:2:on=ListSubmissions",
    ],
)
def test_after_a_fault_that_passes_there_is_one_submission_with_a_score_in_one_row(
    start: Callable[..., Bench], fault: str
) -> None:
    bench = start(fault)
    row = bench.submit()
    (known,) = bench.submissions
    assert row.status == "complete"
    assert bench.rows == (row,)
    assert row.ref == known.ref


@pytest.mark.parametrize(
    ("fault", "kind", "words", "n_submissions", "statuses"),
    [
        ("daily-limit", SubmissionError, "no submission is left today", 0, []),
        ("score-error", SubmissionError, "The scoring of this submission failed", 1, ["error"]),
        ("submit-silent", KaggleError, "is not in the list", 0, []),
        ("403-rules", KaggleError, "accept the rules", 0, []),
    ],
)
def test_a_fault_that_stays_ends_in_one_line_with_its_cause_and_a_true_ledger(
    start: Callable[..., Bench],
    fault: str,
    kind: type[UserError],
    words: str,
    n_submissions: int,
    statuses: list[str],
) -> None:
    bench = start(fault)
    with pytest.raises(kind, match=words) as caught:
        bench.submit()
    assert "\n" not in str(caught.value)
    assert len(bench.submissions) == n_submissions
    assert [row.status for row in bench.rows] == statuses


def test_a_crash_after_the_upload_is_repaired_from_kaggles_list(
    start: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = start()

    def crash(path: Path, row: LedgerRow) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(upload, "write_row", crash)
        with pytest.raises(KeyboardInterrupt):
            bench.submit()
    assert bench.rows == ()
    row = bench.submit()
    (known,) = bench.submissions
    assert (row.ref, row.status) == (known.ref, "complete")
    assert bench.rows == (row,)
    assert bench.n_uploads == 1


def test_a_score_that_comes_late_is_picked_up_by_scores(start: Callable[..., Bench]) -> None:
    bench = start("score-delayed")
    assert bench.submit(limit_s=0.1).status == "pending"
    assert [row.status for row in bench.rows] == ["pending"]
    bench.server.arm(())
    (row,) = stage.scores(bench.workspace, COMPETITION, bench.kaggle, Reporter())
    assert row.status == "complete"
    assert bench.rows == (row,)
