"""Artefacts are whole or absent; fingerprints and seeds change with what they are made from."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from heard import Heard
from safetensors.torch import save_file

from comp.errors import StoreError
from comp.store import (
    derive_seed,
    fingerprint,
    link,
    locked,
    read_json,
    whole,
    write_json,
    write_table,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole(path) as scratch:
        scratch.write_bytes(b"half" + "\udc00".encode())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_succeeds_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"b": 1, "a": [1.5, None]})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert list(path.parent.iterdir()) == [path]


def test_a_table_reads_back_bit_for_bit(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["1", "10"], "x": [0.1 + 0.2, 1e-17]})
    write_table(tmp_path / "t.csv", table)
    assert pd.read_csv(tmp_path / "t.csv", dtype={"id": str}).equals(table)
    assert b"\r" not in (tmp_path / "t.csv").read_bytes()


def test_fingerprints_and_seeds_differ_by_value_and_order_but_not_by_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(*parts) for parts in ((1, 2), (2, 1), ("1", 2), ([1, 2],))}) == 4
    purposes = [("augment", fold, epoch) for fold in range(5) for epoch in range(5)]
    seeds = [derive_seed(root, *purpose) for root in (0, 1) for purpose in purposes]
    assert len(set(seeds)) == 50
    assert seeds[:25] == [derive_seed(0, *purpose) for purpose in purposes]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_lock_lets_one_process_in_and_the_next_one_gives_up_after_its_limit(
    tmp_path: Path,
) -> None:
    path, heard = tmp_path / "new" / ".lock", Heard()
    code = (
        "import sys, pathlib; from comp.progress import Reporter; from comp.store import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), Reporter()): print('in', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with (
            pytest.raises(StoreError, match="wait for it or end it"),
            locked(path, heard, limit_s=0.1),
        ):
            pytest.fail("two processes hold one lock")
        assert heard.lines == [f"waiting for another run that is using {path.parent} ({path})"]
        other.kill()
    with locked(path, heard, limit_s=0.1):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_without_file_locks_a_marker_keeps_others_out_until_its_process_is_gone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    path, heard = tmp_path / "lock", Heard()
    with locked(path, heard):
        assert "warning: this file system has no locks" in str(heard)
        with pytest.raises(StoreError, match="another run"), locked(path, heard, limit_s=0.1):
            pytest.fail("two hold one lock")
    code = (
        "import fcntl, os, pathlib, sys; from comp.progress import Reporter\n"
        "from comp.store import locked\n"
        f"def flock(*_): raise OSError({number}, '')\n"
        "fcntl.flock = flock\n"
        "with locked(pathlib.Path(sys.argv[1]), Reporter()): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, path], check=False, stdout=subprocess.DEVNULL)
    assert list(tmp_path.glob("*.held")) != []
    with locked(path, heard, limit_s=5):
        pass


def test_a_folder_that_cannot_be_written_to_needs_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to any folder
    with locked(tmp_path / "lock", Heard()):
        assert list(tmp_path.iterdir()) == []


BIG = np.zeros(10**5)


def write_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, BIG)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 10**6),
    "numpy": write_numpy,
    "torch": lambda path: torch.save(torch.tensor(BIG), path),
    "safetensors": lambda path: save_file({"a": torch.tensor(BIG)}, path),
    "pandas": lambda path: pd.DataFrame({"a": BIG}).to_csv(path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_the_file_system_refuses_names_its_file_whatever_library_wrote(
    writer: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught, whole(path) as scratch:
            WRITERS[writer](scratch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_a_copy_where_hard_links_are_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    source.write_text("weights")
    link(source, tmp_path / "b")
    assert (tmp_path / "b").samefile(source)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    link(source, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "weights"
    monkeypatch.undo()
    with pytest.raises(FileExistsError):
        link(source, tmp_path / "b")
