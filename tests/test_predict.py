"""Files of runs: found without loading what makes them, never stale, and made again if damaged."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finished_run import TINY_HEAD, make_run, make_trained_run, make_workspace
from heard import Heard
from tiny import contents

from comp import store
from comp.competition import COMPETITION
from comp.errors import DataError, StaleError
from comp.options import override
from comp.predict.runs import read_run, recipe_of
from comp.predict.stage import find_run, finished_folder, predict, predict_all
from comp.progress import Reporter
from comp.recipes import chosen
from comp.store import Workspace
from comp.train import run as runs
from comp.train import stage
from comp.train.files import hashes
from comp.train.fits import HeadFit
from comp.train.run import code_digest, open_run, run_folders
from comp.train.stage import train

SLOW = {"torch", "timm", "scipy", "sklearn", "matplotlib", "albumentations"}
ENSEMBLE = chosen("ensemble", [])


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Each recipe of the ensemble is trained and predicted."""
    workspace = make_workspace(tmp_path)
    for seed, recipe in enumerate(ENSEMBLE):
        make_trained_run(workspace, recipe, seed)
    return workspace


def predicted(workspace: Workspace) -> tuple[Path, str]:
    heard = Heard()
    return predict_all(workspace, COMPETITION, ENSEMBLE, "cpu", heard), str(heard)


def test_a_stage_that_is_done_loads_no_slow_library(workspace: Workspace) -> None:
    predicted(workspace)
    options = ["--workspace", str(workspace.root), "--recipe", "ensemble"]
    code = (
        "import sys; from comp.__main__ import main;"
        f" status = [main([stage, *{options}]) for stage in ('train', 'predict')];"
        f" print(status, sorted({SLOW} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("[0, 0] []\n"), done.stderr
    assert done.stdout.count("nothing to do") == 2 * len(ENSEMBLE) + 1


def test_an_ensemble_is_blended_once_and_again_when_a_run_has_other_predictions(
    workspace: Workspace,
) -> None:
    with pytest.raises(StaleError, match="are not blended yet: run `make predict`"):
        finished_folder(workspace, COMPETITION, ENSEMBLE)
    folder, said = predicted(workspace)
    assert "correlation of errors" in said
    again, said = predicted(workspace)
    assert again == finished_folder(workspace, COMPETITION, ENSEMBLE) == folder
    assert "correlation of errors" not in said
    make_trained_run(workspace, ENSEMBLE[0], seed=9)
    with pytest.raises(StaleError, match="are not blended yet"):
        finished_folder(workspace, COMPETITION, ENSEMBLE)
    assert predicted(workspace)[0] != folder


TRAINS = ("run.json", "oof.csv", "fold-1-oof.csv", "fold-1.safetensors")
PREDICTS = ("test.csv", "calibration.json", "fold-1-test-*.csv")
OTHER = TINY_HEAD.replace(name="other", seed=1, folds=TINY_HEAD.folds.replace(n=4))
TIMES = ("run.json", "files.json", "log.txt")


@pytest.fixture(scope="module")
def finished(drawn: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two finished runs. Not to be written to."""
    workspace = Workspace(tmp_path_factory.mktemp("finished") / "w")
    shutil.copytree(drawn.root, workspace.root)
    for recipe in (TINY_HEAD, OTHER):
        train(workspace, recipe, "cpu", Reporter())
        predict(workspace, COMPETITION, recipe, "cpu", Reporter())
    return workspace


@pytest.fixture
def mine(finished: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(finished.root, tmp_path / "mine")
    return Workspace(tmp_path / "mine")


def results(folder: Path) -> dict[str, bytes]:
    """All but what differs from run to run, and the parts of test.csv, which are not kept."""
    files = {path.name: data for path, data in contents(folder).items()}
    return {name: files[name] for name in files if name not in TIMES and "-test-" not in name}


def flip(data: bytes) -> bytes:
    """Another digit near the end: the same length and form."""
    at = max(data.rfind(digit) for digit in (b"3", b"4", b"5"))
    return data[:at] + b"6" + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "a digit": flip,
    "no text": lambda data: b"\xff\xfe\x00" + data,
    "without its last row": lambda data: data[: data.rstrip(b"\n").rfind(b"\n") + 1],
    "other JSON": lambda _: b"[]",
    "other values": lambda _: b'{"oof.csv": {}, "fold-1.safetensors": 1, "run.json": null}',
    "nested": lambda _: b"[" * 100_000,
}


def spoil(folder: Path, names: tuple[str, ...], how: str) -> None:
    """`how`: one of DAMAGES, "deleted", or "foreign": the file of another run."""
    other = next((path for path in folder.parent.glob("*-*") if path != folder), folder)
    for path in (next(folder.glob(name)) for name in names):
        if how == "deleted":
            path.unlink()
        elif how == "foreign":
            path.write_bytes(next(other.glob(path.name)).read_bytes())
        else:
            path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.parametrize("how", [*DAMAGES, "deleted", "foreign"])
def test_each_stage_makes_again_bit_for_bit_what_is_damaged_and_later_ones_refuse_it(
    mine: Workspace, how: str
) -> None:
    folder, heard = open_run(mine, TINY_HEAD).folder, Heard()
    reference = results(folder)
    for names, says in ((PREDICTS, "run `make predict`"), (TRAINS, "run `make train`")):
        spoil(folder, names, how)
        with pytest.raises(StaleError, match=says) as caught:
            read_run(folder)
        assert "\n" not in str(caught.value)
        if names == TRAINS:
            with pytest.raises(StaleError, match=says):
                predict(mine, COMPETITION, TINY_HEAD, "cpu", heard)
        train(mine, TINY_HEAD, "cpu", heard)
        predict(mine, COMPETITION, TINY_HEAD, "cpu", heard)
        assert results(folder) == reference
        assert read_run(folder).recipe == "tiny"
    assert (str(heard).count("damaged since they were written") == 2) == (how != "deleted")


@pytest.mark.parametrize("how", [*DAMAGES, "deleted"])
def test_without_its_record_a_run_keeps_its_fitted_folds(
    mine: Workspace, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_run(mine, TINY_HEAD).folder
    reference = results(folder)
    spoil(folder, ("files.json",), how)
    assert all(hashes(folder).values())
    monkeypatch.setattr(HeadFit, "fit", lambda *_: pytest.fail("a head was fitted"))
    train(mine, TINY_HEAD, "cpu", Reporter())
    predict(mine, COMPETITION, TINY_HEAD, "cpu", Reporter())
    assert results(folder) == reference


@pytest.mark.parametrize("how", [*DAMAGES, "deleted"])
@pytest.mark.parametrize("name", ["run.json", "oof.csv", "test.csv", "calibration.json"])
def test_a_damaged_blend_is_refused_with_its_own_remedy(
    tmp_path: Path, name: str, how: str
) -> None:
    folder = make_run(make_workspace(tmp_path), "blend")
    spoil(folder, (name,), how)
    with pytest.raises(StaleError, match=f"{name}.*blend the same RUNS by the same METHOD again"):
        read_run(folder)


def test_a_copied_run_is_intact_although_its_times_differ(mine: Workspace) -> None:
    for path in contents(open_run(mine, TINY_HEAD).folder):
        os.utime(path, (0, 0))
    heard = Heard()
    train(mine, TINY_HEAD, "cpu", heard)
    predict(mine, COMPETITION, TINY_HEAD, "cpu", heard)
    assert str(heard).count("nothing to do") == 2


def test_a_run_under_the_name_of_another_is_neither_resumed_nor_predicted(mine: Workspace) -> None:
    ours, theirs = (open_run(mine, recipe).folder for recipe in (TINY_HEAD, OTHER))
    shutil.rmtree(ours)
    theirs.rename(ours)
    for stage_of in (train, lambda *words: predict(mine, COMPETITION, *words[1:])):
        with pytest.raises(StaleError, match=f"contains the run {theirs.name}: rename it back"):
            stage_of(mine, TINY_HEAD, "cpu", Reporter())


def test_stray_and_damaged_files_in_runs_neither_stop_a_run_nor_are_taken_for_one(
    mine: Workspace,
) -> None:
    folder = open_run(mine, TINY_HEAD).folder
    for name in ("._tiny-0123456789", ".DS_Store", "notes.txt", "lite0_head-0123456789"):
        (mine.runs / name).write_bytes(b"\x00\x05\x16\x07")
    for path in [*folder.iterdir()]:
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    shutil.copytree(folder, mine.runs / "copy-of-tiny")
    (folder / "run.json").write_text("{")
    changed, heard = TINY_HEAD.replace(prediction=TINY_HEAD.prediction.replace(clip=0.01)), Heard()
    (folder / "fold-2.safetensors").write_bytes(b"cut")
    train(mine, changed, "cpu", heard)
    predict(mine, COMPETITION, changed, "cpu", heard)
    assert "4 folds adopted" in str(heard)
    assert find_run(mine, COMPETITION, "other").name.startswith("other-")
    assert {path.name.rpartition("-")[0] for path in run_folders(mine, "oof.csv")} == {
        "tiny",
        "other",
    }
    assert recipe_of(folder) is None


def test_other_code_is_named_and_force_fits_beside_the_old_run_and_compares(
    mine: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, heard = open_run(mine, TINY_HEAD).folder, Heard()
    reference = results(folder)
    alike = TINY_HEAD.replace(name="alike", prediction=TINY_HEAD.prediction.replace(clip=0.01))
    train(mine, alike, "cpu", Reporter())
    train(mine, TINY_HEAD, "cpu", heard)
    assert "other code" not in str(heard)
    monkeypatch.setattr(runs, "code_digest", lambda: "changed")
    train(mine, TINY_HEAD, "cpu", heard)
    assert "other code than there is now: 5 of 5 folds; FORCE=1" in str(heard)

    fitted, fit = list[int](), HeadFit.fit

    def interrupted(self: HeadFit, fold: int) -> object:
        fitted.append(fold)
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return fit(self, fold)

    monkeypatch.setattr(HeadFit, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(mine, TINY_HEAD, "cpu", heard, force=True)
    heard.lines.clear()
    train(mine, TINY_HEAD, "cpu", heard, force=True)  # goes on, and sets nothing aside again
    assert fitted == [0, 1, 2, 2, 3, 4]
    kept = mine.runs / f"{folder.name}.before-1"
    assert results(kept) == reference
    assert f"in {kept.name} " in str(heard)
    assert "largest change of a logit 0; oof.csv is the same, byte for byte" in str(heard)
    assert "other code" not in str(heard)
    assert find_run(mine, COMPETITION, "tiny") == folder
    fitted.clear()
    with pytest.raises(KeyboardInterrupt):
        train(mine, TINY_HEAD, "cpu", heard, force=True)
    assert f"kept as {folder.name}.before-2" in str(heard)
    train(mine, TINY_HEAD, "cpu", heard)  # goes on too, and adopts no fold of the code before
    assert fitted == [0, 1, 2, 2, 3, 4]


def test_the_digest_covers_what_decides_a_fit_and_nothing_else(tmp_path: Path) -> None:
    package = tmp_path / "comp"
    shutil.copytree(Path(stage.__file__).parents[1], package)
    assert code_digest(package) == code_digest()
    for name, decides in (
        ("train/augment.py", True),
        ("train/solver.py", True),
        ("network/heads.py", True),
        ("data/pixels.py", True),
        ("store.py", True),
        ("recipes.py", False),
        ("train/scout.py", False),
        ("predict/calibrate.py", False),
        ("submit/stage.py", False),
    ):
        before = code_digest(package)
        with (package / name).open("a") as file:
            file.write("CHANGED = True\n")
        assert (code_digest(package) != before) == decides, name


def test_one_fold_is_enough_without_a_calibration_and_refused_before_any_work_with_one(
    mine: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = mine, COMPETITION
    for method in ("none", "temperature"):
        one = override(TINY_HEAD, ["folds.fit=1", f"prediction.calibration={method}"])
        train(mine, one, "cpu", Reporter())
        if method == "none":
            folder = predict(*arguments, one, "cpu", Reporter()).folder
            assert read_run(folder).figures.cv_clipped > 0
    monkeypatch.setattr("comp.predict.stage._mean_logits", lambda *_: pytest.fail("it worked"))
    with pytest.raises(DataError, match="2 or more fitted folds, got 1: set"):
        predict(*arguments, one, "cpu", Reporter())


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_all_files_of_a_run_have_the_mode_of_the_umask(drawn_copy: Workspace, mask: int) -> None:
    before = os.umask(mask)
    try:
        train(drawn_copy, TINY_HEAD, "cpu", Reporter())
        run = predict(drawn_copy, COMPETITION, TINY_HEAD, "cpu", Reporter())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in run.folder.iterdir()} == {0o666 & ~mask}


@pytest.mark.parametrize("n_writes", [0, 1, 2, 3, 5, 21, 22, 24, 30, 34, 36])
def test_a_full_disk_leaves_nothing_half_written_and_the_next_run_ends_the_same(
    mine: Workspace, n_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_run(mine, TINY_HEAD).folder
    reference, left = results(folder), [n_writes]
    shutil.rmtree(mine.runs)

    def full(_: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def both() -> None:
        train(mine, TINY_HEAD, "cpu", Reporter())
        predict(mine, COMPETITION, TINY_HEAD, "cpu", Reporter())

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            both()
    assert Path(caught.value.filename).parent == folder
    assert not list(mine.runs.rglob("*.part"))
    assert results(folder).items() <= reference.items()
    both()
    assert results(folder) == reference
