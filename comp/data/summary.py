"""What a person learns about the photos when they are ready."""

from collections.abc import Sequence

import pandas as pd

from comp.competition import Competition
from comp.data.verdict import USABLE
from comp.progress import Reporter

N_NAMED = 5  # photos called by name in a line


def report(
    train: pd.DataFrame, test: pd.DataFrame, competition: Competition, reporter: Reporter
) -> None:
    """A table by class and split, then a line for each thing that deserves a look."""
    parts = [train[train["label"] == label] for label in (0, 1)] + [test]
    everything = pd.concat([train, test], ignore_index=True)
    sizes = everything["group"].value_counts()
    crowded = set(sizes[sizes > 1].index)
    rows: list[list[object]] = [["photos", *(len(part) for part in parts)]]
    rows += [
        [verdict, *(int((part["verdict"] == verdict).sum()) for part in parts)]
        for verdict in _by_number(everything["verdict"])
    ]
    rows.append(
        ["with near-duplicates", *(int(part["group"].isin(crowded).sum()) for part in parts)]
    )
    rows += [
        [f"fold {fold}", *(int((part["fold"] == fold).sum()) for part in parts[:2]), ""]
        for fold in sorted(train["fold"].dropna().unique())
    ]
    rows.append(["median size, px", *(_median_size(part) for part in parts)])
    reporter.table("photos", ["", *competition.classes, "test"], rows)
    _remark_duplicates(everything, crowded, reporter)
    _remark_unusable(train, "training photos cannot be decoded and are set aside", reporter)
    _remark_unusable(
        test, "test photos cannot be decoded and will be given the prior probability", reporter
    )


def _by_number(verdicts: "pd.Series[str]") -> list[str]:
    return list(verdicts.value_counts().index)


def _median_size(part: pd.DataFrame) -> str:
    usable = part[part["verdict"].isin(USABLE)]
    return (
        f"{usable['width'].median():.0f} x {usable['height'].median():.0f}"
        if len(usable)
        else "none"
    )


def _remark_duplicates(everything: pd.DataFrame, crowded: set[int], reporter: Reporter) -> None:
    if not crowded:
        reporter.say("no near-duplicates")
        return
    groups = everything[everything["group"].isin(crowded)].groupby("group")
    n_photos, n_labelled, n_labels, n_files = (
        groups.size(),
        groups["label"].count(),
        groups["label"].nunique(),
        groups["sha256"].nunique(),
    )
    reporter.say(
        f"near-duplicates: {n_photos.sum():,} photos in {len(n_photos):,} groups, up to {n_photos.max():,} in one; "
        f"files that are there again: {(n_photos - n_files).sum():,}; groups with training and test photos: "
        f"{n_labelled.between(1, n_photos - 1).sum():,}"
    )
    mixed = n_labels[n_labels > 1].index
    if len(mixed):
        ids = everything["id"][everything["group"].isin(mixed)]
        reporter.warn(
            f"near-duplicates of different classes, so that a label must be wrong, in {len(mixed):,} groups: {_named(ids)}"
        )


def _remark_unusable(photos: pd.DataFrame, what: str, reporter: Reporter) -> None:
    unusable = photos[~photos["verdict"].isin(USABLE)]
    if len(unusable):
        reporter.warn(
            f"{len(unusable):,} {what}: {_named([f'{row.id} ({row.verdict})' for row in unusable.itertuples()])}"
        )


def _named(names: "Sequence[str] | pd.Series[str]") -> str:
    return ", ".join(list(names)[:N_NAMED]) + (
        f" and {len(names) - N_NAMED:,} more" if len(names) > N_NAMED else ""
    )
