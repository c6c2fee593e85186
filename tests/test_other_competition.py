"""All four stages of an invented competition, by another `Competition` object alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from odd_photos import encoded, zipped
from PIL import Image, ImageDraw
from twin.server import Twin

from comp.competition import Competition
from comp.data.manifest import read_manifest
from comp.data.stage import prepare
from comp.errors import ArchiveError
from comp.kaggle import Kaggle
from comp.network.preprocessing import geometry_of
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipes import named
from comp.store import Workspace
from comp.submit.ledger import read_ledger
from comp.submit.stage import submit
from comp.train.stage import train

N_TRAIN, N_TEST = 80, 20
HEAD = override(named("lite0_head"), ["pixels.size_px=128", "folds.n=3"])
COMPETITION = Competition(
    slug="happy-or-sad",
    title="Happy or Sad",
    classes=("sad", "happy"),
    archives=("faces.zip", "unknown.zip"),
    train_photo=r"faces/(?P<class>happy|sad)/(?P<id>img_[0-9]{4})\.jpg",
    test_photo=r"unknown/(?P<id>img_[0-9]{4})\.jpg",
    sample="example.csv",
    columns=("image", "happy"),
    numeric_ids=False,
    n_train=24,
    n_test=4,
    archive_bytes=10**6,
    max_member_bytes=10**6,
    noise_rate=0.0,
    noise_spread=0.0,
    archived_board=None,
    suspects=None,
)


def face(index: int, *, is_happy: bool) -> bytes:
    """A round face on blotches, whose mouth bends up or down."""
    rng = np.random.default_rng(index)
    blotches = rng.integers(0, 256, (5, 5, 3), np.uint8)
    image = Image.fromarray(blotches).resize((96, 96), Image.Resampling.BICUBIC)
    draw, (x, y) = ImageDraw.Draw(image), rng.integers(0, 40, 2).tolist()
    draw.ellipse((x, y, x + 56, y + 56), fill=(240, 220, 90))
    top, angles = (12, (20, 160)) if is_happy else (28, (200, 340))
    draw.arc((x + 14, y + top, x + 42, y + top + 28), *angles, fill=(120, 0, 0), width=6)
    return encoded(image)


def test_the_four_stages_run_and_score_by_another_competition_object_alone(tmp_path: Path) -> None:
    happy = {f"img_{index:04}": index % 2 == 0 for index in range(N_TRAIN + N_TEST)}
    photos = {id: face(index, is_happy=happy[id]) for index, id in enumerate(happy)}
    train_ids, test_ids = list(happy)[:N_TRAIN], list(happy)[N_TRAIN:][::-1]
    labelled = {f"faces/{'happy' if happy[id] else 'sad'}/{id}.jpg": photos[id] for id in train_ids}
    inner = {
        "faces.zip": zipped(labelled),
        "unknown.zip": zipped({f"unknown/{id}.jpg": photos[id] for id in test_ids}),
        "example.csv": ("image,happy\n" + "".join(f"{id},0.5\n" for id in test_ids)).encode(),
    }
    archive, solution = tmp_path / "happy-or-sad.zip", tmp_path / "solution.csv"
    workspace, reporter = Workspace(tmp_path / "w"), Reporter()
    for name, reason in (
        (
            f"faces/{'sad' if happy[train_ids[0]] else 'happy'}/{train_ids[0]}.jpg",
            "1 repeated photo id",
        ),
        ("faces/cross/img_0099.jpg", "1 file whose name does not match faces/"),
    ):
        odd = zipped(labelled | {name: photos[test_ids[0]]})
        archive.write_bytes(zipped(inner | {"faces.zip": odd}))
        with pytest.raises(ArchiveError, match=reason):
            prepare(workspace, COMPETITION, archive, False, None, reporter)
    archive.write_bytes(zipped(inner))
    truth = "".join(f"{id},{int(happy[id])}\n" for id in test_ids)
    solution.write_text("id,label\n" + truth)
    with Twin(archive, solution, competition=COMPETITION) as server:
        kaggle = Kaggle(COMPETITION, reporter, env=server.environment(tmp_path / "home"))

        def download() -> Path:
            return kaggle.download(workspace.raw)

        prepare(workspace, COMPETITION, download, False, geometry_of(HEAD), reporter)
        train(workspace, HEAD, "cpu", reporter)
        run = predict(workspace, COMPETITION, HEAD, "cpu", reporter)
        row = submit(workspace, COMPETITION, kaggle, run.folder, reporter)
    found = read_manifest(workspace.manifest("train"))
    labels = dict(zip(found["id"], found["label"] == 1, strict=True))
    assert labels == {id: happy[id] for id in train_ids}
    csv = pd.read_csv(workspace.submissions / f"{run.name}.csv")
    assert list(csv.columns) == ["image", "happy"]
    assert list(csv["image"]) == test_ids
    assert row.public_score is not None
    assert row.public_score < 0.65  # a constant .5 scores .693
    assert read_ledger(workspace.ledger) == [row]
