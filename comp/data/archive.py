"""Kaggle's archive: checked, its photos unpacked whole or not at all, and its list of test ids."""

import csv
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from comp.competition import Competition
from comp.data.manifest import ID_PATTERN, SPLITS, natural_key
from comp.data.origin import files_in, find_archive
from comp.data.zips import FREE_MEMBERS, GET_AGAIN, MAX_RATIO, list_members, open_zip, read_member
from comp.errors import ArchiveError
from comp.progress import Advance, Reporter, counted
from comp.store import require_room

_NUMBER = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,2})?"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedSplit:
    """The photos of one split in their open archive, in natural order of ids."""

    split: str  # train or test
    name: str  # of the archive, for errors
    archive: zipfile.ZipFile
    photos: list[tuple[str, int | None, zipfile.ZipInfo]]  # id; label, None of a test photo; member


@contextmanager
def checked_archive(
    place: Path, competition: Competition, scratch: Path, reporter: Reporter
) -> Iterator[tuple[list[ArchivedSplit], list[str]]]:
    """Both splits and the ids to predict in Kaggle's order. All is checked but the photos' bytes.

    Zips inside a zip are copied to the folder `scratch` for as long as the block lasts.
    """
    parts = find_archive(place, competition)
    if not parts:
        names = f"{', '.join(competition.archives)} (or what they unpack to), {competition.sample}"
        absent = f"{place} does not exist or is not the archive"
        raise ArchiveError(f"{absent}: a zip, or a folder with {competition.slug}.zip or {names}")
    with ExitStack() as stack:
        if len(parts) == 1:
            opened, sample = _open_packed(stack, parts[0], competition, scratch, reporter)
        else:
            opened = [_open_part(stack, part, scratch) for part in parts[:-1]]
            sample = parts[-1].read_bytes()
        ids = read_sample(sample, competition, GET_AGAIN)
        splits = [
            _checked_split(archive, name, split, competition, reporter)
            for archive, name, split in zip(opened, competition.archives, SPLITS, strict=True)
        ]
        _check_ids(splits, ids, competition)
        yield splits, ids


def _open_packed(
    stack: ExitStack, path: Path, competition: Competition, scratch: Path, reporter: Reporter
) -> tuple[list[zipfile.ZipFile], bytes]:
    """The photos and the sample submission in Kaggle's zip."""
    outer = stack.enter_context(open_zip(path, path.name))
    most_each = MAX_RATIO * path.stat().st_size
    found, junk = list_members(outer, path.name, FREE_MEMBERS, most_each)
    by_name = {info.filename: info for info in found}
    expected = (*competition.archives, competition.sample)
    if missing := [name for name in expected if name not in by_name]:
        has = ", ".join(sorted(by_name)[:5]) or "nothing"
        remedy = "name its folder" if path.name in competition.archives else GET_AGAIN
        raise ArchiveError(f"{path.name} lacks {', '.join(missing)}; it has {has}: {remedy}")
    _mention([*junk, *(name for name in by_name if name not in expected)], path.name, reporter)
    *packed, listed = (by_name[name] for name in expected)
    if listed.file_size > (most := competition.max_member_bytes):
        raise ArchiveError(f"{listed.filename} is larger than {most:,} bytes: {GET_AGAIN}")
    n_bytes = sum(info.file_size for info in packed)
    require_room(scratch, n_bytes, "copies of the inner archives")
    opened = []
    for info in packed:
        copy = stack.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - it closes
        copy.writelines(read_member(outer, info, path.name))
        opened.append(stack.enter_context(open_zip(copy, f"{info.filename} in {path.name}")))
    return opened, b"".join(read_member(outer, listed, path.name))


def _open_part(stack: ExitStack, part: Path, scratch: Path) -> zipfile.ZipFile:
    """The zip `part`; of a folder, a zip of its files: there is one way to read photos."""
    if part.is_file():
        return stack.enter_context(open_zip(part, part.name))
    base = part if (part / part.name).is_dir() else part.parent  # train/train or train
    files = files_in(part)
    n_bytes = sum(file.stat().st_size for file in files)
    require_room(scratch, n_bytes, f"copies of the photos in {part}")
    copy = stack.enter_context(tempfile.TemporaryFile(dir=scratch))  # noqa: SIM115 - it closes
    with zipfile.ZipFile(copy, "w", strict_timestamps=False) as packed:
        for file in files:
            packed.write(file, file.relative_to(base))
    return stack.enter_context(open_zip(copy, part.name))


def _checked_split(
    archive: zipfile.ZipFile, name: str, split: str, competition: Competition, reporter: Reporter
) -> ArchivedSplit:
    n_photos = competition.n_train if split == "train" else competition.n_test
    limits = (2 * n_photos + FREE_MEMBERS, competition.max_member_bytes)  # junk may double them
    found, junk = list_members(archive, name, *limits)
    _mention(junk, name, reporter)
    pattern = competition.train_photo if split == "train" else competition.test_photo
    photos, strange = {}, []
    for info in found:
        match = re.fullmatch(pattern, info.filename)
        if match and re.fullmatch(ID_PATTERN, match["id"]):
            label = competition.classes.index(match["class"]) if split == "train" else None
            photos[match["id"].casefold()] = match["id"], label, info
        else:
            strange.append(info.filename)
    pattern = re.sub(r"\?P<\w+>", "", pattern)  # for people
    if strange:
        by_class = re.search(rf"(^|/)({'|'.join(competition.classes)})s?/", strange[0], re.I)
        remedy = "pack them without folders of their classes" if by_class else GET_AGAIN
        raise ArchiveError(
            f"{name} has {counted(len(strange), 'file')} whose name does not match {pattern},"
            f" the first is {strange[0][:80]!r}: {remedy}"
        )
    if n_lost := len(found) - len(photos):
        raise ArchiveError(f"{name} has {counted(n_lost, 'repeated photo id')}: {GET_AGAIN}")
    ordered = sorted(photos.values(), key=lambda photo: natural_key(photo[0]))
    return ArchivedSplit(split=split, name=name, archive=archive, photos=ordered)


def _mention(ignored: Sequence[str], name: str, reporter: Reporter) -> None:
    if ignored:
        reporter.say(
            f"{name}: ignored {counted(len(ignored), 'file')} of no use in this competition,"
            f" such as {ignored[0]!r}"
        )


def _check_ids(
    splits: Sequence[ArchivedSplit], sample: Sequence[str], competition: Competition
) -> None:
    train, test = splits
    labels = {competition.classes[label] for _, label, _ in train.photos if label is not None}
    for name in set(competition.classes) - labels:
        found = f"{train.name} has {counted(len(train.photos), 'photo')}, but none of class {name}"
        raise ArchiveError(f"{found}: {GET_AGAIN}")
    test_ids = {id for id, _, _ in test.photos}
    without_photo, not_listed = set(sample) - test_ids, test_ids - set(sample)
    if without_photo or not_listed:
        raise ArchiveError(
            f"{competition.sample} lists {counted(len(without_photo), 'id')} without a photo in"
            f" {test.name} and lacks {len(not_listed):,} with one,"
            f" the first is {min(without_photo | not_listed, key=natural_key)}: {GET_AGAIN}"
        )


def is_full(splits: Sequence[ArchivedSplit], competition: Competition, reporter: Reporter) -> bool:
    """Whether these are as many photos as Kaggle's; warns if not."""
    train, test = (len(split.photos) for split in splits)
    is_all = (train, test) == (competition.n_train, competition.n_test)
    if not is_all:
        reporter.warn(
            f"{train:,} training and {test:,} test photos, not {competition.n_train:,} and"
            f" {competition.n_test:,}: predictions for them cannot be submitted to Kaggle"
        )
    return is_all


def unpack(splits: Sequence[ArchivedSplit], folder: Path, reporter: Reporter) -> None:
    """Unpack to `folder/train` and `folder/test`; each gets its name when it is complete."""
    for leftover in folder.glob(".*.part"):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    sizes = [info.file_size for split in splits for _, _, info in split.photos]
    require_room(folder, sum(sizes), "the photos")
    with reporter.track("unpacking", len(sizes), "photos") as advance:
        for split in splits:
            _unpack_split(split, folder, advance)


def _unpack_split(split: ArchivedSplit, folder: Path, advance: Advance) -> None:
    target = folder / split.split
    scratch, old = folder / f".{split.split}.part", folder / f".{split.split}.old.part"
    try:
        scratch.mkdir()
        for id, _, info in split.photos:
            # An id has no slash and the folder is new: this cannot write anywhere else.
            with (scratch / f"{id}.jpg").open("xb") as file:
                file.writelines(read_member(split.archive, info, split.name))
            advance()
        os.sync()  # once for all: a power cut must not leave empty files under the folder's name
        if target.exists():
            target.rename(old)
        scratch.rename(target)
    finally:
        for leftover in (scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)


def read_sample(
    data: bytes, competition: Competition, remedy: str = "run `make data`"
) -> list[str]:
    """The ids of a sample submission in its order, however its writer encoded and quoted them.

    1e3, "1000", 1000.0 and 1000 are one id, but not 01000, which Kaggle does not write.
    ArchiveError for anything that is not a list of ids and numbers.
    """
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=None), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        fault = f"{competition.sample} is not a readable CSV ({error})"
        raise ArchiveError(f"{fault}: {remedy}") from error
    stripped = ([cell.strip() for cell in row] for row in rows)
    header, *rows = [row for row in stripped if any(row)] or [[]]
    ids = [_id_of(row, competition) for row in rows]
    wrong = [",".join(row)[:80] for id, row in zip(ids, rows, strict=True) if id is None]
    twice = [id for id, n in Counter(ids).items() if n > 1]
    problem = None
    if tuple(header) != competition.columns:
        found, wanted = ",".join(header), ",".join(competition.columns)
        problem = f"the columns {found[:80]!r}, not {wanted!r}"
    elif wrong:
        problem = f"lines without an id and a number ({len(wrong):,}), the first {wrong[0]!r}"
    elif twice:
        problem = f"ids more than once ({len(twice):,}), the first is {twice[0]}"
    elif not ids:
        problem = "no ids"
    if problem:
        raise ArchiveError(f"{competition.sample} has {problem}: {remedy}")
    return [id for id in ids if id is not None]


def write_sample(ids: list[str], competition: Competition) -> str:
    """The sample submission in its plain form: LF, no quotes, ids as the photos are named."""
    rows = [competition.columns, *((id, "0.5") for id in ids)]
    return "".join(f"{first},{second}\n" for first, second in rows)


def _id_of(row: Sequence[str], competition: Competition) -> str | None:
    """The id, in its plain form if numeric, of a row with an id and a number; else None."""
    if len(row) != 2 or not re.fullmatch(_NUMBER, row[1]):
        return None
    if not competition.numeric_ids:
        return row[0] if re.fullmatch(ID_PATTERN, row[0]) else None
    if not re.fullmatch(_NUMBER, row[0]) or re.match(r"[-+.]|0[0-9]", row[0]):
        return None
    number = Decimal(row[0])
    return str(int(number)) if number < 10**18 and number == int(number) else None
