"""Runs as a competitor handles them: named, listed, compared, their errors, what to delete."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from finished_run import (
    TINY_HEAD,
    add_score,
    edit_json,
    edit_table,
    make_run,
    make_trained_run,
    make_workspace,
)
from heard import Heard

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.canvas import store_folder
from comp.errors import RecipeError, StaleError
from comp.network.preprocessing import geometry_of
from comp.options import override
from comp.predict.blend import blend_runs
from comp.predict.compare import compare_runs
from comp.predict.stage import find_run, predict, with_options
from comp.progress import Reporter
from comp.recipes import DEFAULT, named
from comp.report.gallery import print_worst
from comp.store import Workspace
from comp.submit.overview import find_waste, freed, print_runs, prune
from comp.train.run import open_run
from comp.train.stage import train


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three runs of lite0_head, the second with its own options, and a blend."""
    workspace = make_workspace(tmp_path / "a b")
    plain = named("lite0_head")
    for seed, settings in enumerate((["seed=3"], [], ["prediction.views=none"])):
        recipe = override(plain, settings)
        folder = make_trained_run(workspace, recipe, seed)
        edit_json(folder / "run.json", recipe=recipe.model_dump(mode="json"))
        data = open_run(workspace, recipe).data_key
        times = [{"work": "fit", "photos": 80, "seconds": 90.0}]
        edit_json(folder / "run.json", data=data, times=times, device="CPU")
    return workspace


def plain_run(workspace: Workspace) -> Path:
    return open_run(workspace, named("lite0_head")).folder


def test_a_run_is_named_by_recipe_and_options_name_prefix_or_path(workspace: Workspace) -> None:
    other = open_run(workspace, override(named("lite0_head"), ["seed=3"])).folder
    path = os.path.relpath(other)
    ways = [other.name, other.name[:-4], str(other), f"{other}/", path, f"runs/{other.name}"]
    for way in ways:
        assert find_run(workspace, COMPETITION, way) == other
    assert find_run(workspace, COMPETITION, "lite0_head", "seed=3") == other
    assert find_run(workspace, COMPETITION, "lite0_head") == plain_run(workspace)
    assert with_options(["a", "seed=3", "x/b", "folds.n=2", "seed=1"]) == [
        ["a", "seed=3"],
        ["x/b", "folds.n=2", "seed=1"],
    ]


@pytest.mark.parametrize("command", ["forecast", "calibrate", "errors", "compare", "runs"])
@pytest.mark.parametrize("way", ["lite0_head seed=3", "{folder}", "{prefix}"])
def test_every_command_takes_a_run_by_any_name(
    workspace: Workspace, command: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = open_run(workspace, override(named("lite0_head"), ["seed=3"])).folder
    name = way.format(folder=folder, prefix=folder.name[:15])
    options = ["--a", name, "--b", "lite0_head"] if command == "compare" else ["--run", name]
    assert main([command, "--workspace", str(workspace.root), *options]) == 0
    assert folder.name in capsys.readouterr().out


def test_an_ambiguous_or_unknown_name_ends_in_one_line_with_what_there_is(
    workspace: Workspace,
) -> None:
    shutil.copytree(plain_run(workspace), workspace.runs / "lite0_head-1111111111")
    (workspace.runs / "lite0_head-1111111111/oof.csv").unlink()
    for name, kind, says in (
        ("lite0", RecipeError, r"^'lite0' fits 3 runs, name one of them: lite0_head-\w+, lite0"),
        ("lite0_haed", RecipeError, r"no run 'lite0_haed'; near it: lite0_head-"),
        ("x", RecipeError, r"no run 'x'; there are: lite0_head-\w+, lite0_head"),
        ("lite1_head", RecipeError, r"`make train predict RECIPE=lite1_head` makes one"),
        ("lite0_head-1111", StaleError, r"^lite0_head-1111111111 is not trained to its end: run"),
        ("/tmp/lite0_head", RecipeError, r"no run '/tmp/lite0_head'"),
    ):
        with pytest.raises(kind, match=says) as caught:
            find_run(workspace, COMPETITION, name)
        assert "\n" not in str(caught.value)


def test_a_run_beside_a_recipe_or_two_runs_in_the_place_of_one_are_refused(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, says in (
        (["submit", "--run", "lite0_head", "--set", "seed=3"], "leave out RECIPE, SET and SEEDS"),
        (["submit", "--run", "lite0_head", "--recipe", DEFAULT], "leave out RECIPE, SET and SEEDS"),
        (["forecast", "--run", "lite0_head lite1_head"], "one run is needed here, got 2"),
        (["compare", "--a", "lite0_head"], "make compare A=... B=..."),
    ):
        assert main([*words, "--workspace", str(workspace.root)]) == 1
        assert says in capsys.readouterr().err


def listed(workspace: Workspace, reference: Path | None = None) -> list[str]:
    heard = Heard()
    print_runs(workspace, COMPETITION, reference, heard)
    assert max(map(len, heard.lines)) <= 80
    return heard.lines


def test_runs_are_listed_best_first_with_options_scores_and_gain(workspace: Workspace) -> None:
    add_score(workspace, plain_run(workspace).name, 0.04141, 1)
    lines = listed(workspace)
    assert re.match(r"80 photos in 5 folds; gain over lite0_head-\w{10}$", lines[0])
    scores = [float(line.split()[0]) for line in lines if re.match(r"0\.\d{5} ", line)]
    assert len(scores) == 3
    assert scores == sorted(scores)
    at = next(i for i, line in enumerate(lines) if line.startswith(plain_run(workspace).name))
    assert re.search(r"\(90 s, 0\.\d MB\)$", lines[at])
    assert "0.04141" in lines[at + 1]
    assert "prediction.views=none" in str(lines)
    assert "seed=3" in str(lines)
    assert listed(workspace) == lines  # from what was kept
    edit_table(plain_run(workspace) / "oof.csv", lambda t: t.assign(logit=-t["logit"]))
    last = listed(workspace, plain_run(workspace))
    assert last[0].endswith(f"gain over {plain_run(workspace).name}")
    assert [line for line in last if line.startswith("lite0")][-1].startswith(
        plain_run(workspace).name
    )


def test_runs_of_other_photos_have_another_table_and_broken_ones_come_last(
    workspace: Workspace,
) -> None:
    make_run(workspace, "few", "0" * 10)
    edit_table(workspace.runs / "few-0000000000/oof.csv", lambda t: t[20:])
    edit_json(workspace.runs / "few-0000000000/calibration.json", of=None)
    (make_run(workspace, "cut", "1" * 10) / "oof.csv").write_text("id")
    (make_run(workspace, "half", "2" * 10) / "test.csv").unlink()
    (plain_run(workspace) / "fold-1.safetensors").write_text("x")
    (workspace.runs / "new-3333333333").mkdir()
    for name in ("note-4444444444", "._few-0000000000"):  # not folders: macOS adds such files
        (workspace.runs / name).touch()
    lines = listed(workspace)
    assert [line for line in lines if "photos in" in line][1].startswith("60 photos in 5 folds")
    assert "4 runs without a cross-validation:" in lines
    told = " ".join(map(str.strip, lines[lines.index("4 runs without a cross-validation:") :]))
    for says in (
        "cut-1111111111: oof.csv damaged: run `make train`",
        "half-2222222222: test.csv missing: run `make predict`",
        "fold-1.safetensors damaged: run `make train`",
        "new-3333333333: run.json, oof.csv missing: run `make train`",
    ):
        assert says in told


def test_an_empty_workspace_has_no_runs(tmp_path: Path) -> None:
    heard = Heard()
    print_runs(Workspace(tmp_path), COMPETITION, None, heard)
    assert "run `make train predict` first" in str(heard)


def test_errors_lists_the_worst_photos_and_lines_for_label_fixes(workspace: Workspace) -> None:
    workspace.verdicts.write_text("id,verdict,reason,by\ncat.3,keep,looked,me\n")
    wrong = {"cat.3": 12.0, "dog.5": -9.0}
    folder, heard = plain_run(workspace), Heard()

    def change(table: "object") -> "object":
        for id, logit in wrong.items():
            table.loc[table["id"] == id, "logit"] = logit  # type: ignore[attr-defined]
        return table

    edit_table(folder / "oof.csv", change)  # type: ignore[arg-type]
    print_worst(workspace, COMPETITION, folder, heard)
    worst = heard.lines[2:4]
    assert worst[0].startswith("cat.3 cat 0.0000 12.0000 ")
    assert worst[0].endswith(" keep")
    assert worst[1].startswith("dog.5 dog 0.0001 9.0001 ")
    assert f"dog.5,drop,P(dog) 0.0001 out of fold in {folder.name}," in heard.lines
    assert re.search(r"these 20 carry \d+% of the loss of 80 photos", str(heard))


def test_a_comparison_says_what_differs_and_leaves_out_what_is_not_in_both(
    workspace: Workspace,
) -> None:
    heard, plain = Heard(), plain_run(workspace)
    other = find_run(workspace, COMPETITION, "lite0_head", "prediction.views=none")
    compare_runs(workspace, COMPETITION, plain, other, heard)
    assert heard.lines[:2] == [
        "prediction.views: A flip, B none",
        "compared on 80 photos of both",
    ]
    fewer = {"label": lambda t: t["label"].where(t.index > 5, 1)}  # of cat.2, the fifth photo
    fewer["fold"] = lambda t: t["fold"].where(t.index < 77, 0)
    edit_table(other / "oof.csv", lambda t: t.assign(**fewer)[4:])
    compare_runs(workspace, COMPETITION, plain, other, heard)
    left_out = "3 of them in other folds; left out: 4 only in A, 1 labelled otherwise"
    assert f"compared on 75 photos of both; {left_out}" in heard.lines


def test_compare_draws_both_losses_in_the_report_of_the_first_run(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--a", "lite0_head", "--b", "lite0_head seed=3"]
    assert main(["compare", "--workspace", str(workspace.root), *words]) == 0
    page = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("photo by photo: "))
    assert page == plain_run(workspace) / "report.html"
    assert "80 photos held out here and in lite0_head-" in page.read_text()


def test_prune_frees_what_nothing_uses_and_nothing_else(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, small = drawn_copy, TINY_HEAD.replace(name="other")
    train(workspace, small, "cpu", Reporter())
    names = ["kept", "scored", "blended", "blended2"]
    for name in (*names, "stale", "alone"):
        train(workspace, small.replace(name=name), "cpu", Reporter())
        predict(workspace, COMPETITION, small.replace(name=name), "cpu", Reporter())
    runs = {path.name.rpartition("-")[0]: path for path in workspace.runs.iterdir()}
    shutil.rmtree(runs["other"])
    for name in (*names, "stale", "alone"):
        old = runs[name].with_name(f"{name}-0000000000")
        if name == "alone":
            edit_json(runs[name] / "run.json", data="0" * 10)
        else:
            shutil.copytree(runs[name], old)
            edit_json(old / "run.json", data="0" * 10, fingerprint="0" * 10)
    shutil.copytree(runs["kept"], f"{runs['kept']}.before-2")
    shutil.copytree(runs["scored"], f"{runs['scored']}.before-1")
    shutil.copytree(runs["kept"], workspace.runs / "unfinished-0000000000.before-1")
    add_score(workspace, runs["scored"].name, 0.04, 1)
    add_score(workspace, "scored-0000000000", 0.05, 2)
    members = [workspace.runs / f"{name}-0000000000" for name in ("blended", "blended2")]
    blend_runs(workspace, COMPETITION, members, "equal", (), None, Reporter())
    for path in ("pixels/squash-9-bicubic-0123456789/pixels.bin", "features/0123456789/a/0.npy"):
        (workspace.data / path).parent.mkdir(parents=True)
        (workspace.data / path).write_bytes(bytes(3_000_000))
    (workspace.runs / "old.log").touch()
    store = store_folder(workspace, geometry_of(small))
    assert store.exists()
    waste = [
        *("runs/kept-0000000000", "runs/stale-0000000000", f"runs/{runs['kept'].name}.before-2"),
        *("runs/old.log", "data/pixels/squash-9-bicubic-0123456789", "data/features/0123456789"),
    ]
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    unused = {str(path.relative_to(workspace.root)) for path in find_waste(workspace)}
    assert unused == set(waste)
    assert main(["prune", "--workspace", str(workspace.root)]) == 0
    assert re.search(r"6 entries, \d+\.\d MB: nothing is deleted; YES=1", capsys.readouterr().out)
    assert {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")} == before
    assert main(["prune", "--workspace", str(workspace.root), "--yes"]) == 0
    gone = {str(path.relative_to(workspace.root)) for path in before if not path.exists()}
    assert {path for path in gone if not set(map(str, Path(path).parents)) & gone} == set(waste)
    heard = Heard()
    prune(workspace, heard, is_sure=True)
    assert heard.lines == ["nothing to free: all runs, pixels and features are in use"]


def test_a_file_with_another_name_frees_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a/x").write_bytes(bytes(100))
    (tmp_path / "b/x").hardlink_to(tmp_path / "a/x")
    (tmp_path / "b/y").write_bytes(bytes(7))
    assert (freed([tmp_path / "b"]), freed([tmp_path / "a", tmp_path / "b"])) == (7, 107)


@pytest.mark.parametrize("words", ["runs", "errors --run lite0_head", "prune"])
def test_what_lists_runs_loads_no_torch(workspace: Workspace, words: str) -> None:
    code = (
        "import sys; from comp.__main__ import main;"
        f" main([*{words.split()}, '--workspace', {str(workspace.root)!r}]);"
        " print({'torch', 'timm', 'matplotlib', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
