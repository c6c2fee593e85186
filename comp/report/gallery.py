"""Photos on pages: thumbnails, the largest losses, near-duplicates, and the audit's page."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from comp.competition import Competition
from comp.data.canvas import Geometry, store_folder
from comp.data.manifest import SPLITS, photo_path, read_manifest
from comp.data.pixels import PixelStore, read_index
from comp.metric import sigmoid
from comp.predict.audit import conflicts, pairs_across
from comp.report.page import Card, Page, Section, data_uri
from comp.store import Workspace
from comp.train.labels import read_label_fixes

BOX_PX = (180, 160)  # a thumbnail's largest width and height, as in page.css; about 8 kB
QUALITY = 75  # of its JPEG
N_LARGEST = 60  # losses shown
N_GROUPS, N_OF_GROUP = 12, 4  # of near-duplicates shown
N_AUDITED = 40  # photos in each section of the audit: four of them stay under 3 MB
N_NAMED = 6  # near-duplicates of a photo that its card names
HEAT_LEVELS = 16  # of an activation map: more only cost bytes


class Photos:
    """The photos of a workspace as they are now."""

    def __init__(
        self, workspace: Workspace, competition: Competition, geometry: Geometry | None = None
    ) -> None:
        """`geometry`: of decoded pixels, which serve where a photo's file is gone."""
        self.workspace, self.classes, self._geometry = workspace, competition.classes, geometry
        self.train, self.test = (read_manifest(workspace.manifest(split)) for split in SPLITS)
        self.label_fixes = read_label_fixes(workspace.verdicts)

    @cached_property
    def _rows(self) -> dict[str, pd.DataFrame]:
        return {"train": self.train.set_index("id"), "test": self.test.set_index("id")}

    @cached_property
    def _pixels(self) -> PixelStore | None:
        if self._geometry is None:
            return None
        folder = store_folder(self.workspace, self._geometry)
        index, both = read_index(folder), pd.concat([self.train, self.test])
        return PixelStore(folder, self._geometry, both[both["sha256"].isin(index["key"])], index)

    def thumbnail(self, id: str, split: str = "train") -> Image.Image | None:
        """None if there is neither a photo nor pixels."""
        image = _opened(photo_path(self.workspace, split, id))
        if image is None and self._pixels is not None and id in self._pixels.ids:
            row = self._rows[split].loc[id]
            canvas = self._pixels.canvas(int(self._pixels.rows([id])[0]))
            size = int(row["width"]), int(row["height"])  # type: ignore[arg-type]  # not a Series
            image = Image.fromarray(canvas).resize(size)
        if image is not None:
            image.thumbnail(BOX_PX)
        return image

    def uri(self, id: str, split: str = "train") -> str | None:
        image = self.thumbnail(id, split)
        return None if image is None else data_uri(image, "JPEG", quality=QUALITY)

    @cached_property
    def alike(self) -> dict[str, tuple[str, ...]]:
        """By training photo, its near-duplicates, those among the test photos as "test 7"."""
        both = pd.concat([self.train, self.test.assign(id="test " + self.test["id"])])
        several = both[both["group"].duplicated(keep=False)]
        groups = several.groupby("group")["id"].apply(list)
        return {id: tuple(x for x in ids if x != id) for ids in groups for id in ids}


def _opened(path: Path) -> Image.Image | None:
    """By PIL, which needs no torch; None for the few files that only `photos.decode` can read."""
    with suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        image = Image.open(path)
        image.draft("RGB", BOX_PX)  # a JPEG is decoded at a fraction of its size
        return ImageOps.exif_transpose(image).convert("RGB")
    return None


def _names(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - N_NAMED:,} more" if len(ids) > N_NAMED else ""
    return ", ".join(ids[:N_NAMED]) + more


def largest_losses(
    photos: Photos, oof: pd.DataFrame, run: str, heats: Mapping[str, Mapping[str, Any]]
) -> Iterator[Card]:
    """The photos of `oof` (id, label, logit, loss, fold) that cost the `run` most, worst first.

    `heats`: activation maps of some of them, as comp/report/activation.py writes them.
    """
    worst = oof.nlargest(N_LARGEST, "loss", keep="first")
    columns = ["id", "label", "logit", "loss", "fold"]
    for id, label, logit, loss, fold in worst[columns].itertuples(index=False):
        name, prob = photos.classes[int(label)], float(sigmoid(logit if label else -logit))
        image, heat = photos.thumbnail(id), heats.get(id)
        yield Card(
            id=id,
            label=name,
            photo=None if image is None else data_uri(image, "JPEG", quality=QUALITY),
            heat=_heat_uri(heat, image.size) if heat and image else None,
            prob=prob,
            loss=float(loss),
            alike=_names(photos.alike.get(id, ())),
            label_fix=photos.label_fixes.get(id, ""),
            notes=(f"fold {fold:.0f}",),
            reason=f"P({name}) {prob:.4f} out of fold in {run}",
        )


def _heat_uri(heat: Mapping[str, Any], size: tuple[int, int]) -> str:
    """A PNG of `size`, more opaque where the map is higher; outside of the crop fully clear.

    `heat` has `map [h, w]` in [0, 1] of a crop, and the `box` of that in shares of the photo: left,
    top, width and height.
    """
    left, top, width, height = np.array(heat["box"]) * [*size, *size]
    levels: NDArray[np.uint8] = np.rint(np.asarray(heat["map"]) * 255).astype(np.uint8)
    crop = Image.fromarray(levels).resize((round(width), round(height)), Image.Resampling.BICUBIC)
    whole = Image.new("L", size)
    whole.paste(crop, (round(left), round(top)))
    indices = (np.asarray(whole) // (256 // HEAT_LEVELS)).astype(np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette([230, 60, 0] * HEAT_LEVELS)
    opacity = bytes(round(200 * level / (HEAT_LEVELS - 1)) for level in range(HEAT_LEVELS))
    return data_uri(image, "PNG", transparency=opacity, bits=4)


def near_duplicates(photos: Photos, oof: pd.DataFrame) -> Section:
    """The groups of the training photos, those whose labels disagree first."""
    train, losses = photos.train.set_index("id"), oof.set_index("id")["loss"]
    several = photos.train[photos.train["group"].duplicated(keep=False)]
    groups = several.groupby("group", sort=False)["id"].apply(list)
    clashes, n_across = conflicts(photos.train), len(pairs_across(photos.train, photos.test))
    shown = sorted(groups, key=lambda ids: (ids[0] not in clashes, -len(ids)))[:N_GROUPS]
    cards = [
        Card(
            id=id,
            label=photos.classes[int(train["label"][id])],
            photo=photos.uri(id),
            loss=float(losses[id]) if id in losses else None,
            alike=_names(photos.alike[id]),
            label_fix=photos.label_fixes.get(id, ""),
            notes=("their labels differ",) if id in clashes else (),
        )
        for ids in shown
        for id in ids[:N_OF_GROUP]
    ]
    limits = f"up to {N_OF_GROUP} of each of {len(shown):,}, contradictions first"
    return Section(
        title="Near-duplicates",
        text=f"Groups of near-duplicates among the training photos: {len(groups):,}, with"
        f" {len(several):,} photos; no group is split over folds. Photos whose label contradicts"
        f" another of their group: {len(clashes):,}. Pairs of a training and a test photo:"
        f" {n_across:,}." + f" Shown: {limits}." * bool(cards),
        cards=cards,
    )


def audit_page(photos: Photos, competition: Competition, table: pd.DataFrame) -> Page:
    """The photos whose labels are in doubt; `table`: the rows of runs/audit.csv."""
    beside = [
        Card(id=id, label=split, photo=photos.uri(id, split), alike=other)
        for id, test_id in pairs_across(photos.train, photos.test)
        .head(N_AUDITED // 2)
        .itertuples(index=False)
        for split, id, other in (("train", id, f"test {test_id}"), ("test", test_id, id))
    ]
    is_doubted, is_listed = table["votes"] > 0, table["n_lists"] > 0
    parts = {
        "Labels that runs doubt": _audited(photos, table[is_doubted]),
        "Near-duplicates with different labels": _audited(photos, table[table["conflict"] != ""]),
        "Training photos beside their near-duplicates among the test photos": beside,
        "On a published list, and no run doubts them": _audited(
            photos, table[~is_doubted & is_listed]
        ),
    }
    return Page(
        title="Audit of labels",
        subtitle=f"{competition.title}: labels with evidence against them: {len(table):,}",
        sections=[
            Section(
                title=title,
                text="" if cards else "None.",
                cards=cards,
                has_toolbar=any(card.reason for card in cards),
            )
            for title, cards in parts.items()
        ],
    )


def _audited(photos: Photos, rows: pd.DataFrame) -> list[Card]:
    cards = []
    for _, row in rows.head(N_AUDITED).iterrows():
        label, prob = photos.classes[int(row["label"])], 1 - float(row["p_other"])
        votes, n_lists = int(row["votes"]), int(row["n_lists"])
        doubts, lists = f"runs that doubt it: {votes}", f"published lists: {n_lists}"
        cards.append(
            Card(
                id=str(row["id"]),
                label=label,
                photo=photos.uri(str(row["id"])),
                prob=prob,
                alike=str(row["conflict"]).replace(" ", ", "),
                label_fix=str(row["verdict"]),
                notes=(doubts, lists) if n_lists else (doubts,),
                reason=f"P({label}) {prob:.4f} by the mean of runs; {doubts}",
            )
        )
    return cards
