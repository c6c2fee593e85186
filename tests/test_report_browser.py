"""The pages in a real browser: headless Chromium, with axe-core for accessibility.

Screenshots of both pages, in both themes at 400 and 1600 px, go to the folder $SCREENSHOTS, by
default .browser/screenshots.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import AXE, CHROMIUM
from finished_run import HOSTILE, add_score, run_with_a_hostile_name
from playwright.sync_api import Browser, Locator, sync_playwright
from playwright.sync_api import Page as Tab

from comp.competition import COMPETITION
from comp.progress import Reporter
from comp.report.activation import measure
from comp.report.stage import write_ledger_page, write_report
from comp.store import Workspace

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS", ".browser/screenshots"))
THEMES, WIDTHS = ("light", "dark"), (400, 1600)


@pytest.fixture(scope="module")
def pages(drawn: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with activation maps, a label fix and a hostile name, and the ledger's page."""
    root = tmp_path_factory.mktemp("pages") / "drawn"
    workspace, folder = run_with_a_hostile_name(drawn, root)
    oof = pd.read_csv(folder / "oof.csv", dtype={"id": str})
    margin = oof["logit"] * (2 * oof["label"] - 1)
    fixed = oof["id"][margin[oof["id"] != HOSTILE].idxmin()]
    workspace.verdicts.write_text(f"id,verdict,reason,by\n{fixed},keep,looked,me\n")
    for n, score in enumerate((0.05, 0.04, 0.06), 1):
        add_score(workspace, f"{folder.name[:-1]}{n}", score, ref=n)
    add_score(workspace, f"<script>alert(1)</script>-{n}", 0.07, ref=9)
    measure(workspace, folder, "cpu", Reporter())
    report = write_report(workspace, COMPETITION, folder)
    return {"report": report, "ledger": write_ledger_page(workspace, COMPETITION)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


Open = Callable[..., Tab]


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page; in the end, nothing may have been requested, said on the console or shown."""
    faults, contexts = [], []

    def open_page(page: str = "report", theme: str = "light", width: int = 1600) -> Tab:
        context = browser.new_context(
            color_scheme=theme,  # type: ignore[arg-type]
            viewport={"width": width, "height": 900},
            permissions=["clipboard-read", "clipboard-write"],
        )
        contexts.append(context)
        tab, url = context.new_page(), pages[page].as_uri()
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        tab.on(
            "request",
            lambda request: request.url.startswith((url, "data:")) or faults.append(request.url),
        )
        tab.goto(url)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def gallery(tab: Tab) -> Locator:
    return tab.locator(".gallery .card:not([hidden])")


def losses(tab: Tab) -> list[float]:
    return [float(card.get_attribute("data-loss") or "nan") for card in gallery(tab).all()]


def ids(tab: Tab) -> list[str]:
    return [card.get_attribute("data-id") or "" for card in gallery(tab).all()]


@pytest.mark.parametrize("page", ["report", "ledger"])
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_fits_its_window_and_axe_finds_nothing_serious(
    opened: Open, page: str, theme: str, width: int
) -> None:
    tab = opened(page, theme, width)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SCREENSHOTS / f"{page}-{theme}-{width}.png", full_page=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    for summary in tab.locator("summary").all():
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.evaluate(AXE.read_text())
    found = tab.evaluate("axe.run()")
    assert found["passes"]
    serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


def test_figures_follow_the_theme(opened: Open) -> None:
    label = "figure svg text"
    colours = {
        theme: opened(theme=theme).locator(label).first.evaluate("e => getComputedStyle(e).fill")
        for theme in THEMES
    }
    assert colours["light"] != colours["dark"]


def test_the_gallery_sorts_and_filters_by_mouse(opened: Open) -> None:
    tab = opened()
    assert losses(tab) == sorted(losses(tab), reverse=True)
    n_all = len(ids(tab))
    tab.get_by_label("Sort by").select_option("id")
    assert losses(tab) != sorted(losses(tab), reverse=True)
    named = [id for id in ids(tab) if id.startswith("cat.") and id != HOSTILE]
    assert named == sorted(named, key=lambda id: int(id.partition(".")[2]))
    tab.locator("select[name=label]").select_option("dog")
    assert all(id.startswith("dog.") for id in ids(tab))
    assert tab.locator("output").inner_text() == f"{len(ids(tab))} of {n_all} photos"
    tab.locator("select[name=label]").select_option("")
    tab.get_by_label("without a label fix").check()
    assert len(ids(tab)) == n_all - 1
    assert tab.locator(".gallery .card[hidden]").get_by_text("label fix: keep").count() == 1
    tab.get_by_label("Id contains").fill("no such photo")
    assert ids(tab) == []


def test_the_gallery_sorts_filters_and_moves_by_keyboard(opened: Open) -> None:
    tab = opened()
    tab.get_by_label("Sort by").focus()
    tab.keyboard.press("i")  # the option "id"
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    tab.keyboard.type("cat.")
    assert len(ids(tab)) > 20
    assert all(id.startswith("cat.") for id in ids(tab))
    named = [id for id in ids(tab) if id != HOSTILE]
    assert named == sorted(named, key=lambda id: int(id.partition(".")[2]))
    gallery(tab).first.focus()
    focused = "document.activeElement.dataset.id"
    walk = [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", -1), ("Home", 0)]
    for key, place in walk:
        tab.keyboard.press(key)
        assert tab.evaluate(focused) == ids(tab)[place]
    tab.keyboard.press("ArrowDown")
    below, above = gallery(tab).nth(ids(tab).index(tab.evaluate(focused))), gallery(tab).first
    below_box, above_box = below.bounding_box(), above.bounding_box()
    assert below_box
    assert above_box
    assert (below_box["x"], below_box["y"] > above_box["y"]) == (above_box["x"], True)


@pytest.mark.parametrize("by", ["button", "key"])
@pytest.mark.parametrize("has_clipboard", [True, False])
def test_the_line_for_a_label_fix_is_copied(opened: Open, by: str, has_clipboard: bool) -> None:
    tab = opened()
    if not has_clipboard:  # as in a browser that keeps it from files
        tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject('refused') }")
    tab.get_by_label("Line to copy says").select_option("flip")
    tab.get_by_label("Id contains").fill("script")
    card = gallery(tab).first
    if by == "button":
        card.get_by_role("button").click()
    else:
        card.focus()
        tab.keyboard.press("c")
    quoted = '"' + HOSTILE.replace('"', '""') + '"'
    tab.get_by_role("status").filter(has_text="Copied").wait_for()
    text = tab.evaluate("navigator.clipboard.readText()")
    assert text.startswith(f"{quoted},flip,P(cat) 0.")
    assert text.endswith(",")
    assert "out of fold in tiny-" in text


def test_activation_maps_are_shown_on_request(opened: Open) -> None:
    tab = opened()
    heat = tab.locator(".gallery .heat").first
    assert heat.is_hidden()
    tab.get_by_label("show activation maps").check()
    assert heat.is_visible()
    photo = heat.locator("xpath=preceding-sibling::img")
    assert heat.bounding_box() == photo.bounding_box()


def test_a_hostile_name_is_shown_as_it_is(opened: Open) -> None:
    tab = opened()
    assert tab.locator(".gallery .id", has_text=HOSTILE).count() == 1
    assert opened("ledger").get_by_text("<script>alert(1)</script>-3").count() >= 1
