"""The benchmark: its rows, clocks, ratios and JSON file."""

import io
import json
import math
import mmap
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from heard import Heard
from tiny import MODEL

from comp.data.manifest import read_manifest
from comp.errors import DataError, UserError
from comp.store import Workspace
from tests.bench import ours, peers, rows
from tests.bench.__main__ import bench, main
from tests.bench.catalogue import ROWS, choose
from tests.bench.photos import lay_out, read_photos
from tests.bench.rows import OURS, Evaluation, Measured, Row, Setup, Spent
from tests.bench.targets import TARGETS

SMALL = {"n": 2, "n_before": 1, "model": MODEL, "batch": 4, "device": "cpu", "n_photos": 150}


@pytest.fixture(scope="module")
def setup(edition: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root = lay_out(tmp_path_factory.mktemp("home"), *edition, 2000, Heard())
    sizes: dict[str, Any] = {"size_px": 32, "batch": 8, "peer_photos": 8, "epochs": 2}
    return Setup(root=root, model=MODEL, tail="from:blocks.5", **sizes)


@pytest.mark.parametrize(
    "name", sorted(ROWS.keys() - {"score-tail", "fastai", "fastai-tta", "score-fastai"})
)
def test_every_row_works_and_only_ours_tune_the_allocator(
    name: str, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, tuned = ROWS[name], list[str]()
    monkeypatch.setattr("comp.network.device.tune_malloc", lambda: tuned.append(name))
    # a row for a GPU or of many photos runs on a CPU with few
    is_big = name.startswith(("gpu", "memory"))
    small = {key: value for key, value in SMALL.items() if key in row.amounts or key == "model"}
    measured = row.make(setup, **(row.amounts | (small if is_big else {})))()
    assert measured.n_photos > 0
    assert row.process.startswith(OURS) or not tuned
    if name.startswith("memory"):
        assert 10 < measured.figures["of that no file's"] <= measured.figures["peak MB"] < 10_000
    losses = [evaluation.log_loss for evaluation in measured.evaluations]
    assert len(losses) == {"score-tutorial": 2, "score-timm": 2}.get(name, len(losses) > 0)
    assert all(0.1 < loss < 3 for loss in losses)


def test_processes_of_ours_tune_the_allocator_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned: list[str] = []
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.setattr("sys.stderr", io.StringIO())
    for name in ("forward-tutorial", "head", "timm", "memory-features-2000"):
        monkeypatch.setattr("tests.bench.rows.tune_malloc", lambda name=name: tuned.append(name))
        rows._begin(ROWS[name].process, multiprocessing.get_start_method())
    assert tuned == ["head", "memory-features-2000"]


def test_a_process_ends_when_the_benchmark_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os\nfrom tests.bench import rows\nif __name__ == '__main__':\n"
        "    rows._start('ours').submit(os.getpid).result()\n    os.kill(os.getpid(), 9)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    # returns when the process, too, has closed its end of the pipes
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == -9


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has these figures")
def test_peak_memory_includes_what_was_freed_again() -> None:
    def allocate() -> None:
        block = mmap.mmap(-1, 200 * 2**20)  # new pages, whatever malloc keeps from other tests
        np.frombuffer(block, np.uint8)[::4096] = 1
        time.sleep(0.1)

    before, peaks = ours.read_memory(), ours._with_peaks(allocate, 1)().figures
    assert all(150 < peaks[name] - before[name] < 250 for name in before)


def test_all_contenders_get_the_same_photos_with_their_labels(
    setup: Setup, edition: tuple[Path, Path]
) -> None:
    solution = dict(line.split(",") for line in edition[1].read_text().split()[1:])
    table = read_photos(setup.root)
    for split, photos in table.groupby("split"):
        for id, label in zip(photos["id"], photos["label"], strict=True):
            assert str(label) == (solution[id] if split == "test" else str(int(id[:3] == "dog")))
            theirs = setup.root / "classes" / split / ("cat", "dog")[label] / f"{id}.jpg"
            ours = setup.root / "photos" / split / f"{id}.jpg"
            assert ours.read_bytes() == theirs.read_bytes()
    assert len(list(setup.root.glob("classes/*/*/*"))) == len(table) == table["id"].nunique()


def test_fold_0_of_data_is_held_out_and_nothing_there_changes(
    drawn: Workspace, tmp_path: Path
) -> None:
    home = Workspace(tmp_path)
    home.data.symlink_to(drawn.data)
    before = {path: path.stat().st_mtime_ns for path in drawn.root.rglob("*")}
    photos = read_photos(lay_out(tmp_path, None, None, 40, Heard()))
    folds = photos["id"].map(read_manifest(home.manifest("train")).set_index("id")["fold"])
    assert set(folds[photos["split"] == "train"]) == {1, 2, 3, 4}
    assert set(folds[photos["split"] == "test"]) == {0}
    assert 20 < len(photos) <= 45
    assert {path: path.stat().st_mtime_ns for path in drawn.root.rglob("*")} == before


def test_missing_photos_and_labels_are_refused(edition: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make data"):
        lay_out(tmp_path, None, None, 40, Heard())
    with pytest.raises(UserError, match="needs both"):
        lay_out(tmp_path, edition[0], None, 40, Heard())
    other = tmp_path / "solution.csv"
    other.write_text("id,label\n999,1\n")
    with pytest.raises(DataError, match="none of the test photos"):
        lay_out(tmp_path, edition[0], other, 40, Heard())


def test_clocks_count_children_and_exclude_starts_and_earlier_evaluations() -> None:
    burn = "import time\nend = time.process_time() + .3\nwhile time.process_time() < end: pass"
    spent = rows.timed(lambda: subprocess.run([sys.executable, "-c", burn], check=True))
    assert 0.3 <= spent.core_s < 0.6
    assert rows.timed(lambda: time.sleep(0.1)).core_s < 0.05
    measured = rows.without_start(lambda: time.sleep(0.3), lambda: time.sleep(0.5), 7)()
    assert (measured.spent.wall_s, measured.n_photos) == (pytest.approx(0.2, abs=0.1), 7)
    course = peers.Course()
    for _ in range(2):
        course.evaluate(lambda: time.sleep(0.2) or 0.5)
    assert all(0.2 <= one.spent.wall_s < 0.4 for one in course.measured(1).evaluations)


def test_rows_are_chosen_by_name_and_an_unknown_one_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    heard = Heard()
    assert [row.name for row in choose(["timm", "head"], False, heard)] == ["head", "timm"]
    memory = {name for name in ROWS if name.startswith("memory")}
    assert {row.name for row in choose(["memory"], False, heard)} == memory
    usual, full = ({row.name for row in choose(None, long, heard)} for long in (False, True))
    assert full - usual >= memory | {"score-tail", "score-timm"}
    monkeypatch.setattr("tests.bench.catalogue.find_spec", lambda _: None)
    assert choose(["fastai"], False, heard) == []
    assert heard.lines[-1] == "left out fastai: `make bench-peers` installs fastai"
    assert main(["--workspace", str(tmp_path), "--rows", "finetun"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no row 'finetun'; near it are finetune")
    assert error.count("\n") == 1


def figure(text: str, *rounds: dict[str, Measured], unit: str = "wall_s") -> float | None:
    (target,) = [target for target in TARGETS if target.text == text]
    return target.median(list(rounds), unit)


def one(wall_s: float, n: int = 1, *scores: tuple[float, float], **figures: float) -> Measured:
    """Core-seconds are twice the wall seconds; `scores`: wall seconds and log loss."""
    evaluations = tuple(Evaluation(Spent(at, 2 * at), loss) for at, loss in scores)
    return Measured(Spent(wall_s, 2 * wall_s), n, figures, evaluations)


def test_ratios_are_taken_within_rounds_and_their_median_counts() -> None:
    # the last under load
    rounds = [{"finetune": one(2, 64), "timm": one(wall, 32)} for wall in (1, 3, 30)]
    assert figure("fine-tuning / timm", *rounds) == pytest.approx(3)
    assert figure("fine-tuning / timm", {"finetune": one(2, 64)}) is None
    (target,) = [target for target in TARGETS if target.text == "fine-tuning / timm"]
    assert [target.is_met(value) for value in (3, 2, 1.9)] == [True, True, False]


def test_the_head_recipe_is_compared_with_the_fastest_decoding_and_forward_pass() -> None:
    measured = {"decode-fastest": one(1, 1000), "decode-allocator": one(1, 2002)}
    measured |= {"forward-folded": one(1, 100), "forward-bf16": one(10, 3204)}
    measured["head"] = one(15, 2002, **{"views": 3204, "out-of-fold photos": 1602})
    assert figure("head / (decode floor + forward floor a view)", measured) == pytest.approx(
        15 / 11
    )
    measured["decode"] = one(2, 2002)
    assert figure("decoding into the store / fastest", measured) == pytest.approx(0.5)
    measured["tutorial"] = one(10, 200)
    text = "tutorial, 5 folds x 2 epochs (extrapolated) / head"
    assert figure(text, measured) == pytest.approx(5 * (2 * 0.8 + 0.2) * 1602 / 20 / 15)


def test_the_time_to_a_log_loss_is_that_of_the_first_evaluation_that_reaches_it() -> None:
    measured = {"head": one(11, 1, (12, 0.05)), "score-timm": one(200, 1, (60, 0.3), (200, 0.08))}
    assert figure("seconds from raw photos to log loss .06", measured) == 12
    # it took 200 s and never got there
    assert figure("the same / the best peer's", measured) == pytest.approx(12 / 200)
    measured["score-tutorial"] = one(180, 1, (100, 0.2), (150, 0.06), (180, 0.04))
    assert figure("the same / the best peer's", measured, unit="core_s") == pytest.approx(24 / 300)
    assert figure("time to log loss .03 / the best peer's", measured) == math.inf
    text = "log loss / the best peer's, in no more time"
    assert figure(text, measured) is None  # fastai did not run
    measured["score-fastai"] = one(1, 1, (20, 0.3))
    assert figure(text, measured) == pytest.approx(0.05 / 0.04)
    measured["score-timm"] = one(1, 1, (5, 0.01))  # before us
    assert figure(text, measured) == math.inf


def _dying(setup: Setup) -> Any:
    return lambda: os._exit(1)


def test_a_benchmark_writes_all_rounds_and_a_row_that_fails_stops_no_other(
    setup: Setup, tmp_path: Path
) -> None:
    heard, good = Heard(), [ROWS[name] for name in ("step-frozen", "finetune")]
    broken = [Row("dying", OURS, _dying, {}), Row("broken", OURS, ROWS["head"].make, {"oops": 1})]
    absent = Row("absent", OURS, ROWS["step-frozen"].make, {"n": 1, "device": "abacus"}, once=True)
    written = json.loads(bench(tmp_path, [*broken, *good, absent], setup, 2, heard).read_text())
    assert [set(round) for round in written["rounds"]] == [{row.name for row in good}] * 2
    assert written["failed"]["dying"].startswith("its process was killed or crashed")
    assert "Traceback" in written["failed"]["broken"]
    assert written["failed"][absent.name].startswith("no device 'abacus'")
    assert "warning: row broken failed: TypeError: run() got an unexpected" in str(heard)
    assert {"cpu", "flags", "memory_gb", "gpu", "environment"} <= written["hardware"].keys()
    assert {"python", "torch", "timm", "fastai"} <= written["versions"].keys()
    assert len(written["commit"]) >= 4
    (target,) = [line for line in written["targets"] if line["target"] == "fine-tuning / bare step"]
    step, tune = (
        [round[name]["spent"]["wall_s"] / round[name]["n_photos"] for round in written["rounds"]]
        for name in ("step-frozen", "finetune")
    )
    assert target["wall"] == pytest.approx((step[0] / tune[0] + step[1] / tune[1]) / 2)
    with pytest.raises(UserError, match="none of 1 rows could be measured"):
        rows.measure([absent], setup, 1, heard)
    with pytest.raises(UserError, match="at least one round, got 0"):
        bench(tmp_path, good, setup, 0, heard)
