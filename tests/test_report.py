"""Pages about runs and submissions: what they show, when they are written, that they are closed."""

import base64
import hashlib
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from finished_run import (
    add_score,
    edit_json,
    edit_table,
    make_run,
    make_workspace,
    run_with_a_hostile_name,
)
from heard import Heard
from PIL import Image
from scipy.stats import linregress
from tiny import random_network

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.manifest import read_manifest, write_manifest
from comp.errors import SubmissionError
from comp.options import differing
from comp.plots import Drawing
from comp.progress import Reporter
from comp.report.activation import activation_map, auc_with_interval, measure
from comp.report.gallery import Photos, largest_losses
from comp.report.ledger_page import finalists, fitted_line
from comp.report.page import Page, Tile, render
from comp.report.run_page import LOOKS
from comp.report.stage import pages_kept_current, write_ledger_page, write_report
from comp.store import Workspace, read_json


@pytest.fixture(scope="module")
def shown(drawn: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """A predicted run of drawn photos, one of them with a hostile name, and its folder."""
    return run_with_a_hostile_name(drawn, tmp_path_factory.mktemp("shown") / "drawn")


def report_of(workspace: Workspace, folder: Path) -> str:
    return write_report(workspace, COMPETITION, folder).read_text()


def test_the_same_files_give_the_same_bytes(shown: tuple[Workspace, Path]) -> None:
    assert report_of(*shown) == report_of(*shown)
    assert len(report_of(*shown)) > 100_000


@pytest.mark.parametrize("page", ["report", "ledger"])
def test_a_page_loads_nothing_and_runs_nothing_but_its_own_script(
    shown: tuple[Workspace, Path], page: str
) -> None:
    write = {
        "report": report_of,
        "ledger": lambda w, _: write_ledger_page(w, COMPETITION).read_text(),
    }
    text = write[page](*shown)
    policy = unescape(re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0])
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        sha256 = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{sha256}'" in policy
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", text)
    assert not re.findall(r"<[^>]* style=|url\((?!#)", text)  # the policy would refuse them
    assert not re.findall(r"<[^>]* on[a-z]+=\"", text)


def test_names_and_messages_are_text_and_never_markup(shown: tuple[Workspace, Path]) -> None:
    workspace, folder = shown
    text = report_of(workspace, folder)
    assert "<script>alert" not in text
    assert 'data-id="cat.&#34;&#39;&gt;&lt;script&gt;alert(1)"' in text
    evil = "<script>alert(1)</script>"
    tile = Tile(label=evil, value=evil, note=evil)
    assert evil not in render(Page(title=evil, subtitle=evil, tiles=[tile]))


def test_each_figure_is_a_labelled_image_with_its_numbers_in_a_table(
    shown: tuple[Workspace, Path],
) -> None:
    figures = re.findall(r"<figure>.*?</figure>", report_of(*shown), re.DOTALL)
    assert len(figures) >= 5
    for figure in figures:
        (label,) = re.findall(r'<div role="img" aria-label="([^"]+)">', figure)
        assert re.search(r"\d", label)
        assert "<details>" in figure
        assert figure.count("<tr>") > 1


def test_ids_are_unique_in_a_page(shown: tuple[Workspace, Path]) -> None:
    ids = re.findall(r' id="([^"]*)"', report_of(*shown))
    assert len(ids) == len(set(ids))


def test_a_report_of_noise_stays_under_3_mb(shown: tuple[Workspace, Path], tmp_path: Path) -> None:
    """JPEGs of noise are the largest there are."""
    root = tmp_path / "noise"
    shutil.copytree(shown[0].root, root)
    rng, workspace = np.random.default_rng(0), Workspace(root)
    for path in (workspace.photos / "train").glob("*.jpg"):
        Image.fromarray(rng.integers(0, 256, (180, 180, 3), dtype=np.uint8)).save(path, "JPEG")
    manifest = read_manifest(workspace.manifest("train"))
    pairs = np.arange(len(manifest)) // 4
    write_manifest(workspace.manifest("train"), manifest.assign(group=pairs))
    text = report_of(workspace, workspace.runs / shown[1].name)
    assert text.count("data:image/jpeg") >= 100
    assert len(text) < 3e6


def test_the_worst_photos_come_first_with_their_label_fix_and_near_duplicates(
    shown: tuple[Workspace, Path], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "copy")
    shutil.copytree(shown[0].root, workspace.root)
    manifest = read_manifest(workspace.manifest("train"))
    oof = pd.read_csv(shown[1] / "oof.csv", dtype={"id": str})
    oof = oof.assign(loss=np.arange(len(oof), dtype=float))
    worst, twin = oof["id"].iloc[-1], oof["id"].iloc[-2]
    group = manifest["group"].where(~manifest["id"].isin([worst, twin]), 999)
    write_manifest(workspace.manifest("train"), manifest.assign(group=group))
    workspace.verdicts.write_text(f"id,verdict,reason,by\n{worst},soft:0.3,looked,me\n")
    cards = list(largest_losses(Photos(workspace, COMPETITION), oof, "run", {}))
    assert [card.loss for card in cards] == sorted((card.loss for card in cards), reverse=True)
    assert (cards[0].id, cards[0].label_fix, cards[0].alike) == (worst, "soft:0.3", twin)


def test_where_photos_are_gone_the_page_says_so(
    shown: tuple[Workspace, Path], tmp_path: Path
) -> None:
    shutil.copytree(shown[0].root, tmp_path / "copy")
    workspace = Workspace(tmp_path / "copy")
    shutil.rmtree(workspace.photos / "train")
    assert "no photo on disk" in report_of(workspace, workspace.runs / shown[1].name)


def test_a_trained_run_has_a_report_before_it_is_predicted_and_a_fuller_one_after(
    drawn_copy: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--workspace", str(drawn_copy.root), "--device", "cpu", "--recipe", "lite0_head"]
    words += ["--set", "model.weights=random", "pixels.size_px=32"]
    assert main(["train", *words]) == 0
    (path,) = drawn_copy.runs.glob("*/report.html")
    trained = path.read_text()
    assert "run make predict" in trained
    assert main(["predict", *words]) == 0
    predicted = path.read_text()
    assert "Forecast of the public score" in predicted
    assert "run make predict" not in predicted
    written = path.stat().st_mtime_ns
    assert main(["train", *words]) == main(["predict", *words]) == 0
    assert path.stat().st_mtime_ns == written  # nothing was done, so that nothing is written
    assert "no page" not in capsys.readouterr().out


def test_a_submission_rewrites_the_report_and_the_ledgers_page_even_if_it_fails(
    tmp_path: Path,
) -> None:
    workspace = make_workspace(tmp_path)
    folder = make_run(workspace)

    def fail_after_a_score() -> None:
        with pages_kept_current(workspace, COMPETITION, Reporter()):
            add_score(workspace, folder.name, 0.04321, ref=1, private=0.05432)
            raise SubmissionError("the score of another one failed")

    with pytest.raises(SubmissionError):
        fail_after_a_score()
    for page in (folder / "report.html", workspace.submissions / "index.html"):
        assert all(score in page.read_text() for score in ("0.04321", "0.05432"))


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    workspace, heard = make_workspace(tmp_path), Heard()
    with pages_kept_current(workspace, COMPETITION, heard):
        folder = make_run(workspace)
        edit_table(folder / "oof.csv", lambda oof: oof.replace({"id": {"cat.0": "cat.77777"}}))
        (make_run(workspace, "other") / "report.html").mkdir()
    assert "warning: no page: data/train.csv lacks 1 of 80 out-of-fold photos" in str(heard)
    assert "warning: no page: [Errno 21] Is a directory" in str(heard)


def test_a_run_that_was_set_aside_keeps_its_page(shown: tuple[Workspace, Path]) -> None:
    workspace, folder, heard = *shown, Heard()
    earlier = folder.with_name(f"{folder.name}.before-1")
    with pages_kept_current(workspace, COMPETITION, heard):
        shutil.copytree(folder, earlier)
    shutil.rmtree(earlier)
    assert "no page" not in str(heard)


def test_a_run_is_compared_with_the_best_other_run_of_the_same_photos(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    folder, better, other = (
        make_run(workspace, fingerprint=f"{n}" * 10, seed=n) for n in (1, 2, 3)
    )
    sure = {0: -4.0, 1: 4.0}
    edit_table(better / "oof.csv", lambda oof: oof.assign(logit=oof["label"].map(sure)))
    edit_table(other / "oof.csv", lambda oof: oof[5:])  # fewer photos
    for run, score in ((better, 0.02), (other, 0.01)):
        edit_json(run / "calibration.json", cv_clipped=score, of=None)
    text = report_of(workspace, folder)
    assert f"worse than {better.name}" in text
    assert other.name not in text


def test_differences_name_the_options_that_any_run_has_otherwise() -> None:
    ours, theirs = {"seed": "0", "clip": "0.1"}, {"seed": "0", "epochs": "3"}
    assert differing({"ours": ours, "theirs": theirs}) == [
        ("clip", "0.1", "-"),
        ("epochs", "-", "3"),
    ]


def test_the_page_of_an_empty_ledger_and_of_one_with_scores(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    assert "none yet" in write_ledger_page(workspace, COMPETITION).read_text()
    for n, score in enumerate((0.05, 0.04, 0.06, None), 1):
        add_score(workspace, f"lite0_head-{n:010d}", score, ref=n)
    text = write_ledger_page(workspace, COMPETITION).read_text()
    assert "4 in the ledger, 3 with a score" in text
    assert "the best of 3 is 0.04000" in text


def test_the_two_finalists_are_the_best_by_cross_validation_and_the_best_other_by_score() -> None:
    cv, public = [0.02, 0.03, np.nan, 0.02], [0.05, 0.04, 0.045, 0.05]
    scored = pd.DataFrame({"run": list("abca"), "cv_clipped": cv, "public_score": public})
    for rows, picked in ((scored, ["a", "b"]), (scored[2:3], ["c"]), (scored[:0], [])):
        assert list(finalists(rows)["run"]) == picked


def test_the_fitted_line_and_its_interval_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=6)
    y = 2 * x + rng.normal(size=6)
    line, half = fitted_line(x, y, np.array([0.0, 1.0]))
    found = linregress(x, y)
    assert line == pytest.approx([found.intercept, found.intercept + found.slope])
    assert half[0] == pytest.approx(2.7764 * found.intercept_stderr, rel=1e-3)


def test_the_auc_counts_pairs_in_order_and_ties_by_half() -> None:
    is_positive = np.array([False, False, True, True])
    auc, low, high = auc_with_interval(np.array([1.0, 2, 2, 3]), is_positive)
    assert auc == 0.875
    assert 0 <= low < auc < high <= 1


def test_an_activation_map_of_a_linear_head_on_averages_is_its_weights_times_the_features() -> None:
    network = random_network("resnet18").eval()
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.forward_features(image)[0]
        first, other = features[:, 0, 0], features[:, 1, 1]
        # for one position and against the other, so that both signs have a map
        weight = first / first.norm() - other / other.norm()
        network.fc.weight[0] = weight
        weighted = (features * weight[:, None, None]).sum(0)
    for sign in (1, -1):
        expected = (sign * weighted).relu().numpy()
        heat = activation_map(network, image, float(sign))
        assert heat == pytest.approx(expected / expected.max(), abs=1e-5)


@pytest.mark.parametrize(
    ("backbone", "has_map"), [("convnext_atto", True), ("vit_tiny_patch16_224", False)]
)
def test_only_networks_whose_positions_all_reach_the_head_have_a_map(
    backbone: str, has_map: bool
) -> None:
    network = random_network(backbone, 64).eval()
    torch.nn.init.normal_(network.get_classifier().weight)
    heat = activation_map(network, torch.randn(1, 3, 64, 64), 1.0)
    assert (heat is not None) == has_map
    assert heat is None or heat.shape == (2, 2)


def test_the_report_on_request_has_maps_and_drift_and_later_reports_keep_them(
    shown: tuple[Workspace, Path],
) -> None:
    workspace, folder = shown
    measure(workspace, folder, "cpu", Reporter())
    looks = read_json(folder / LOOKS)
    assert looks["heat"]
    assert all(np.max(heat["map"]) == 1 for heat in looks["heat"].values())
    text = report_of(workspace, folder)
    assert "show activation maps" in text
    assert text.count('class="heat"') >= len(looks["heat"])
    edit_json(folder / LOOKS, oof="of other predictions")
    assert "show activation maps" not in report_of(workspace, folder)


def test_a_figure_has_its_colours_and_sizes_as_attributes_and_no_math() -> None:
    drawing = Drawing("test")
    drawing.axes[0].plot([0, 1], [1, 2], label="costs $5 or $6 < 7")
    drawing.axes[0].legend()
    svg = drawing.svg()
    assert "costs $5 or $6 &lt; 7" in svg
    assert 'stroke="#0072b2"' in svg
    assert "style" not in svg
    assert svg.startswith("<svg viewBox=")
