"""Kaggle's archive: checks of what is in it, and its photos, unpacked whole or not at all."""

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from comp.competition import Competition
from comp.data.manifest import ID_PATTERN, SPLITS, natural_key, natural_order
from comp.data.origin import RECEIPT, is_unpacked
from comp.data.sample import read_sample
from comp.data.zips import ZipLimits, list_members, open_inner_zip, open_zip, read_member
from comp.errors import ArchiveError
from comp.progress import Advance, Reporter
from comp.store import require_room, write_json

GROWTH = 12  # times the real archive's size that an archive may have unpacked; Kaggle's has once
_REMEDY = "delete the archive and run `make data` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedPhoto:
    """A photo that is still in its archive."""

    id: str
    label: int | None  # None for a test photo
    info: zipfile.ZipInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedSplit:
    """The photos of one split in their open archive, in natural order of ids."""

    split: str  # train or test
    name: str  # of the inner archive, for errors
    archive: zipfile.ZipFile
    photos: list[ArchivedPhoto]


@contextmanager
def checked_archive(
    path: Path, competition: Competition, is_real: bool, scratch: Path, reporter: Reporter
) -> Iterator[tuple[list[ArchivedSplit], list[str]]]:
    """Both splits and the ids to predict in Kaggle's order. All is checked but the photos' bytes.

    The inner archives are copied to the folder `scratch` for as long as the block lasts. `is_real`
    demands the number of photos of the full edition.
    """
    with ExitStack() as stack:
        outer = stack.enter_context(open_zip(path, path.name))
        total = GROWTH * competition.archive_bytes
        limits = ZipLimits(n_members=1000, member_bytes=total, total_bytes=total)
        found, junk = list_members(outer, path.name, path.stat().st_size, limits)
        by_name = {info.filename: info for info in found}
        expected = (*competition.archives, competition.sample)
        missing = [name for name in expected if name not in by_name]
        if missing:
            raise ArchiveError(
                f"{path.name} lacks {' and '.join(missing)};"
                f" it has {', '.join(sorted(by_name)[:5]) or 'nothing'}: {_REMEDY}"
            )
        _mention([*junk, *(name for name in by_name if name not in expected)], path.name, reporter)
        if by_name[competition.sample].file_size > competition.max_member_bytes:
            raise ArchiveError(
                f"{competition.sample} is larger than {competition.max_member_bytes:,} bytes:"
                f" {_REMEDY}"
            )
        sample = read_sample(
            b"".join(read_member(outer, by_name[competition.sample], path.name)), competition
        )
        packed = [by_name[name] for name in competition.archives]
        require_room(
            scratch, sum(info.file_size for info in packed), "copies of the inner archives"
        )
        splits = []
        for split, info in zip(SPLITS, packed, strict=True):
            inner = stack.enter_context(open_inner_zip(outer, info, path.name, scratch))
            splits.append(_checked_split(inner, split, info, competition, reporter))
        _check_counts(splits, sample, competition, is_real)
        yield splits, sample


def _checked_split(
    archive: zipfile.ZipFile,
    split: str,
    packed: zipfile.ZipInfo,
    competition: Competition,
    reporter: Reporter,
) -> ArchivedSplit:
    name = packed.filename
    limits = ZipLimits(
        n_members=2 * (competition.n_train + competition.n_test) + 1000,
        member_bytes=competition.max_member_bytes,
        total_bytes=GROWTH * competition.archive_bytes,
    )
    found, junk = list_members(archive, name, packed.file_size, limits)
    _mention(junk, name, reporter)
    pattern = competition.train_photo if split == "train" else competition.test_photo
    photos, strange = {}, []
    for info in found:
        match = re.fullmatch(pattern, info.filename)
        if match and re.fullmatch(ID_PATTERN, match["id"]):
            label = competition.classes.index(match["class"]) if split == "train" else None
            photo = ArchivedPhoto(id=match["id"], label=label, info=info)
            photos[photo.id.casefold()] = photo
        else:
            strange.append(info.filename)
    if strange and re.search(rf"(^|/)({'|'.join(competition.classes)})s?/", strange[0], re.I):
        raise ArchiveError(
            f"{name} has {len(strange):,} photos in folders of their classes, the first is"
            f" {strange[0][:80]!r}: pack them without these, under names that match {pattern}"
        )
    if strange:
        raise ArchiveError(
            f"{name} has {len(strange):,} files whose names do not match {pattern},"
            f" the first is {strange[0][:80]!r}: {_REMEDY}"
        )
    if len(photos) < len(found):
        n_lost = len(found) - len(photos)
        raise ArchiveError(f"{name} has {n_lost:,} photos whose id another one has: {_REMEDY}")
    ordered = sorted(photos.values(), key=lambda photo: natural_key(photo.id))
    return ArchivedSplit(split=split, name=name, archive=archive, photos=ordered)


def _mention(ignored: Sequence[str], name: str, reporter: Reporter) -> None:
    if ignored:
        reporter.say(
            f"{name}: ignored {len(ignored):,} files that are not part of the competition,"
            f" such as {ignored[0]!r}"
        )


def _check_counts(
    splits: Sequence[ArchivedSplit], sample: Sequence[str], competition: Competition, is_real: bool
) -> None:
    train, test = splits
    for label, name in enumerate(competition.classes):
        if not any(photo.label == label for photo in train.photos):
            n_photos = f"{len(train.photos):,} photos"
            raise ArchiveError(
                f"{train.name} has no photo of class {name} in {n_photos}: {_REMEDY}"
            )
    test_ids = {photo.id for photo in test.photos}
    without_photo, not_listed = set(sample) - test_ids, test_ids - set(sample)
    if without_photo or not_listed:
        raise ArchiveError(
            f"{competition.sample} lists {len(without_photo):,} ids without a photo in {test.name}"
            f" and lacks {len(not_listed):,} with one,"
            f" the first is {natural_order(without_photo | not_listed)[0]}: {_REMEDY}"
        )
    here = len(train.photos), len(test.photos)
    wanted = competition.n_train, competition.n_test
    if is_real and here != wanted:
        raise ArchiveError(
            f"the archive has {here[0]:,} training and {here[1]:,} test photos,"
            f" not {wanted[0]:,} and {wanted[1]:,}: {_REMEDY}"
        )


def unpack(splits: Sequence[ArchivedSplit], origin: str, folder: Path, reporter: Reporter) -> None:
    """Unpack to `folder/train` and `folder/test`; each gets its name when it is complete.

    `origin` identifies the archive. A folder with photos of the same origin is left alone; one of
    another origin is replaced when the new one is complete.
    """
    for leftover in folder.glob(".*.part"):  # of a killed run
        shutil.rmtree(leftover)
    splits = [split for split in splits if not is_unpacked(folder / split.split, origin)]
    n_bytes = sum(photo.info.file_size for split in splits for photo in split.photos)
    require_room(folder, n_bytes, "the photos")
    if splits:
        n_photos = sum(len(split.photos) for split in splits)
        with reporter.track("unpacking", n_photos, "photos") as advance:
            for split in splits:
                _unpack_split(split, origin, folder, advance)


def _unpack_split(split: ArchivedSplit, origin: str, folder: Path, advance: Advance) -> None:
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=f".{split.split}.", suffix=".part"))
    scratch.chmod(0o755)
    try:
        for photo in split.photos:
            # An id has no slash and the folder is new: this cannot write anywhere else.
            with (scratch / f"{photo.id}.jpg").open("xb") as file:
                file.writelines(read_member(split.archive, photo.info, split.name))
            advance()
        write_json(scratch / RECEIPT, {"archive": origin, "n_photos": len(split.photos)})
        os.sync()  # once for all: a power cut must not leave empty files under the folder's name
        old = scratch.with_name(f"{scratch.name}.old.part")
        if (folder / split.split).exists():
            (folder / split.split).rename(old)
        scratch.rename(folder / split.split)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
