"""The bench: rows that work, a clock that counts what it should, ratios that are right, a file that holds everything."""

import json
import math
import multiprocessing
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from heard import Heard

from comp.__main__ import main
from comp.bench import child, floors, memory, ours, peers, stage
from comp.bench.catalogue import PEERS, ROWS, chosen, left_out, row_named
from comp.bench.child import Child, Children, RowFailedError, _answer, serve
from comp.bench.photos import held_labels, lay_out
from comp.bench.rows import Clock, Course, Done, Look, Measured, Row, Setup, Work
from comp.bench.targets import TARGETS, Round, time_to
from comp.bench.timm_script import ScriptLoop
from comp.bench.tutorial import TutorialLoop
from comp.competition import COMPETITION
from comp.data.manifest import read_manifest
from comp.errors import DataError, UserError
from comp.recipe import Model
from comp.rehearsal.drawing import write_edition
from comp.store import Workspace

TINY = Model(backbone="mobilenetv3_small_050", weights="random")
GIVEN: dict[str, Any] = {
    "model": TINY,
    "size_px": 32,
    "batch": 8,
    "peer_photos": 8,
    "epochs": 1,
    "limit_s": None,
    "tail": "from:blocks.5",
}


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_edition(tmp_path_factory.mktemp("edition"), seed=3, n_train=60, n_test=20)


@pytest.fixture(scope="module")
def setup(edition: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Setup:
    root, _ = lay_out(tmp_path_factory.mktemp("home"), COMPETITION, *edition, 2000, Heard())
    return Setup(root=root, **GIVEN)


def measured(
    wall_s: float, n: int = 1, core_s: float = 0.0, looks: tuple[Look, ...] = (), **figures: float
) -> Measured:
    return Measured(
        wall_s=wall_s,
        core_s=core_s or 2 * wall_s,
        done=Done(n_photos=n, figures=figures, looks=looks),
    )


def found(text: str, *rounds: Round, kind: str = "wall") -> float | None:
    (target,) = [target for target in TARGETS if target.text == text]
    return target.found(rounds, kind)


OUR_ROWS = [
    row for row in ROWS if not row.name.startswith(("gpu", "memory", "score")) and row.needs is None
]


@pytest.mark.parametrize("row", OUR_ROWS, ids=lambda row: row.name)
def test_every_row_does_some_work_within_its_clock(row: Row, setup: Setup) -> None:
    clock = Clock()
    done = row.make(setup)(clock)
    assert done.n_photos > 0
    if row.name not in PEERS:  # of whose time the start is taken off, which is most of it here
        assert min(clock.wall_s, clock.core_s) > 0


def test_rows_for_a_gpu_and_for_memory_run_on_a_cpu_and_a_small_network_too(setup: Setup) -> None:
    on_cpu = {"model": TINY, "batch": 4, "device": "cpu"}
    works = [
        floors.step(setup, n_steps=1, norms="frozen", **on_cpu),
        ours.finetune(setup, n_steps=1, **on_cpu),
    ]
    works.append(ours.loader(setup, n_batches=3, n_before=1, **on_cpu))
    assert [work(Clock()).n_photos for work in works] == [4, 4, 12]
    for make in (memory.features, memory.finetune):
        figures = make(setup, n_photos=150, model=TINY)(
            Clock()
        ).figures  # more than there are: they stand there again
        assert 10 < figures["of that no file's"] <= figures["peak MB"] < 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_peak_of_memory_is_of_the_block_alone() -> None:
    big = bytearray(300 * 2**20)
    big[::4096] = b"x" * len(big[::4096])
    del big
    with memory.peaks() as small:
        pass
    with memory.peaks() as large:
        block = bytearray(200 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.1)
        del block
    assert 150 < large["peak MB"] - small["peak MB"] < 250
    assert 150 < large["of that no file's"] - small["of that no file's"] < 250


def test_everybody_finds_the_same_photos_and_the_held_out_ones_have_their_labels(
    setup: Setup, edition: tuple[Path, Path]
) -> None:
    def names(*folders: str) -> set[tuple[str, bytes]]:
        return {
            (path.name, path.read_bytes())
            for folder in folders
            for path in (setup.root / folder).rglob("*.jpg")
        }

    assert names("photos/train") == names("classes/train")
    assert names("photos/test") == names("classes/held")
    assert not {name for name, _ in names("photos/train")} & {
        name for name, _ in names("photos/test")
    }
    labels = held_labels(setup.root)
    solution = dict(line.split(",") for line in edition[1].read_text().split()[1:])
    assert {id: str(label) for id, label in labels.items()} == {
        id: solution[id] for id in labels.index
    }
    dogs = {path.stem for path in (setup.root / "classes/held/dog").iterdir()}
    assert dogs == set(labels.index[labels == 1])


def test_of_data_fold_0_is_held_out_and_nothing_there_is_touched(
    drawn: Workspace, tmp_path: Path
) -> None:
    home = Workspace(tmp_path)
    home.data.symlink_to(drawn.data)
    before = {path: path.stat().st_mtime_ns for path in drawn.root.rglob("*")}
    root, counts = lay_out(tmp_path, COMPETITION, None, None, 40, Heard())
    table = read_manifest(home.manifest("train"))
    plain = table[(table["verdict"] == "ok") & table["fold"].notna()].set_index("id")
    learnt = {path.stem for path in (root / "photos/train").iterdir()}
    assert learnt <= set(plain.index[plain["fold"] != 0])
    assert counts == {"learnt": len(learnt), "held out": len(held_labels(root))}
    assert 20 < sum(counts.values()) <= 45
    sources = [path.resolve().stem for path in (root / "photos/test").iterdir()]
    assert set(sources) <= set(plain.index[plain["fold"] == 0])
    assert {path: path.stat().st_mtime_ns for path in drawn.root.rglob("*")} == before


def test_photos_that_cannot_be_found_or_scored_are_refused(
    edition: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="make data"):
        lay_out(tmp_path, COMPETITION, None, None, 40, Heard())
    with pytest.raises(UserError, match="needs both"):
        lay_out(tmp_path, COMPETITION, edition[0], None, 40, Heard())
    other = tmp_path / "solution.csv"
    other.write_text("id,label\n999,1\n")
    with pytest.raises(DataError, match="none of the test photos"):
        lay_out(tmp_path, COMPETITION, edition[0], other, 40, Heard())


@pytest.mark.parametrize("make", [TutorialLoop, ScriptLoop])
def test_a_peer_that_runs_for_its_score_is_looked_at_after_each_epoch_or_when_it_is_cut_off(
    make: peers.Maker, setup: Setup
) -> None:
    done = peers.score(replace(setup, epochs=2), make)(Clock())
    assert [done.figures["cut off"], len(done.looks)] == [0, 2]
    assert done.looks[0].wall_s < done.looks[1].wall_s
    assert all(0.3 < look.log_loss < 3 for look in done.looks)
    cut = peers.score(replace(setup, epochs=2, limit_s=0.0), make)(Clock())
    assert [cut.figures["cut off"], len(cut.looks)] == [1, 1]


def test_a_clock_counts_its_blocks_alone_and_the_cores_of_children(tmp_path: Path) -> None:
    burn = "import time\nend = time.process_time() + .3\nwhile time.process_time() < end: pass"
    clock = Clock()
    subprocess.run([sys.executable, "-c", burn], check=True)
    with clock:
        time.sleep(0.05)
    assert 0.05 <= clock.wall_s < 0.25
    assert clock.core_s < 0.05
    with clock:
        subprocess.run([sys.executable, "-c", burn], check=True)
    assert 0.3 <= clock.core_s < 0.6
    assert clock.wall_s > 0.3


def test_a_peers_rate_is_without_what_starting_its_loader_takes() -> None:
    clock = Clock()
    done = peers.without_start(lambda: time.sleep(0.3), lambda: time.sleep(0.5), 7)(clock)
    assert done.n_photos == 7
    assert clock.wall_s == pytest.approx(0.2, abs=0.1)


def test_a_look_costs_its_own_time_and_none_of_those_after_it() -> None:
    course = Course()
    for _ in range(2):
        with course.look() as found:
            time.sleep(0.2)
            found(0.5)
    assert [0.2 <= look.wall_s < 0.4 for look in course.looks] == [True, True]
    assert course.run_s() < 0.2


def test_rows_are_chosen_by_name_and_an_unknown_one_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [row.name for row in chosen(["timm", "head"], full=False)] == ["head", "timm"]
    assert [row.name for row in chosen(["memory"], full=False)] == [
        row.name for row in ROWS if row.name.startswith("memory")
    ]
    usual = [row.name for row in chosen(None, full=False)]
    assert "head" in usual
    assert not [name for name in usual if name.startswith("memory")]
    assert {"score-tail", "memory-features-2000"} <= {row.name for row in chosen(None, full=True)}
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert main(["bench", "--workspace", str(tmp_path), "--rows", "finetun"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no row 'finetun'; near it are finetune")
    assert err.count("\n") == 1


def test_a_row_whose_library_is_not_there_says_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(
        UserError, match="needs fastai, which is not installed: run `make bench-peers`"
    ):
        chosen(["fastai"], full=False)
    assert not {"fastai", "fastai-tta", "score-fastai"} & {
        row.name for row in chosen(None, full=True)
    }
    assert "fastai, fastai-tta, score-fastai" in left_out()[0]


def rounds_of(**rows: Measured) -> Round:
    return {name.replace("_", "-"): one for name, one in rows.items()}


def test_ratios_are_taken_within_rounds_and_their_median_is_told() -> None:
    text = "fine-tuning / timm"
    rounds = [
        rounds_of(finetune=measured(2, 64), timm=measured(wall, 32)) for wall in (1, 3, 30)
    ]  # the last with a loud neighbour
    assert found(text, *rounds) == pytest.approx(3)
    assert found(text, *rounds, kind="core") == pytest.approx(3)
    assert found(text, rounds_of(finetune=measured(2, 64))) is None
    (target,) = [target for target in TARGETS if target.text == text]
    assert [target.asked, target.met(3.0), target.met(1.9), target.met(None)] == [
        "at least 2",
        "yes",
        "no",
        "",
    ]


def test_the_head_recipe_is_compared_with_its_decoding_and_forward_passes_at_the_least_floor() -> (
    None
):
    one = rounds_of(
        head=measured(15, 2002, **{"views": 3204, "out-of-fold photos": 1602}),
        decode_fastest=measured(1, 1000),
        decode_allocator=measured(1, 2002),
        forward_folded=measured(1, 100),
        forward_bf16=measured(1, 320.4),  # type: ignore[arg-type]
        tutorial=measured(10, 200),
    )
    assert found("head recipe / (decode floor + forward floor a view)", one) == pytest.approx(
        15 / (1 + 10)
    )
    passes = 5 * (2 * 0.8 + 0.2) * 1602
    assert found("tutorial, 5 folds x 2 epochs (extrapolated) / head recipe", one) == pytest.approx(
        passes / 20 / 15
    )
    assert found(
        "decoding into the store / fastest decode and resize", {**one, "decode": measured(2, 2002)}
    ) == pytest.approx(0.5)


def test_times_to_a_log_loss_are_those_of_the_first_look_at_it() -> None:
    ours = (Look(12, 20, 0.05),)
    never, late = (
        (Look(60, 90, 0.3), Look(200, 300, 0.08)),
        (Look(100, 150, 0.2), Look(150, 220, 0.06), Look(180, 260, 0.04)),
    )
    one = rounds_of(
        head=measured(11, looks=ours), score_timm=measured(200, looks=never, **{"cut off": 1})
    )
    assert [time_to(late, 0.06, kind) for kind in ("wall", "core")] == [150, 220]
    assert time_to(never, 0.06, "wall") is None
    assert found("seconds from raw photos to log loss .06", one) == 12
    assert found("the same / the best peer's", one) == pytest.approx(
        12 / 200
    )  # it had 200 s and did not come there
    one = {**one, "score-tutorial": measured(180, looks=late, **{"cut off": 0})}
    assert found("the same / the best peer's", one, kind="core") == pytest.approx(20 / 220)
    assert found("time to log loss .03 / the best peer's", one) == math.inf
    assert (
        found("log loss / the best peer's, in no more time", one) is None
    )  # one was cut off, another did not run


def test_our_log_loss_is_compared_with_the_best_peers_only_if_it_took_no_longer() -> None:
    ended = {"cut off": 0.0}
    peers_of = {
        f"score-{name}": measured(1, looks=(Look(at, at, loss),), **ended)
        for name, at, loss in (("tutorial", 9, 0.2), ("timm", 50, 0.1))
    }
    one = {
        **peers_of,
        "score-fastai": measured(1, looks=(Look(20, 20, 0.3),), **ended),
        "head": measured(1, looks=(Look(30, 60, 0.02),)),
    }
    text = "log loss / the best peer's, in no more time"
    assert (
        found(
            text, {**one, "score-fastai": measured(1, looks=(Look(20, 20, 0.3),), **{"cut off": 1})}
        )
        is None
    )
    assert found(text, one) == pytest.approx(0.2)
    assert found(text, one, kind="core") == math.inf


class _Here:
    """In the place of a process: this one, in which one row fails."""

    def __init__(self, process: str, setup: Setup) -> None:
        self._setup, self._works = setup, dict[str, Work]()

    def prepare(self, row: str) -> None:
        assert _answer("prepare", row, self._works, self._setup)[0] == "done"

    def measure(self, row: str) -> Any:
        if row == "data":
            raise RowFailedError("Traceback\nValueError: broken")
        return _answer("measure", row, self._works, self._setup)[1]

    def is_alive(self) -> bool:
        return True

    def __enter__(self) -> "_Here":
        return self

    def __exit__(self, *_: object) -> None: ...


def test_a_bench_writes_all_rounds_with_what_they_ran_on(
    edition: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "Child", _Here)
    heard, amounts = Heard(), Setup(root=Path(), **GIVEN)
    rows = ["step-frozen", "decode-tutorial", "finetune", "score-tutorial"]
    path = stage.bench(
        tmp_path,
        COMPETITION,
        heard,
        archive=edition[0],
        solution=edition[1],
        names=[*rows, "data"],
        n_rounds=2,
        amounts=amounts,
    )
    written = json.loads(path.read_text())
    assert path.parent == tmp_path / "runs"
    assert [row["name"] for row in written["rows"]] == rows
    assert [len(row["rounds"]) for row in written["rows"]] == [2, 2, 2, 1]
    assert all(
        one["wall_s"] > 0 and one["core_s"] > 0 for row in written["rows"] for one in row["rounds"]
    )
    assert {row["process"] for row in written["rows"]} == {"ours", "as it is", "tutorial"}
    assert [sorted(order) for order in written["orders"]] == [
        ["data", "decode-tutorial", "finetune", "step-frozen"]
    ] * 2
    assert written["failed"] == {"data": "Traceback\nValueError: broken"}
    assert "warning: row data failed and is left out: ValueError: broken" in str(heard)
    assert written["setup"]["model"]["backbone"] == TINY.backbone
    assert {"cpu", "cores", "flags", "memory_gb", "gpu", "environment"} <= set(written["hardware"])
    assert {"python", "torch", "torchvision", "timm", "fastai"} <= set(written["versions"])
    assert len(written["commit"]) >= 4
    assert written["photos"]["learnt"] > 0
    met = {line["target"]: line for line in written["targets"]}
    step, tune = (
        [one["wall_s"] / one["done"]["n_photos"] for one in row["rounds"]]
        for row in written["rows"][0:3:2]
    )
    assert met["fine-tuning / bare step, batch norm frozen"]["wall"] == pytest.approx(
        sum(a / b for a, b in zip(step, tune, strict=True)) / 2
    )
    assert met["fine-tuning / fastai"] == {
        "target": "fine-tuning / fastai",
        "asked": "at least 4",
        "wall": None,
        "core": None,
        "met": "",
    }
    assert "score-tutorial" in str(heard)


def test_processes_of_ours_keep_big_blocks_and_those_of_peers_do_not(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    for row in ("head", "timm", "memory-features-2000"):
        monkeypatch.setattr("comp.train.device.keep_big_blocks", lambda row=row: kept.append(row))
        serve(_Closed(), row_named(row).process, setup, multiprocessing.get_start_method())  # type: ignore[arg-type]
    assert kept == ["head", "memory-features-2000"]


class _Closed:
    """A connection whose other end is gone."""

    def recv(self) -> None:
        raise EOFError


def test_what_goes_wrong_in_a_process_comes_back_and_the_process_lives_on(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Child("ours", replace(setup, root=Path("/nowhere"))) as process:
        with pytest.raises(RowFailedError, match=r"^no device 'cuda'"):
            process.prepare("gpu-step-convnext_tiny")
        with pytest.raises(RowFailedError, match=r"(?s)^Traceback.*FileNotFoundError"):
            process.measure("data")
        process.prepare("step-frozen")
        assert process.measure("step-frozen").done.n_photos == 3 * setup.batch
        process._process.kill()
        with pytest.raises(RowFailedError, match="ended with status -9"):
            process.measure("step-frozen")


class _Dies(_Here):
    """A process that ends at the row data, and answers nothing from then on."""

    n_begun = 0

    def __init__(self, process: str, setup: Setup) -> None:
        super().__init__(process, setup)
        type(self).n_begun += 1
        self._alive = True

    def measure(self, row: str) -> Any:
        self._alive = self._alive and row != "data"
        if not self._alive:
            raise RowFailedError("its process ended with status -9: is there memory enough?")
        return super().measure(row)

    def is_alive(self) -> bool:
        return self._alive


def test_a_row_whose_process_ends_takes_no_other_row_with_it(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "Child", _Dies)
    heard = Heard()
    with Children(dict.fromkeys(["data", "step-frozen"], "ours"), setup, heard) as children:
        assert children.measure("data") is None
        assert children.measure("step-frozen") is not None
        assert children.measure("data") is None
    assert _Dies.n_begun == 2
    assert list(children.failed) == ["data"]
    assert str(heard).count("is there memory enough?") == 1


def test_a_bench_of_which_nothing_could_be_measured_says_why(
    edition: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "Child", _Here)
    asked = {
        "archive": edition[0],
        "solution": edition[1],
        "names": ["data"],
        "amounts": Setup(root=Path(), **GIVEN),
    }
    with pytest.raises(UserError, match="no row could be measured; data: ValueError: broken"):
        stage.bench(tmp_path, COMPETITION, Heard(), **asked)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one round, got 0"):
        stage.bench(tmp_path, COMPETITION, Heard(), n_rounds=0)
