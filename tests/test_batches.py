"""Batches: each photo once an epoch, augmented by its content and not by its place."""

import numpy as np
import pytest
import torch
from tiny import CPU, Canvases
from torch.utils.data import DataLoader

from comp.errors import TrainingError
from comp.network.views import CENTRE, crop
from comp.recipe import Augmentation, Crop, FineTune
from comp.train.augment import make_augmentation
from comp.train.batches import AugmentedPhotos, Batch, CachedPhotos, Draw, batches_of, plan_workers
from comp.train.features import in_memory

PLAIN = Augmentation(flip=False, colour=0.0)
FIXED = PLAIN.replace(crop="center-crop")
TRAINING = FineTune(epochs=2, batch_size=4)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)


def batches(augmentation: Augmentation, seed: int = 0) -> DataLoader[Batch]:
    """Eight batches: two epochs of 16 photos."""
    photos = Canvases(16)
    augmented = AugmentedPhotos(photos, range(16), photos.labels, augmentation, 32, seed)
    return batches_of(augmented, 16, TRAINING, seed, CPU)


@pytest.mark.parametrize("shape", [(32, 32), (40, 40), (33, 77), (90, 32)])
def test_a_centre_crop_is_what_prediction_sees_whatever_the_seed(shape: tuple[int, int]) -> None:
    canvas, augment = noise(*shape), make_augmentation(FIXED, 32)
    for seed in (7, 8):
        assert np.array_equal(augment(canvas, seed), crop(canvas, CENTRE, 32))


def test_pad_and_crop_shifts_the_photo_by_up_to_the_padding_and_fills_with_black() -> None:
    canvas = noise(32, 32)
    augment = make_augmentation(PLAIN.replace(crop="pad-and-crop", pad_px=4), 32)
    padded = np.pad(canvas, ((4, 4), (4, 4), (0, 0)))
    crops = {(y, x): padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    found = set()
    for seed in range(200):
        made = augment(canvas, seed)
        (place,) = (place for place, each in crops.items() if np.array_equal(made, each))
        found.add(place)
    assert {y for y, _ in found} == {x for _, x in found} == set(range(9))


@pytest.mark.parametrize("kind", ["random-resized-crop", "pad-and-crop", "center-crop"])
@pytest.mark.parametrize("shape", [(32, 32), (40, 61)])
def test_every_crop_has_the_inputs_size_and_depends_on_the_seed_alone(
    kind: Crop, shape: tuple[int, int]
) -> None:
    canvas, augment = noise(*shape), make_augmentation(Augmentation(crop=kind), 32)
    first, again, *others = (augment(canvas, seed) for seed in (3, 3, *range(4, 10)))
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert any(not np.array_equal(first, other) for other in others)


def test_augmentation_depends_on_a_photos_content_and_not_on_its_place() -> None:
    photos, moved = Canvases(6), Canvases(6)
    order = [3, 0, 5, 1, 4, 2]
    moved.canvases = [photos.canvases[row] for row in order]
    moved.sha256s = tuple(photos.sha256s[row] for row in order)
    rows = [order.index(row) for row in range(6)]
    for epoch in (0, 1):
        places = [(epoch, index) for index in range(6)]
        first, _ = AugmentedPhotos(
            photos, range(6), photos.labels, Augmentation(), 32, 0
        ).__getitems__(places)
        again, _ = AugmentedPhotos(moved, rows, photos.labels, Augmentation(), 32, 0).__getitems__(
            places
        )
        assert torch.equal(first, again)
    draw = Draw(Augmentation(), 7, 0)
    assert np.array_equal(draw.crops(photos, range(6), 32), draw.crops(moved, rows, 32))


def test_an_epoch_has_every_photo_once_in_an_order_set_by_the_seed() -> None:
    first, again, other = ([crops for crops, _ in batches(FIXED, seed)] for seed in (0, 0, 1))
    assert len(first) == 8
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    for epoch in (first[:4], first[4:]):
        assert len({int(each.long().sum()) for each in torch.cat(epoch)}) == 16


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_photo_looks_different_in_every_epoch_but_the_same_to_every_worker(start: str) -> None:
    loader = batches(Augmentation(colour=1.0))
    inline = list(loader)
    workers = DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=2,
        multiprocessing_context=start,
    )
    for (crops, labels), (same_crops, same_labels) in zip(inline, workers, strict=True):
        assert crops.shape == (4, 32, 32, 3)
        assert crops.dtype == torch.uint8
        assert set(labels.tolist()) <= {0.0, 1.0}
        assert torch.equal(crops, same_crops)
        assert torch.equal(labels, same_labels)
    epochs = [torch.cat([crops for crops, _ in inline[at : at + 4]]) for at in (0, 4)]
    assert epochs[0].float().mean() != epochs[1].float().mean()


GB = 10**9


@pytest.mark.parametrize(
    ("n_cores", "batch_bytes", "shared_bytes", "plan"),
    [
        (15, 10_000_000, None, (12, 4)),
        (15, 10_000_000, 24 * GB, (12, 4)),
        (15, 10_000_000, 300_000_000, (12, 2)),
        (15, 10_000_000, 64_000_000, (4, 1)),
        (3, 10_000_000, 64_000_000, (3, 1)),
        (15, 10_000_000, 30_000_000, (1, 1)),
        (0, 10_000_000, 64_000_000, (0, 0)),
        (0, 10_000_000, None, (0, 0)),
    ],
)
def test_the_batches_of_all_workers_fit_into_shared_memory(
    n_cores: int, batch_bytes: int, shared_bytes: int | None, plan: tuple[int, int]
) -> None:
    assert plan_workers(n_cores, batch_bytes, shared_bytes) == plan
    if shared_bytes is not None and plan[0]:
        assert (plan[0] * plan[1] + 2) * batch_bytes <= shared_bytes


def test_shared_memory_for_no_worker_is_one_line_with_the_option_of_docker() -> None:
    with pytest.raises(TrainingError, match=r"has 29 MB free, .* take 30: .*--shm-size=2g"):
        plan_workers(15, 10_000_000, 29_000_000)


def test_a_draw_depends_on_the_photo_and_its_number_and_not_on_the_batch() -> None:
    photos = Canvases(3)
    photos.canvases[2] = photos.canvases[0]
    first, second = (Draw(Augmentation(), 7, number) for number in range(2))
    both = first.crops(photos, [0, 1], 32)
    assert np.array_equal(both[1], first.crops(photos, [1], 32)[0])
    assert not np.array_equal(both[0], second.crops(photos, [0], 32)[0])
    assert not np.array_equal(both[0], first.crops(photos, [2], 32)[0])


def test_every_option_of_the_augmentation_gives_a_draw_another_key() -> None:
    other = {"crop": "pad-and-crop", "area": 0.5, "aspect": 1.5, "pad_px": 9}
    other |= {"flip": False, "colour": 0.9}
    assert set(other) == set(Augmentation.model_fields)
    changed = [Augmentation(**{name: value}) for name, value in other.items()]
    keys = {Draw(options, 7, 0).key for options in [Augmentation(), *changed]}
    keys |= {Draw(Augmentation(), 8, 0).key, Draw(Augmentation(), 7, 1).key}
    assert len(keys) == len(other) + 3


def test_epochs_use_the_cached_draws_in_turn() -> None:
    draws = [in_memory(np.full((4, 1), draw, np.float32)) for draw in range(3)]
    training = TRAINING.replace(epochs=3)
    loader = batches_of(CachedPhotos(draws, range(4), [0.0] * 4), 4, training, seed=0)
    values = torch.cat([values for values, _ in loader]).flatten().long()
    assert values.bincount().tolist() == [4, 4, 4]
