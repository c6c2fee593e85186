"""What a user sees: on any terminal, and when the machine fails."""

import errno
import os
import re
import subprocess
import sys
import time
from io import StringIO
from itertools import chain, repeat
from pathlib import Path

import pytest
import torch

from comp import __main__ as command_line
from comp import progress
from comp.progress import Reporter, table_lines

ROWS = [("tf_efficientnet_lite2-957f17d84c", "0.01232", "+0.00310 (+0.00032 to +0.00694)")]
HEADER = ("run", "log loss, cross-fitted", "gain on the leaderboard")


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


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, ""), "No space left on device: make room there"),
        (OSError(errno.EDQUOT, ""), "make room there"),
        (OSError(errno.EROFS, ""), "use another WORKSPACE"),
        (PermissionError(errno.EACCES, ""), "allow writing there"),
        (OSError(errno.EIO, ""), "repair the disk or network folder"),
        (OSError(errno.EMFILE, ""), "ulimit -n"),
        (MemoryError("Unable to allocate 7 PiB"), "Unable to allocate 7 PiB): end other programs"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), "smaller training.micro_batch"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "DEVICE=cpu"),
        (RuntimeError("could not create a primitive"), "use fewer photos"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), "end other programs"),
        (ImportError("libtorch.so: failed to map segment from shared object"), "end other"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "--shm-size=2g"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "use fewer photos"),
    ],
)
def test_a_failure_of_the_machine_is_one_line_with_its_place_and_remedy(
    error: Exception,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command_line, "listed", lambda: fail(error))
    assert command_line.main(["recipes", "--workspace", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    if isinstance(error, OSError):
        assert str(tmp_path) in shown
        error.filename = "/some/file"
        command_line.main(["recipes"])
        assert capsys.readouterr().err.startswith("error: /some/file: ")


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("shape"), KeyError("a"), OSError("no number"), OSError(errno.EBADF, "")]
)
def test_a_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "listed", lambda: fail(error))
    with pytest.raises(type(error)):
        command_line.main(["recipes"])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("nowhere", "is a link to nowhere, which is not there: make that folder, or delete"),
        ("data", "is a link to data, which is not there: make that folder, or delete"),
        ("file", "a file is in the place of a folder"),
        ("a" * 300, "use a WORKSPACE with a shorter path"),
    ],
)
def test_a_workspace_that_cannot_be_is_named_in_one_line(
    data: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / data
    if data in ("nowhere", "data"):
        (tmp_path / "data").symlink_to(data)
        folder = tmp_path
    command = ["data", "--recipe", "lite0_head", "--workspace", str(folder)]
    assert command_line.main(command) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1


def test_what_a_terminal_cannot_print_or_would_obey_is_escaped() -> None:
    code = (
        "from comp.progress import Reporter; r = Reporter(); x = 'é… \\udc80 \\x1b[31m :dog: [b]'"
    )
    code += "; r.say(x); r.warn(x); r.fail('a\\nb'); r.table(x, [x, 'y'], [[x, 1.0]])"
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    escaped = rb"\xe9\u2026 \udc80 \x1b[31m :dog: [b]"
    lines = done.stdout.splitlines()
    assert lines[0] == escaped
    assert lines[1] == b"warning: " + escaped
    assert done.stderr == b"error: a\\nb\n"
    assert escaped in lines[-1]


def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter()
    reporter.warn("no locks")
    reporter.warn("no locks")
    assert capsys.readouterr().out == "warning: no locks\n"


@pytest.mark.parametrize("width", [200, 80, 60, 10])
def test_a_table_breaks_no_word_and_fits_if_its_words_do(width: int) -> None:
    lines = table_lines(HEADER, ROWS, width)
    words = {word for line in lines for word in line.replace(":", "").split()}
    assert {*" ".join((*HEADER[1:], *ROWS[0])).split()} <= words
    if width >= 60:
        assert max(map(len, lines)) <= width


def test_a_file_gets_tables_and_progress_as_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    reporter = Reporter()
    monkeypatch.setattr(reporter._out, "_force_terminal", False)
    reporter.table("blend", HEADER, ROWS)
    with reporter.track("work", 1, "steps") as advance:
        advance()
    out, err = capsys.readouterr()
    assert "  ".join(("tf_efficientnet_lite2-957f17d84c", "               0.01232")) in out
    assert "\x1b[?25l" not in err  # hides the cursor, as a bar does


def test_commands_work_without_a_user_name_or_a_home(tmp_path: Path) -> None:
    code = (
        "import getpass, pathlib, pwd, sys\n"
        "def unknown(*_): raise KeyError('uid not found')\n"
        "pwd.getpwuid = unknown\n"
        "from comp.__main__ import main; status = main(['submit', '--workspace', sys.argv[1]])\n"
        "print(status, getpass.getuser(), pathlib.Path.home())"
    )
    env = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "1 nobody /nonexistent\n"
    assert done.stderr.count("\n") == 1


def watched(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What a terminal of 80 columns is sent by two bars, one inside the other, and a warning."""
    for name in ("CI", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"TERM": "xterm-256color", "COLUMNS": "80"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(progress, "QUIET_S", 0.1)
    streams = [StringIO(), StringIO()]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setattr(sys, name, stream)
    reporter = Reporter()
    with reporter.track("folds", 2, "folds") as fold_done:
        for _ in range(2):
            with reporter.track("features, centre-flip", 1200, "photos") as advance:
                for _ in range(12):
                    time.sleep(0.05)
                    advance(100, note="loss 0.1234")
            fold_done()
    reporter.warn("no GPU")
    return streams[1].getvalue() + streams[0].getvalue()


def test_a_terminal_gets_nested_bars_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", watched(monkeypatch))
    lines = re.split(r"[\r\n]+", sent)
    assert any(re.search(r"photos/s loss 0.1234$", line.rstrip()) for line in lines)
    assert any(re.search(r"0:00:0\d", line) for line in lines)
    assert sum(line.startswith("features, centre-flip: 1,200 photos in") for line in lines) == 2
    assert "2/2" in sent
    assert max(map(len, lines)) <= 80


def test_no_color_means_no_colour_and_ci_means_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|38|9[0-7])[;m]")
    assert colour.search(watched(monkeypatch))
    sent = watched(monkeypatch, NO_COLOR="1")
    assert not colour.search(sent)
    assert "\x1b[?25l" in sent  # a bar, without colours
    in_ci = watched(monkeypatch, CI="true")
    assert "\x1b[?25l" not in in_ci
    assert len(in_ci.splitlines()) == 4  # of each bar what it took, and the warning
