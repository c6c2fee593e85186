"""Artefacts are whole or absent; fingerprints and seeds change with what they are made from."""

import errno
import fcntl
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from heard import Heard

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
    write_text,
)
from comp.train.checkpoints import save_tensors


def test_a_write_that_fails_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole(path) as scratch:
        scratch.write_bytes(b"half" + "\udc00".encode())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["text", "table", "numpy", "checkpoint"])
def test_a_write_beyond_a_limit_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write() -> None:
        if kind == "text":
            write_text(path, "x" * 9000)
        elif kind == "table":
            write_table(path, pd.DataFrame({"x": range(5000)}))
        elif kind == "numpy":
            with whole(path) as scratch, scratch.open("wb") as file:
                np.save(file, np.zeros(9000))
        else:
            save_tensors(path, {"x": torch.zeros(9000)})

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))) as caught:
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.filename, bool(caught.value.errno)) == (str(path), True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write()
    assert path.stat().st_size > 4096


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
        assert heard.lines == [f"waiting for another run that is using {path.parent}"]
        other.kill()
    with locked(path, heard, limit_s=0.1):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match="has no file locks"), locked(tmp_path / "l", Heard()):
        pass


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
