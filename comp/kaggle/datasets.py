"""Private datasets of files that kernels need, named by their content: each is uploaded once."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kagglesdk.blobs.types.blob_api_service import ApiBlobType
from kagglesdk.datasets.types.dataset_api_service import ApiDatasetNewFile

from comp.errors import KaggleError, NotFoundError, UnavailableError
from comp.kaggle.client import Kaggle
from comp.store import file_sha256, fingerprint

READY_S = 900.0  # for Kaggle to take in a new dataset: known to take a minute and a half
LICENCE = "other"  # of what is in it: it is private


def dataset_of(kaggle: Kaggle, files: Sequence[Path]) -> str:
    """The name, OWNER/SLUG, of the private dataset of `files`, which is there and can be attached.

    It is uploaded unless the same files were before.
    """
    slug = f"comp-{fingerprint(sorted((path.name, file_sha256(path)) for path in files))}"
    ref = f"{kaggle.owner}/{slug}"
    if _status(kaggle, slug) is None:
        n_mb = sum(path.stat().st_size for path in files) / 1e6
        kaggle.reporter.say(
            f"uploading {len(files)} files, {n_mb:,.1f} MB, as {ref}, for you alone"
        )
        tokens = [kaggle.retried(lambda path=path: _upload(kaggle, path)) for path in files]  # type: ignore[misc]
        kaggle.retried(lambda: _create(kaggle, slug, tokens))
    end = time.monotonic() + READY_S
    while (status := _status(kaggle, slug)) != "READY":
        if status in ("FAILED", "DELETED") or time.monotonic() > end:
            look = f"delete it at https://www.kaggle.com/datasets/{ref} and run this again"
            raise KaggleError(f"the dataset {ref} does not become ready ({status}): {look}")
        time.sleep(kaggle.patience.poll_s)
    return ref


def _status(kaggle: Kaggle, slug: str) -> str | None:
    """None if there is no such dataset."""
    try:
        fields = {"owner_slug": kaggle.owner, "dataset_slug": slug}
        answer = kaggle.call("GetDatasetStatus", **fields)
    except NotFoundError:
        return None
    return re.sub("[^A-Z]", "", str(answer.get("status") or "").upper())


def _upload(kaggle: Kaggle, path: Path) -> ApiDatasetNewFile:
    """The uploaded file, as a dataset takes it."""
    stat = path.stat()
    link = kaggle.session.call(
        "StartBlobUpload",
        type=ApiBlobType.DATASET,
        name=path.name,
        content_length=stat.st_size,
        last_modified_epoch_seconds=int(stat.st_mtime),
    )
    kaggle.session.put(str(link.get("createUrl")), path)
    file = ApiDatasetNewFile()
    file.token = str(link.get("token") or "")
    return file


def _create(kaggle: Kaggle, slug: str, files: Sequence[ApiDatasetNewFile]) -> dict[str, Any]:
    """Once, even if the answer is lost: there cannot be two of a name."""
    try:
        answer = kaggle.session.call(
            "CreateDataset",
            owner_slug=kaggle.owner,
            slug=slug,
            title=slug,
            license_name=LICENCE,
            is_private=True,
            files=list(files),
        )
    except UnavailableError:
        if _status(kaggle, slug) is None:
            raise
        return {}
    if words := str(answer.get("error") or ""):
        raise KaggleError(f'Kaggle refuses the dataset {slug} ("{words[:200]}"): try again later')
    return answer
