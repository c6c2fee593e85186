"""How fast photos can be decoded and resized on this machine, at best and as tutorials do it."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from comp.bench.rows import Clock, Done, Setup, Work
from comp.bench.tutorial import centred, loader_of
from comp.data.photos import n_cores


def fastest(setup: Setup) -> Work:
    """Every photo by torchvision's decoder and its antialiased uint8 resize, the shorter side to the input's; a thread a core."""
    paths = sorted((setup.root / "photos").rglob("*.jpg"))

    def one(path: Path) -> None:
        planes = decode_jpeg(
            torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), ImageReadMode.RGB
        )
        v2.resize(planes, [setup.size_px], InterpolationMode.BICUBIC, antialias=True)

    def work(clock: Clock) -> Done:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        with clock, ThreadPoolExecutor(n_cores()) as pool, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torchvision says at each call that TorchCodec will take its decoder's place one day
            list(pool.map(one, paths))
        torch.set_num_threads(before)
        return Done(n_photos=len(paths))

    work(Clock())  # which also brings the files into memory
    return work


def as_tutorials(setup: Setup) -> Work:
    """Photos by Pillow, Resize, CenterCrop, ToTensor and Normalize, in a DataLoader with a worker a core."""

    def work(clock: Clock) -> Done:
        with clock:
            n_photos = sum(
                len(images)
                for images, _ in loader_of(
                    setup, "train", centred(setup), 2 * setup.peer_photos, n_cores()
                )
            )
        return Done(n_photos=n_photos)

    return work
