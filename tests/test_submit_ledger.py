"""The ledger: whole, in turns, and patient with hands."""

import multiprocessing
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from comp.errors import SubmissionError
from comp.store import code_commit
from comp.submit.ledger import COLUMNS, LedgerRow, read_ledger, write_row

ROW = LedgerRow(
    when="2026-11-21T20:28:37Z",
    file="lite0_head-0123456789.csv",
    sha256="ab" * 32,
    recipe="lite0_head",
    fingerprint="0123456789",
    commit="c0ffee-dirty",
    cv_raw=0.0341,
    cv_calibrated=0.03395,
    cv_clipped=0.0362,
    public_score=None,
    status="pending",
    ref=40_000_001,
    message='a "quoted", message sha abababababab',
)


def rows(n: int) -> list[LedgerRow]:
    return [replace(ROW, ref=40_000_001 + k, sha256=f"{k:064x}") for k in range(n)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "submissions" / "ledger.csv"


def test_what_is_written_is_read_back(path: Path) -> None:
    for row in rows(3):
        write_row(path, row)
    assert read_ledger(path).rows == tuple(rows(3))
    assert read_ledger(path).remarks == ()
    assert path.read_bytes().startswith((",".join(COLUMNS) + "\n").encode())
    assert path.read_bytes().count(b"\n") == 4


def test_no_ledger_is_an_empty_one(path: Path) -> None:
    assert read_ledger(path).rows == ()
    path.parent.mkdir()
    path.write_bytes(b"\n")
    assert read_ledger(path).rows == ()
    write_row(path, ROW)
    assert read_ledger(path).rows == (ROW,)


def test_a_score_fills_its_row_and_keeps_every_other_byte(path: Path) -> None:
    for row in rows(3):
        write_row(path, row)
    content = path.read_bytes().splitlines(keepends=True)
    content[1] = content[1].replace(b"0.0341", b"3.41e-2").replace(b"\n", b"\r\n")  # by hand
    content[3] = content[3].replace(b"lite0_head,", b"'t w\xe4r einmal,")  # in Latin-1
    path.write_bytes(b"".join(content))
    done = replace(rows(3)[1], status="complete", public_score=0.02417)
    write_row(path, done)
    after = path.read_bytes().splitlines(keepends=True)
    assert [after[n] for n in (0, 1, 3)] == [content[n] for n in (0, 1, 3)]
    assert read_ledger(path).rows[1] == done


def test_columns_that_a_hand_has_added_or_moved_stay_where_they_are(path: Path) -> None:
    path.parent.mkdir()
    first = b"\xef\xbb\xbf" + ",".join([*reversed(COLUMNS), "note"]).encode() + b"\r\n"
    path.write_bytes(first)
    write_row(path, ROW)
    assert read_ledger(path).rows == (ROW,)
    path.write_bytes(
        path.read_bytes().replace(b"Z,\n", b"Z,best so far\n").replace(b",0.0341,", b",3.410e-2,")
    )
    write_row(path, replace(ROW, status="complete", public_score=0.03))
    assert path.read_bytes().startswith(first)
    assert path.read_bytes().endswith(b"Z,best so far\n")
    assert b",complete,0.03,0.0362,0.03395,3.410e-2," in path.read_bytes()
    assert read_ledger(path).rows == (replace(ROW, status="complete", public_score=0.03),)


def test_a_file_without_a_last_line_end_gains_a_row_and_not_a_longer_one(path: Path) -> None:
    write_row(path, rows(2)[0])
    path.write_bytes(path.read_bytes().rstrip())
    write_row(path, rows(2)[1])
    assert read_ledger(path).rows == tuple(rows(2))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"0.0341", b"about .03", "line 2: cv_raw 'about .03' is not a number"),
        (b"0.0341", b"nan", "line 2: cv_raw 'nan' is not a number"),
        (b",40000001,", b",4e7,", "line 2: ref '4e7' is not a number"),
        (b",lite0_head,", b",lite0_head,oops,", "line 2: has 14 cells for 13 columns"),
    ],
)
def test_a_damaged_cell_is_remarked_on_and_the_row_still_known_by_its_hash(
    path: Path, old: bytes, new: bytes, words: str
) -> None:
    write_row(path, ROW)
    write_row(path, rows(2)[1])
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    ledger = read_ledger(path)
    assert [row.sha256 for row in ledger.rows] == [ROW.sha256, rows(2)[1].sha256]
    assert words in ledger.remarks[0]


@pytest.mark.parametrize("line", [b"<<<<<<< HEAD\n", b"see the wiki\n", b'"never closed,\n'])
def test_a_line_that_is_no_row_is_remarked_on_and_survives(path: Path, line: bytes) -> None:
    write_row(path, rows(2)[0])
    path.write_bytes(path.read_bytes() + line + b"\n,,,\n")
    write_row(path, rows(2)[1])
    ledger = read_ledger(path)
    assert ledger.rows == tuple(rows(2))
    assert [remark.split(" and")[0] for remark in ledger.remarks] == [
        "ledger.csv line 3: names no sha256"
    ]
    assert line in path.read_bytes()


def test_a_ledger_without_our_columns_is_refused_and_not_touched(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"when;file;sha256\n")
    for call in (lambda: read_ledger(path), lambda: write_row(path, ROW)):
        with pytest.raises(SubmissionError, match=r"ledger\.csv has no column when, file"):
            call()
    assert path.read_bytes() == b"when;file;sha256\n"


def test_a_message_over_several_lines_stays_one_row(path: Path) -> None:
    write_row(path, replace(ROW, message="two\nlines"))
    assert read_ledger(path).rows[0].message == "two lines"


def _write_many(path: Path, first: int) -> None:
    for row in rows(200)[first : first + 20]:
        write_row(path, row)


def test_processes_that_write_at_once_lose_no_row(path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=_write_many, args=(path, first)) for first in (0, 20, 40, 60)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(row.ref or 0 for row in read_ledger(path).rows) == [row.ref for row in rows(80)]
    assert [row.ref for row in read_ledger(path).rows if (row.ref or 0) < 40_000_021] == [
        row.ref for row in rows(20)
    ]


def test_the_commit_is_marked_dirty_only_where_the_code_differs(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *words],
            check=True,
            capture_output=True,
        )

    code = tmp_path / "comp"
    code.mkdir()
    (code / "a.py").write_text("one")
    assert code_commit(code) == "none"
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    clean = code_commit(code)
    assert len(clean) == 40
    (tmp_path / "ledger.csv").write_text("a new row")
    assert code_commit(code) == clean
    (code / "a.py").write_text("two")
    assert code_commit(code) == f"{clean}-dirty"
