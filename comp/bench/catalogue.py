"""The rows there are, by name. A new one is a line here."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch

from comp.bench import decoding, fastai_learner, memory, ours, peers
from comp.bench.floors import forward, step
from comp.bench.rows import AS_IS, OURS, Row
from comp.bench.timm_script import ScriptLoop
from comp.bench.tutorial import TutorialLoop
from comp.errors import UserError
from comp.recipe import Model

BF16 = torch.bfloat16
PEERS = ("tutorial", "timm", "fastai")
GPU_BACKBONES = ("convnext_tiny", "vit_small_patch16_224")
STORES = (2_000, 25_000)  # photos
FROZEN, FOLDED = ("training.fuse_batch_norm=false",), ("training.fuse_batch_norm=true",)
ONE_VIEW = ("training.views=none", "prediction.views=none")

_FLOORS = (
    Row(
        "forward-tutorial",
        AS_IS,
        "forward, as tutorials write it",
        partial(forward, n_passes=2, channels_last=False),
    ),
    Row("forward-channels-last", AS_IS, "forward, channels-last", partial(forward, n_passes=4)),
    Row("forward-allocator", OURS, "and our allocator settings", partial(forward, n_passes=8)),
    Row("forward-folded", OURS, "and batch norm folded", partial(forward, n_passes=8, folded=True)),
    Row(
        "forward-bf16",
        OURS,
        "and in bfloat16",
        partial(forward, n_passes=8, folded=True, dtype=BF16),
    ),
    Row(
        "forward-packed",
        OURS,
        "and activations in their convolutions",
        partial(forward, n_passes=8, folded=True, fused=True, dtype=BF16),
    ),
    Row(
        "step-tutorial",
        AS_IS,
        "training step, as tutorials write it",
        partial(step, n_steps=1, channels_last=False, fused=False),
    ),
    Row(
        "step-channels-last",
        AS_IS,
        "training step, channels-last",
        partial(step, n_steps=1, fused=False),
    ),
    Row(
        "step-allocator", OURS, "and our allocator settings, AdamW fused", partial(step, n_steps=3)
    ),
    Row("step-frozen", OURS, "and batch norm frozen", partial(step, n_steps=3, norms="frozen")),
    Row("step-folded", OURS, "and batch norm folded", partial(step, n_steps=3, norms="folded")),
    Row(
        "step-fused",
        OURS,
        "and activations in their convolutions",
        partial(step, n_steps=3, norms="folded", fused_acts=True),
    ),
    Row(
        "step-half",
        OURS,
        "and convolutions in bfloat16",
        partial(step, n_steps=3, norms="folded", fused_acts=True, half=True),
    ),
    Row(
        "step-bf16",
        OURS,
        "and in bfloat16 autocast",
        partial(step, n_steps=2, norms="folded", dtype=BF16),
    ),
    Row(
        "decode-tutorial",
        AS_IS,
        "decode, resize, normalise, as tutorials do",
        decoding.as_tutorials,
    ),
    Row("decode-fastest", AS_IS, "decode and resize, fastest known", decoding.fastest),
    Row("decode-allocator", OURS, "and our allocator settings", decoding.fastest),
)
_OURS = (
    Row("decode", OURS, "photos of a manifest into the store of pixels", ours.decode),
    Row("data", OURS, "photos to manifest, folds and pixels", ours.data),
    Row("features", OURS, "features of one view from pixels", partial(ours.features, n_batches=8)),
    Row("head", OURS, "head recipe, photos to out-of-fold logits", ours.run),
    Row("head-one-view", OURS, "the same with one view", partial(ours.run, settings=ONE_VIEW)),
    Row("head-again", OURS, "head recipe again, features cached", ours.head_again),
    Row(
        "finetune",
        OURS,
        "fine-tuning, all layers, real loader",
        partial(ours.finetune, n_steps=3, settings=FROZEN),
    ),
    Row(
        "finetune-folded",
        OURS,
        "and batch norm folded",
        partial(ours.finetune, n_steps=3, settings=FOLDED),
    ),
    Row("finetune-tail", OURS, "last stage, on cached activations", partial(ours.tail, n_steps=40)),
    Row(
        "predict",
        OURS,
        "prediction, four views, real loader",
        partial(ours.prediction, n_batches=2),
    ),
)
_PEERS = (
    Row(
        "tutorial",
        "tutorial",
        "tutorial's loop, frozen backbone",
        partial(peers.rate, make=TutorialLoop),
    ),
    Row(
        "timm",
        "timm",
        "timm's script, all layers, channels-last",
        partial(peers.rate, make=ScriptLoop),
    ),
    Row("fastai", "fastai", "fastai, all layers", fastai_learner.rate, needs="fastai"),
    Row("fastai-tta", "fastai", "fastai's tta", fastai_learner.tta, needs="fastai"),
    Row(
        "score-tutorial",
        "tutorial",
        "tutorial's loop, to its score",
        partial(peers.score, make=TutorialLoop),
        once=True,
    ),
    Row(
        "score-timm",
        "timm",
        "timm's script, to its score",
        partial(peers.score, make=ScriptLoop),
        once=True,
    ),
    Row(
        "score-fastai",
        "fastai",
        "fastai's fine_tune, to its score",
        fastai_learner.score,
        once=True,
        needs="fastai",
    ),
)
_LONG = (
    Row(
        "score-tail",
        OURS,
        "our tail, to its score",
        partial(ours.run, name="lite0_tail"),
        once=True,
    ),
)


def _on_gpu(name: str) -> tuple[Row, ...]:
    on: Any = {"model": Model(backbone=name, weights="random"), "batch": 256, "device": "cuda"}
    return (
        Row(
            f"gpu-step-{name}",
            OURS,
            f"{name}, training step",
            partial(step, n_steps=100, norms="frozen", **on),
        ),
        Row(
            f"gpu-finetune-{name}",
            OURS,
            f"{name}, fine-tuning, real loader",
            partial(ours.finetune, n_steps=100, n_before=50, **on),
        ),
        Row(
            f"gpu-loader-{name}",
            OURS,
            f"{name}, the loader alone",
            partial(ours.loader, n_batches=100, n_before=50, **on),
        ),
    )


_GPU = tuple(row for name in GPU_BACKBONES for row in _on_gpu(name))
_MEMORY = tuple(
    Row(
        f"memory-{what}-{n}",
        f"{OURS}, {what} of {n}",
        f"{what} of {n:,} photos",
        partial(make, n_photos=n),
        once=True,
    )
    for what, make in (("features", memory.features), ("finetune", memory.finetune))
    for n in STORES
)
ROWS = (*_FLOORS, *_OURS, *_PEERS, *_LONG, *_GPU, *_MEMORY)


def chosen(names: Sequence[str] | None, *, full: bool) -> list[Row]:
    """The rows called `names`, in the catalogue's order; `memory` stands for its rows. None: all that run here, but for the long ones.

    `full` adds these.

    UserError names an unknown row and those near it, or a library that a row needs and that is not there.
    """
    if names is None:
        asked = ROWS if torch.cuda.is_available() else tuple(row for row in ROWS if row not in _GPU)
        return [
            row for row in asked if (full or row not in (*_LONG, *_MEMORY)) and row.is_runnable()
        ]
    wanted = [
        name
        for given in names
        for name in ([row.name for row in _MEMORY] if given == "memory" else [given])
    ]
    rows = [row_named(name) for name in wanted]
    absent = [row for row in rows if not row.is_runnable()]
    if absent:
        raise UserError(
            f"row {absent[0].name} needs {absent[0].needs}, which is not installed: run `make bench-peers`"
        )
    return [row for row in ROWS if row in rows]


def left_out() -> list[str]:
    """A line if rows are not there because what they need is not."""
    rows = [row for row in ROWS if not row.is_runnable()]
    needs = " and ".join(sorted({row.needs or "" for row in rows}))
    return (
        [f"left out {', '.join(row.name for row in rows)}: `make bench-peers` installs {needs}"]
        if rows
        else []
    )


def row_named(name: str) -> Row:
    """UserError with near names if there is no such row."""
    names = [row.name for row in ROWS]
    if name not in names:
        raise UserError(
            f"no row {name!r}; near it are {', '.join(get_close_matches(name, names, n=5, cutoff=0.3) or names)}"
        )
    return ROWS[names.index(name)]
