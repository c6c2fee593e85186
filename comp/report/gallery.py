"""Photos that a person has to look at: those that cost a run most, near-duplicates, the audit's."""

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from comp.competition import Competition
from comp.data.manifest import SPLITS, photo_path, read_manifest
from comp.metric import sigmoid
from comp.predict.audit import conflicts, pairs_across
from comp.predict.runs import read_oof, with_losses
from comp.progress import Reporter, counted
from comp.report.page import Card, Page, Section
from comp.store import Workspace
from comp.train.labels import read_label_fixes

BOX_PX = (180, 160)  # a thumbnail's largest width and height, as in page.css; about 8 kB
QUALITY = 75  # of its JPEG
N_LARGEST = 60  # losses shown
N_PRINTED = 20  # losses on a terminal
N_GROUPS, N_OF_GROUP = 12, 4  # of near-duplicates shown
N_AUDITED = 40  # photos in each section of the audit: four of them stay under 3 MB
N_NAMED = 6  # near-duplicates of a photo that its card names
HEAT_LEVELS = 16  # of an activation map: more only cost bytes


class Photos:
    """The photos of a workspace as they are now."""

    def __init__(self, workspace: Workspace, competition: Competition) -> None:
        self.workspace, self.classes = workspace, competition.classes
        self.train, self.test = (read_manifest(workspace.manifest(split)) for split in SPLITS)
        self.labels = self.train.set_index("id")["label"]
        self.label_fixes = read_label_fixes(workspace.verdicts)
        both = pd.concat([self.train, self.test.assign(id="test " + self.test["id"])])
        groups = both[both["group"].duplicated(keep=False)].groupby("group")["id"].apply(list)
        # by photo its near-duplicates, those among the test photos as "test 7"
        self.alike = {id: [x for x in ids if x != id] for ids in groups for id in ids}

    def thumbnail(self, id: str) -> Image.Image | None:
        """By PIL, which needs no torch; None for a photo that is gone, or that only we decode."""
        with suppress(OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            image = Image.open(photo_path(self.workspace, "train", id))
            image.draft("RGB", BOX_PX)  # a JPEG is decoded at a fraction of its size
            upright = ImageOps.exif_transpose(image).convert("RGB")
            upright.thumbnail(BOX_PX)
            return upright
        return None

    def card(
        self, id: str, label: int, heat: Mapping[str, Any] | None = None, **known: Any
    ) -> Card:
        """The training photo `id` with an activation map, if there is one, and what is `known`."""
        image, alike = self.thumbnail(id), self.alike.get(id, [])
        more = f" and {len(alike) - N_NAMED:,} more" if len(alike) > N_NAMED else ""
        return Card(
            id,
            self.classes[label],
            _data_uri(image, "JPEG", quality=QUALITY) if image else None,
            _heat_uri(heat, image.size) if heat and image else None,
            alike=", ".join(alike[:N_NAMED]) + more,
            label_fix=self.label_fixes.get(id, ""),
            **known,
        )


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def largest_losses(
    photos: Photos, oof: pd.DataFrame, run: str, heats: Mapping[str, Mapping[str, Any]]
) -> Iterator[Card]:
    """The photos of `oof` (id, label, logit, loss, fold) that cost the `run` most, worst first."""
    worst = oof.nlargest(N_LARGEST, "loss")[["id", "label", "logit", "loss", "fold"]]
    for id, label, logit, loss, fold in worst.itertuples(index=False):
        prob, notes = float(sigmoid(logit if label else -logit)), [f"fold {fold:.0f}"]
        reason = f"P({photos.classes[int(label)]}) {prob:.4f} out of fold in {run}"
        known = {"prob": prob, "loss": loss, "notes": notes, "reason": reason}
        yield photos.card(id, int(label), heats.get(id), **known)


def _heat_uri(heat: Mapping[str, Any], size: tuple[int, int]) -> str:
    """A PNG of `size`, more opaque where the map is higher; outside of the crop fully clear.

    `heat` has `map [h, w]` in [0, 1] of a crop, and the `box` of that in shares of the photo: left,
    top, width and height.
    """
    left, top, width, height = np.rint(np.array(heat["box"]) * [*size, *size]).astype(int).tolist()
    levels: NDArray[np.uint8] = np.rint(np.asarray(heat["map"]) * 255).astype(np.uint8)
    crop = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    whole = Image.new("L", size)
    whole.paste(crop, (left, top))
    image = whole.point(lambda level: level * HEAT_LEVELS // 256).convert("P")
    image.putpalette([230, 60, 0] * HEAT_LEVELS)
    opacity = bytes(round(200 * level / (HEAT_LEVELS - 1)) for level in range(HEAT_LEVELS))
    return _data_uri(image, "PNG", transparency=opacity, bits=4)


def print_worst(
    workspace: Workspace, competition: Competition, folder: Path, reporter: Reporter
) -> None:
    """The stage `errors`: the worst photos of the run in `folder`, each with a line for a fix."""
    oof, photos = with_losses(read_oof(folder)), Photos(workspace, competition)
    rows, fixes, share = [], [], 0.0
    for card in islice(largest_losses(photos, oof, folder.name, {}), N_PRINTED):
        share += (card.loss or 0.0) / (oof["loss"].sum() or 1.0)
        fold, near = card.notes[0].removeprefix("fold "), card.alike.partition(",")[0]
        numbers = (f"{card.prob:.4f}", f"{card.loss:.4f}", f"{share:.0%}", fold)
        rows.append((card.id, card.label, *numbers, near, card.label_fix))
        fixes.append((card.id, "drop", card.reason, ""))
    columns = ("photo", "label", "P(label)", "loss", "share", "fold", "near-duplicate", "label fix")
    reporter.table(f"{folder.name}: log loss, out of fold", columns, rows)
    reporter.say(f"these {len(rows)} carry {share:.0%} of the loss of {counted(len(oof), 'photo')}")
    reporter.say(f"look at each; where a label is wrong, copy the line to {workspace.verdicts}:")
    lines = pd.DataFrame(fixes, columns=["id", "verdict", "reason", "by"]).to_csv(index=False)
    for line in lines.splitlines():
        reporter.say(line)


def near_duplicates(photos: Photos, oof: pd.DataFrame) -> Section:
    """The groups of the training photos, those whose labels disagree first."""
    losses = oof.set_index("id")["loss"]
    several = photos.train[photos.train["group"].duplicated(keep=False)]
    groups = several.groupby("group", sort=False)["id"].apply(list)
    clashes, n_across = conflicts(photos.train), len(pairs_across(photos.train, photos.test))
    shown = sorted(groups, key=lambda ids: (ids[0] not in clashes, -len(ids)))[:N_GROUPS]
    cards = [
        photos.card(
            id,
            photos.labels[id],
            loss=losses.get(id),
            notes=["their labels differ"] * (id in clashes),
        )
        for ids in shown
        for id in ids[:N_OF_GROUP]
    ]
    text = (
        f"Groups of near-duplicates among the training photos: {len(groups):,}, with"
        f" {len(several):,} photos; no group is split over folds. Photos whose label contradicts"
        f" another of their group: {len(clashes):,}. Pairs of a training and a test photo:"
        f" {n_across:,}. Shown: {len(cards):,} photos, contradictions first."
    )
    return Section("Near-duplicates", text, cards=cards)


def audit_page(workspace: Workspace, competition: Competition, table: pd.DataFrame) -> Page:
    """The photos whose labels are in doubt; `table`: the rows of runs/audit.csv."""
    photos = Photos(workspace, competition)
    pairs = pairs_across(photos.train, photos.test).head(N_AUDITED)
    is_doubted, is_listed = table["votes"] > 0, table["n_lists"] > 0
    near = [photos.card(id, photos.labels[id]) for id in pairs["id"].unique()]
    parts = {
        "Labels that runs doubt": _audited(photos, table[is_doubted]),
        "Near-duplicates with different labels": _audited(photos, table[table["conflict"] != ""]),
        "Training photos with near-duplicates among the test photos": near,
        "On a published list alone": _audited(photos, table[~is_doubted & is_listed]),
    }
    sections = [
        Section(title, "" if cards else "None.", cards=cards, has_toolbar=cards not in ([], near))
        for title, cards in parts.items()
    ]
    subtitle = f"{competition.title}: {len(table):,} photos with evidence against their label"
    return Page("Audit of labels", subtitle, sections=sections)


def _audited(photos: Photos, rows: pd.DataFrame) -> list[Card]:
    cards = []
    for row in rows.head(N_AUDITED).to_dict("records"):
        prob, notes = 1 - row["p_other"], [f"runs that doubt it: {row['votes']}"]
        reason = f"P({photos.classes[row['label']]}) {prob:.4f} by the mean of runs; {notes[0]}"
        notes += [f"published lists: {row['n_lists']}"] * (row["n_lists"] > 0)
        cards.append(photos.card(row["id"], row["label"], prob=prob, notes=notes, reason=reason))
    return cards
