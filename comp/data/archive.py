"""Kaggle's archive: what must be in it, and its photos, unpacked whole or not at all."""

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
from comp.data.manifest import SPLITS, natural_order
from comp.data.sample import read_sample
from comp.data.zips import Limits, inner, members, opened, pieces
from comp.errors import ArchiveError, DataError
from comp.progress import Advance, Reporter
from comp.store import read_json, write_json

PHOTO_BYTES = (
    256 * 2**10
)  # of a photo on average, at most; Kaggle's have 22 KB, so 11 times the real archive is the limit
RECEIPT = ".origin.json"  # in a folder of photos: from which archive they are
_REMEDY = "delete the archive and run `make data` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One split of an open archive: its photos by id, not yet read."""

    split: str  # train or test
    name: str  # of the inner archive, for errors
    archive: zipfile.ZipFile
    photos: dict[str, zipfile.ZipInfo]


@contextmanager
def checked(
    path: Path, competition: Competition, is_real: bool, scratch: Path, reporter: Reporter
) -> Iterator[tuple[list[Part], list[str]]]:
    """The two splits of the archive and the ids to predict, in Kaggle's order. All is checked but the bytes of the photos.

    `scratch` is a folder for an inner archive that is not simply stored. `is_real` asks for the full edition's numbers.
    """
    with ExitStack() as stack:
        outer = stack.enter_context(opened(path, path.name))
        total = (competition.n_train + competition.n_test) * PHOTO_BYTES
        found, junk = members(
            outer,
            path.name,
            path.stat().st_size,
            Limits(n_members=1000, member_bytes=total, total_bytes=total),
        )
        by_name = {info.filename: info for info in found}
        expected = (*competition.archives, competition.sample)
        missing = [name for name in expected if name not in by_name]
        if missing:
            raise ArchiveError(
                f"{path.name} lacks {' and '.join(missing)}; it has {', '.join(sorted(by_name)[:5]) or 'nothing'}: {_REMEDY}"
            )
        _mention([*junk, *(name for name in by_name if name not in expected)], path.name, reporter)
        if (
            by_name[competition.sample].file_size > competition.max_member_bytes
        ):  # read at once, unlike the inner archives
            raise ArchiveError(
                f"{competition.sample} is larger than {competition.max_member_bytes:,} bytes: {_REMEDY}"
            )
        sample = read_sample(
            b"".join(pieces(outer, by_name[competition.sample], path.name)), competition
        )
        parts = []
        for split, name in zip(SPLITS, competition.archives, strict=True):
            archive = stack.enter_context(inner(outer, by_name[name], path.name, scratch))
            parts.append(_part(archive, split, by_name[name], competition, reporter))
        _check_counts(parts, sample, competition, is_real)
        yield parts, sample


def _part(
    archive: zipfile.ZipFile,
    split: str,
    packed: zipfile.ZipInfo,
    competition: Competition,
    reporter: Reporter,
) -> Part:
    n_photos = competition.n_train + competition.n_test
    limits = Limits(
        n_members=2 * n_photos + 1000,
        member_bytes=competition.max_member_bytes,
        total_bytes=n_photos * PHOTO_BYTES,
    )
    found, junk = members(archive, packed.filename, packed.file_size, limits)
    _mention(junk, packed.filename, reporter)
    number = "(?:0|[1-9][0-9]{0,17})"
    id = (
        number
        if split == "test"
        else f"(?:{'|'.join(map(re.escape, competition.classes))})\\.{number}"
    )
    folder = Path(packed.filename).stem
    matches = [
        (re.fullmatch(f"{re.escape(folder)}/({id})\\.jpg", info.filename), info) for info in found
    ]
    strange = [info.filename for match, info in matches if not match]
    if strange:
        raise ArchiveError(
            f"{packed.filename} has {len(strange):,} members that are not called like {competition.classes[0]}.0.jpg (training photos) "
            f"or 1.jpg (test photos) in a folder {folder}, the first is {strange[0][:80]!r}: {_REMEDY}"
        )
    photos = {match[1]: info for match, info in matches if match}
    return Part(
        split=split,
        name=packed.filename,
        archive=archive,
        photos={id: photos[id] for id in natural_order(photos)},
    )


def _mention(ignored: Sequence[str], name: str, reporter: Reporter) -> None:
    if ignored:
        reporter.say(
            f"{name}: ignored {len(ignored):,} members that are no part of the competition, such as {ignored[0]!r}"
        )


def _check_counts(
    parts: Sequence[Part], sample: Sequence[str], competition: Competition, is_real: bool
) -> None:
    train, test = parts
    for name in competition.classes:
        if not any(id.startswith(f"{name}.") for id in train.photos):
            raise ArchiveError(
                f"{train.name} has no photo of a {name} among {len(train.photos):,}: {_REMEDY}"
            )
    unphotographed, unasked = set(sample) - set(test.photos), set(test.photos) - set(sample)
    if unphotographed or unasked:
        example = natural_order(unphotographed | unasked)[0]
        raise ArchiveError(
            f"{competition.sample} names {len(unphotographed):,} ids without a photo in {test.name} and leaves out {len(unasked):,} "
            f"with one, the first is {example}: {_REMEDY}"
        )
    n_here, n_wanted = (
        (len(train.photos), len(test.photos)),
        (competition.n_train, competition.n_test),
    )
    if is_real and n_here != n_wanted:
        here, wanted = (
            f"{n_train:,} training and {n_test:,} test photos"
            for n_train, n_test in (n_here, n_wanted)
        )
        raise ArchiveError(f"the archive has {here}, not {wanted}: {_REMEDY}")


def unpack(parts: Sequence[Part], origin: str, folder: Path, reporter: Reporter) -> None:
    """Leaves `folder/train` and `folder/test`, each of which takes its name when its last photo is there with the right CRC.

    A folder that has its photos from the same `origin` already is left alone; another one of that name goes when its successor is whole.
    """
    for left in folder.glob(".*.part"):  # of a killed run
        shutil.rmtree(left)
    parts = [part for part in parts if not is_unpacked(folder / part.split, origin)]
    if not parts:
        return
    need, free = (
        sum(info.file_size for part in parts for info in part.photos.values()),
        shutil.disk_usage(folder).free,
    )
    if need > free:
        raise DataError(
            f"the photos take {need / 1e9:.2f} GB and {free / 1e9:.2f} GB are free under {folder}: make room"
        )
    with reporter.track("unpacking", sum(len(part.photos) for part in parts), "photos") as advance:
        for part in parts:
            _unpack_part(part, origin, folder, advance)


def is_unpacked(folder: Path, origin: str) -> bool:
    return (folder / RECEIPT).exists() and bool(read_json(folder / RECEIPT)["archive"] == origin)


def _unpack_part(part: Part, origin: str, folder: Path, advance: Advance) -> None:
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=f".{part.split}.", suffix=".part"))
    scratch.chmod(0o755)
    try:
        for id, info in part.photos.items():
            # `id` is nothing but a class and digits, and the folder is new: there is nowhere else to write to.
            with (scratch / f"{id}.jpg").open("xb") as file:
                file.writelines(pieces(part.archive, info, part.name))
            advance()
        write_json(scratch / RECEIPT, {"archive": origin, "n_photos": len(part.photos)})
        os.sync()  # once for all photos: a power cut must not leave empty files under the folder's name
        old = scratch.with_name(f"{scratch.name}.old.part")
        if (folder / part.split).exists():
            (folder / part.split).rename(old)
        scratch.rename(folder / part.split)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
