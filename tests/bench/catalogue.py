"""All rows, by name. A new one is a line here."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import torch

from comp.errors import UserError
from comp.progress import Reporter
from comp.recipe import Model
from tests.bench import fastai_learner, floors, ours, peers
from tests.bench.floors import forward, step
from tests.bench.rows import AS_IS, OURS, Row

BF16 = torch.bfloat16
TUTORIAL, TIMM, FASTAI = "tutorial", "timm", "fastai"  # each peer has a process of its own
GPU_BACKBONES = ("convnext_tiny", "vit_small_patch16_224")
MEMORY_PHOTOS = (2_000, 25_000)
ONE_VIEW = ("training.views=none", "prediction.views=none")
COMPILED = ("training.compile=true",)
FROZEN, FUSED = ("training.fuse_batch_norm=false",), ("training.fuse_batch_norm=true",)


def _row(name: str, process: str, make: Any, once: bool = False, **amounts: Any) -> Row:
    return Row(name, process, make, amounts, once)


_EACH_ROUND = (
    # one batch in memory: each row adds one thing to the row before it
    _row("forward-tutorial", AS_IS, forward, n=2, channels_last=False),
    _row("forward-channels-last", AS_IS, forward, n=4),
    _row("forward-allocator", OURS, forward, n=8),
    _row("forward-folded", OURS, forward, n=8, fused=True),
    _row("forward-bf16", OURS, forward, n=8, fused=True, dtype=BF16),
    _row("forward-packed", OURS, forward, n=8, fused=True, dtype=BF16, pack=True),
    _row("step-tutorial", AS_IS, step, n=1, channels_last=False, adamw_fused=False),
    _row("step-channels-last", AS_IS, step, n=1, adamw_fused=False),
    _row("step-allocator", OURS, step, n=3),
    _row("step-frozen", OURS, step, n=3, norms="frozen"),
    _row("step-folded", OURS, step, n=3, norms="fused"),
    _row("step-fused", OURS, step, n=3, norms="fused", acts_fused=True),
    _row("step-half", OURS, step, n=3, norms="fused", acts_fused=True, half=True),
    _row("step-bf16", OURS, step, n=2, norms="fused", dtype=BF16),  # autocast
    _row("decode-tutorial", AS_IS, peers.decode),
    _row("decode-fastest", AS_IS, floors.decode),
    _row("decode-allocator", OURS, floors.decode),
    # our stages
    _row("decode", OURS, ours.decode),
    _row("data", OURS, ours.data),
    _row("features", OURS, ours.features, n=8),
    _row("head", OURS, ours.run),
    _row("head-one-view", OURS, ours.run, settings=ONE_VIEW),
    _row("head-again", OURS, ours.head_again),
    _row("finetune", OURS, ours.finetune, n=3, settings=FROZEN),
    _row("finetune-folded", OURS, ours.finetune, n=3, settings=FUSED),
    _row("finetune-tail", OURS, ours.tail, n=40),
    _row("predict", OURS, ours.prediction, n=8),
    # the peers' training and prediction
    _row("tutorial", TUTORIAL, peers.rate, loop=peers.TutorialLoop),
    _row("timm", TIMM, peers.rate, loop=peers.ScriptLoop),
    _row("fastai", FASTAI, fastai_learner.rate),
    _row("fastai-tta", FASTAI, fastai_learner.tta),
)
_SCORES = (  # the peers on all photos
    _row("score-tutorial", TUTORIAL, peers.score, once=True, loop=peers.TutorialLoop),
    _row("score-timm", TIMM, peers.score, once=True, loop=peers.ScriptLoop),
    _row("score-fastai", FASTAI, fastai_learner.score, once=True),
)
_GPU = tuple(
    _row(f"gpu-{what}-{name}", OURS, make, n=30, **amounts, **on)
    for name in GPU_BACKBONES
    for on in [{"model": Model(backbone=name, weights="random"), "batch": 128, "device": "cuda"}]
    for what, make, amounts in (
        ("step", step, {"norms": "frozen"}),
        ("finetune", ours.finetune, {"n_before": 10}),
        ("compiled", ours.finetune, {"n_before": 10, "settings": COMPILED}),
        ("loader", ours.finetune, {"n_before": 10, "only_load": True}),
    )
)
_MEMORY = tuple(  # in processes of their own, so that a peak is the row's
    _row(f"memory-{what}-{n}", f"{OURS}, {what} of {n}", make, once=True, n_photos=n)
    for what, make in (("features", ours.memory_of_features), ("finetune", ours.memory_of_finetune))
    for n in MEMORY_PHOTOS
)
_LONG = (
    *_SCORES,
    _row("score-tail", OURS, ours.run, once=True, recipe_name="lite0_tail"),
    *_MEMORY,
)
ROWS = {row.name: row for row in (*_EACH_ROUND, *_LONG, *_GPU)}


def choose(names: Sequence[str] | None, full: bool, reporter: Reporter) -> list[Row]:
    """The rows called `names`, `memory` for all of that; None: what runs here, long ones if `full`.

    UserError names an unknown row and those near it. Says so where fastai's rows are left out.
    """
    if names is None:
        gpu, long = (_GPU if torch.cuda.is_available() else ()), (_LONG if full else ())
        rows = [*_EACH_ROUND, *long, *gpu]
    else:
        names = [*names, *(row.name for row in _MEMORY if "memory" in names)]
        for name in set(names) - ROWS.keys() - {"memory"}:
            near = get_close_matches(name, ROWS, n=5, cutoff=0.3) or ROWS
            raise UserError(f"no row {name!r}; near it are {', '.join(near)}")
        rows = [row for name, row in ROWS.items() if name in names]
    missing = [row.name for row in rows if row.process == FASTAI and find_spec(FASTAI) is None]
    if missing:
        reporter.say(f"left out {', '.join(missing)}: `make bench-peers` installs fastai")
    return [row for row in rows if row.name not in missing]
