"""What the data stage prints about the photos when they are ready."""

from collections.abc import Sequence

import pandas as pd

from comp.competition import Competition
from comp.data.manifest import USABLE, usable
from comp.progress import Reporter, counted

MANY = 0.05  # of the photos of a split
N_NAMED = 5  # photos listed by name in one line


def print_summary(
    train: pd.DataFrame, test: pd.DataFrame, competition: Competition, reporter: Reporter
) -> None:
    """A table by class and split, then one line for each thing to look at."""
    parts = [train[train["label"] == label] for label in (0, 1)] + [test]
    photos = pd.concat([train, test], ignore_index=True)
    sizes = photos["group"].value_counts()
    shared = set(sizes[sizes > 1].index)  # groups of more than one photo
    rows: list[list[object]] = [["photos", *(len(part) for part in parts)]]
    for status in photos["verdict"].value_counts().index:
        rows.append([status, *(int((part["verdict"] == status).sum()) for part in parts)])
    rows.append(
        ["with near-duplicates", *(int(part["group"].isin(shared).sum()) for part in parts)]
    )
    for fold in sorted(train["fold"].dropna().unique()):
        counts = (int((part["fold"] == fold).sum()) for part in parts[:2])
        rows.append([f"fold {fold}", *counts, ""])
    rows.append(["median size, px", *(_median_size(part) for part in parts)])
    reporter.table("photos", ["", *competition.classes, "test"], rows)
    _print_duplicates(photos, shared, reporter)
    unclosed = photos[photos["verdict"] == "unclosed"]
    _warn(unclosed, "photo", "lacking only the end marker, and used", reporter)
    for split, part, outcome in (
        ("training", train, "set aside"),
        ("test", test, "predicted by the prior probability"),
    ):
        lost = part[~part["verdict"].isin(USABLE)]
        _warn(lost, f"{split} photo", f"that cannot be decoded, {outcome}", reporter)
        if len(lost) > MANY * len(part):
            reporter.warn(
                f"{len(lost) / len(part):.0%} OF ALL {split.upper()} PHOTOS CANNOT BE DECODED:"
                " more than chance damages, so delete the archive and run `make data` again"
            )


def _median_size(part: pd.DataFrame) -> str:
    sizes = usable(part)[["width", "height"]].median()
    return f"{sizes['width']:.0f} x {sizes['height']:.0f}" if len(usable(part)) else "none"


def _print_duplicates(photos: pd.DataFrame, shared: set[int], reporter: Reporter) -> None:
    if not shared:
        reporter.say("no near-duplicates")
        return
    groups = photos[photos["group"].isin(shared)].groupby("group")
    n_photos, n_labelled = groups.size(), groups["label"].count()
    n_labels, n_files = groups["label"].nunique(), groups["sha256"].nunique()
    n_in_both = n_labelled.between(1, n_photos - 1).sum()
    reporter.say(
        f"near-duplicates: {n_photos.sum():,} photos in {counted(len(n_photos), 'group')},"
        f" up to {n_photos.max():,} in one; exact duplicates: {(n_photos - n_files).sum():,};"
        f" groups with training and test photos: {n_in_both:,}"
    )
    mixed = n_labels[n_labels > 1].index
    if len(mixed):
        ids = list(photos["id"][photos["group"].isin(mixed)])
        reporter.warn(
            f"{counted(len(mixed), 'group')} of near-duplicates of different classes, so that a"
            f" label must be wrong: {first_names(ids)}"
        )


def _warn(photos: pd.DataFrame, noun: str, what: str, reporter: Reporter) -> None:
    if len(photos):
        named = [f"{id} ({status})" for id, status in photos[["id", "verdict"]].to_numpy()]
        reporter.warn(f"{counted(len(photos), noun)} {what}: {first_names(named)}")


def first_names(names: Sequence[str]) -> str:
    more = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {more:,} more" if more > 0 else "")
