"""The ledger: written whole and in turns, and tolerant of edits by hand."""

import multiprocessing
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from heard import Heard

from comp.errors import SubmissionError
from comp.progress import Reporter
from comp.store import code_commit
from comp.submit.ledger import LEDGER_COLUMNS, LedgerRow, read_ledger, write_row

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
SCORED = replace(ROW, status="complete", public_score=0.02417)


def rows(n: int) -> list[LedgerRow]:
    return [replace(ROW, ref=40_000_001 + k, sha256=f"{k:064x}") for k in range(n)]


def write(path: Path, *new: LedgerRow) -> None:
    for row in new:
        write_row(path, row, Reporter())


def edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "submissions" / "ledger.csv"


def test_a_row_is_a_line_of_these_bytes_and_reads_back(path: Path) -> None:
    write(path, ROW, *rows(2)[1:])
    heard = Heard()
    assert read_ledger(path, heard) == [ROW, rows(2)[1]]
    assert heard.lines == []
    header, first, second = path.read_bytes().splitlines(keepends=True)
    assert header == ",".join(LEDGER_COLUMNS).encode() + b"\n"
    assert first == (
        b"2026-11-21T20:28:37Z,lite0_head-0123456789.csv," + b"ab" * 32 + b",lite0_head,0123456789,"
        b"c0ffee-dirty,0.0341,0.03395,0.0362,,,pending,40000001,"
        b'"a ""quoted"", message sha abababababab"\n'
    )
    assert second.endswith(b"\n")


@pytest.mark.parametrize("content", [None, b"", b"\n"])
def test_an_absent_or_empty_file_is_an_empty_ledger(path: Path, content: bytes | None) -> None:
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    assert read_ledger(path) == []
    write(path, ROW)
    assert read_ledger(path) == [ROW]


def test_a_score_fills_its_row_and_keeps_the_text_of_every_other_cell(path: Path) -> None:
    write(path, *rows(3))
    edit(path, b",0.0341,", b",3.41e-2,")
    before = path.read_bytes()
    write(path, replace(rows(3)[0], status="complete", public_score=0.02417, private_score=0.025))
    assert path.read_bytes() == before.replace(b",,,pending,", b",0.02417,0.025,complete,", 1)


def test_columns_that_were_added_or_moved_by_hand_stay_where_they_are(path: Path) -> None:
    path.parent.mkdir()
    header = ", ".join([*reversed(LEDGER_COLUMNS), "note"])
    path.write_bytes(b"\xef\xbb\xbf" + header.encode() + b"\r\n")  # as a spreadsheet saves it
    write(path, ROW)
    assert read_ledger(path) == [ROW]
    edit(path, b"Z,\n", b"Z,best so far\n")
    write(path, SCORED)
    assert path.read_text().startswith(header.replace(" ", "") + "\n")
    assert path.read_text().endswith("Z,best so far\n")
    assert read_ledger(path) == [SCORED]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"0.0341", b"about .03", "line 2: cv_raw 'about .03' is not a number"),
        (b"0.0341", b"nan", "line 2: cv_raw 'nan' is not a number"),
        (b",40000001,", b",4e7,", "line 2: ref '4e7' is not a number"),
    ],
)
def test_a_cell_that_is_no_number_is_warned_of_and_the_row_still_known_by_its_hash(
    path: Path, old: bytes, new: bytes, words: str
) -> None:
    write(path, ROW, rows(2)[1])
    edit(path, old, new)
    heard = Heard()
    known = read_ledger(path, heard)
    assert [row.sha256 for row in known] == [ROW.sha256, rows(2)[1].sha256]
    assert str(heard).startswith(f"warning: ledger.csv {words}")
    assert new in path.read_bytes()


@pytest.mark.parametrize("line", [b"<<<<<<< HEAD", b"see the wiki", b",note"])
def test_a_line_without_a_hash_is_warned_of_and_stays(path: Path, line: bytes) -> None:
    write(path, rows(2)[0])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n,,,")  # no line end at the end
    write(path, rows(2)[1])
    heard = Heard()
    assert read_ledger(path, heard) == rows(2)
    assert heard.lines == ["warning: ledger.csv line 4 has no sha256 and is ignored"]
    assert b"\n" + line + b"," in path.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"when,file,", b"when,name,", r"ledger\.csv has no column file: correct its first line"),
        (b",lite0_head,", b",lite0_head,oops,", "Expected 14 fields in line 2, saw 15"),
        (b",lite0_head,", b',"lite0_head,', "cannot be read"),  # a quote that is never closed
        (b",lite0_head,", b",t\xeate_lite0,", "can't decode byte 0xea"),
    ],
)
def test_a_file_that_is_no_ledger_is_refused_in_one_line_and_not_touched(
    path: Path, old: bytes, new: bytes, words: str
) -> None:
    write(path, replace(ROW, message="m"))
    edit(path, old, new)
    content = path.read_bytes()
    for call in (lambda: read_ledger(path), lambda: write(path, ROW)):
        with pytest.raises(SubmissionError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_message_over_several_lines_stays_one_row(path: Path) -> None:
    write(path, replace(ROW, message="two\nlines"))
    assert read_ledger(path)[0].message == "two lines"


def test_rows_without_a_reference_are_never_taken_for_each_other(path: Path) -> None:
    unknown = [replace(row, ref=None) for row in rows(2)]
    write(path, *unknown)
    assert read_ledger(path) == unknown


def _write_twenty(path: Path, first: int) -> None:
    write(path, *rows(first + 20)[first:])


def test_processes_that_write_at_the_same_time_lose_no_row(path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    firsts = (0, 20, 40, 60)
    writers = [fork.Process(target=_write_twenty, args=(path, first)) for first in firsts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    written = read_ledger(path)
    assert sorted(row.ref or 0 for row in written) == [row.ref for row in rows(80)]
    assert [row for row in written if (row.ref or 0) < 40_000_021] == rows(20)


def test_the_commit_is_marked_dirty_only_if_the_code_was_edited(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", *author, "-C", str(tmp_path), *words]
        subprocess.run(command, check=True, capture_output=True)

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
