"""The named runs. Each docstring is its measured claim; blank means not measured.

GUIDE is an old rule of thumb (Stanford's CS231n, "Transfer learning"): few photos, a few thousand,
have little to teach a network beyond a new head, and many, such as the competition's 25,000, can
move every layer; the less they are like ImageNet's, the less the last layers fit.
"""

import runpy
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from textwrap import wrap
from types import FunctionType

from comp import tutorials
from comp.errors import RecipeError
from comp.options import override
from comp.recipe import FineTune, Head, Model, Pixels, Prediction, Recipe

DEFAULT = "convnext_tiny"
ON_CPU = "lite0_head"  # what a machine without a GPU should run
# the rule of thumb above: (photos, to ImageNet) -> recipes, the one for a CPU first
GUIDE = {
    ("few", "like"): ("lite0_head", "dinov2_small"),
    ("many", "like"): ("lite0_finetune", "convnext_tiny"),
    ("few", "unlike"): ("vgg19_block4_svm",),
    ("many", "unlike"): ("vgg16_finetune",),
}
ENSEMBLES = {  # names that stand for several recipes, whose runs are blended
    "ensemble": ("lite0_head", "lite1_head", "lite2_views")
}
# A solved head is calibrated: a temperature costs .0006 to .0025 of log loss (LOG.md, 2026-11-22).
SOLVED = Prediction(calibration="none")


def lite0_head() -> Recipe:
    """EfficientNet-Lite0, frozen, at 224 px, solved logistic head: out of fold .0296 (.0187-.0430).

    Measured, as below, on 1,602 real photos in 5 folds; 31 s from the archive to the score on two
    cores. Keeping their shape is within noise the best of four ways to crop (LOG.md, 2026-11-21).
    """
    return Recipe(
        name="lite0_head",
        model=Model(backbone="tf_efficientnet_lite0"),
        pixels=Pixels(fit="shorter", canvas=1.0),
        training=Head(),
        prediction=SOLVED,
    )


def lite1_head() -> Recipe:
    """EfficientNet-Lite1, frozen, at 240 px: out of fold .0247 (.0132-.0389)."""
    return lite0_head().replace(name="lite1_head", model=Model(backbone="tf_efficientnet_lite1"))


def lite2_head() -> Recipe:
    """EfficientNet-Lite2, frozen, at 260 px: out of fold .0170 (.0070-.0313)."""
    return lite0_head().replace(name="lite2_head", model=Model(backbone="tf_efficientnet_lite2"))


def lite2_views() -> Recipe:
    """EfficientNet-Lite2, frozen, in two crops: out of fold .0120 (.0048-.0217).

    .0039 (.0008-.0078) better than lite2_head; one of 15 ways tried (LOG.md, 2026-11-22). The
    middle 260 px of a canvas of 297 px, for which the head is solved, and all of it; both mirrored.
    """
    pixels = Pixels(fit="shorter", canvas=1.143)
    prediction = SOLVED.replace(views="multi_scale")
    return lite2_head().replace(name="lite2_views", pixels=pixels, prediction=prediction)


def lite0_finetune() -> Recipe:
    """EfficientNet-Lite0, all layers: out of fold .0308 (.0188-.0450), no better than its head.

    On so few photos. All numbers are ours: one epoch, because a CPU is slow; convnext_tiny's rate;
    layer decay .8, with which ConvNeXt's authors tune. Batch norms are fused, for speed. Weights
    move a quarter of the way (WiSE-FT): all the way, without fusing, the log loss was .0348.
    """
    training = FineTune(
        fuse_batch_norm=True, epochs=1, batch_size=32, peak_lr=1e-4, layer_decay=0.8, wise_ft=0.25
    )
    return Recipe(name="lite0_finetune", model=lite0_head().model, training=training)


def lite0_tail() -> Recipe:
    """EfficientNet-Lite0, its last stage on cached activations: out of fold .0302 (.0181-.0463).

    From the solved head, each photo augmented four times. Weights move a quarter of the way: with
    0, 1/8, 1/4, 1/2, 3/4 and all of it the out-of-fold log loss was .0302, .0296, .0297, .0315,
    .0351 and .0401, and the best temperature rose from .9 to 1.9.
    """
    return Recipe(
        name="lite0_tail",
        model=Model(backbone="tf_efficientnet_lite0"),
        pixels=Pixels(fit="shorter", canvas=1.143),
        training=FineTune(
            trainable="from:blocks.6",
            cached_views=4,
            fuse_batch_norm=True,
            epochs=4,
            batch_size=32,
            layer_decay=0.8,
            wise_ft=0.25,
        ),
    )


def dinov2_small() -> Recipe:
    """DINOv2's ViT-S/14, frozen, at 224 px, under a solved logistic head.

    Its authors advise against tuning it; logistic regression on the class token is a use that their
    model card names, with 224 px, 16 x 16 patches, as its example. timm's weights are of 518 px and
    their positions are interpolated. Squashing photos, so that no head is cut off, is ours.
    """
    model = Model(backbone="vit_small_patch14_dinov2.lvd142m")
    pixels = Pixels(fit="squash", size_px=224, canvas=1.0)
    return lite0_head().replace(name="dinov2_small", model=model, pixels=pixels)


def convnext_tiny() -> Recipe:
    """ConvNeXt-Tiny (in12k, fine-tuned on in1k), all layers, at 224 px.

    Its authors trained this size with stochastic depth .1 (their TRAINING.md); weight decay .05 is
    their default, layer decay .75 the middle of what they tune with (.7 from in1k, .8 from in22k).
    1e-4 at batch 64 and three epochs are ours, untuned: `make lr` tests the rate. Predicted at two
    scales, because timm evaluates these weights with a canvas 1 / .95 of the input.
    """
    return Recipe(
        name="convnext_tiny",
        model=Model(backbone="convnext_tiny.in12k_ft_in1k", drop_path=0.1),
        training=FineTune(epochs=3, batch_size=64, peak_lr=1e-4, layer_decay=0.75),
        prediction=Prediction(views="multi_scale"),
    )


def convnext_base() -> Recipe:
    """ConvNeXt-Base (in22k, fine-tuned on in1k), all layers, at 224 px.

    5e-5, layer decay .8, stochastic depth .2 and next to no weight decay are its authors' own for
    these weights at this size (TRAINING.md, "Fine-tune from ImageNet-22K"), over 30 epochs in
    batches of 512 without warm-up. Three epochs in batches of 64 are ours, untuned.
    """
    training = FineTune(epochs=3, batch_size=64, peak_lr=5e-5, layer_decay=0.8, weight_decay=1e-8)
    model = Model(backbone="convnext_base.fb_in22k_ft_in1k", drop_path=0.2)
    return convnext_tiny().replace(name="convnext_base", model=model, training=training)


def vit_base() -> Recipe:
    """ViT-B/16 (AugReg, in21k, fine-tuned on in1k), all layers, at 224 px.

    Layer decay .65, weight decay .05 and stochastic depth .1 are what MAE tunes a ViT-B with
    (FINETUNE.md). Its rate would be 1.25e-4 here; ours is 5e-5, as these weights have been tuned to
    in1k already. Three epochs in batches of 64 are ours too, untuned.
    """
    return Recipe(
        name="vit_base",
        model=Model(backbone="vit_base_patch16_224.augreg2_in21k_ft_in1k", drop_path=0.1),
        training=FineTune(epochs=3, batch_size=64, peak_lr=5e-5, layer_decay=0.65),
        prediction=Prediction(views="multi_scale"),
    )


def eva02_base() -> Recipe:
    """EVA-02-B/14 (in22k, fine-tuned on in22k and in1k), all layers, at 448 px; one large GPU.

    5e-5, layer decay .8, weight decay .05 and stochastic depth .15 are its authors' own for these
    weights at this size (EVA-02/asuka's README), over 15 epochs in batches of 512; two epochs in
    batches of 32 are ours, untuned. Their label smoothing of .2 would spoil a log loss. At half the
    side, a fifth of the work: SET="pixels.size_px=224".
    """
    return Recipe(
        name="eva02_base",
        model=Model(backbone="eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", drop_path=0.15),
        training=FineTune(epochs=2, batch_size=32, peak_lr=5e-5, layer_decay=0.8),
    )


_GROUPS: dict[str, tuple[Callable[[], Recipe], ...]] = {
    "For one GPU": (convnext_tiny, convnext_base, vit_base, eva02_base, dinov2_small),
    "For a CPU": (lite0_head, lite1_head, lite2_head, lite2_views, lite0_tail, lite0_finetune),
    "As in four tutorials": tutorials.ALL,
}
RECIPES: dict[str, Callable[[], Recipe]] = {
    make.__name__: make for group in _GROUPS.values() for make in group
}


def add_recipes(path: Path) -> None:
    """Know the recipes in the Python file `path` too: its functions that return a Recipe.

    Each is named by its function, whatever it was made from. RecipeError if there are none, if a
    name is taken, or if `path` cannot be read.
    """
    try:
        found = runpy.run_path(str(path))
    except (OSError, SyntaxError) as error:
        raise RecipeError(f"{path} cannot be read as Python: {error}") from error
    made = [each for each in found.values() if isinstance(each, FunctionType)]
    own = [each for each in made if each.__module__ == "<run_path>" and each.__name__[0] != "_"]
    own = [each for each in own if each.__annotations__.get("return") in (Recipe, "Recipe")]
    if not own:
        raise RecipeError(f"{path} has no recipe: write a function `def mine() -> Recipe:`")
    for make in own:
        if make.__name__ in (*RECIPES, *ENSEMBLES):
            raise RecipeError(f"{path}: the name {make.__name__} is taken; choose another one")
        RECIPES[make.__name__] = _renamed(make)
    _GROUPS[f"In {path.name}"] = tuple(RECIPES[make.__name__] for make in own)


def _renamed(make: Callable[[], Recipe]) -> Callable[[], Recipe]:
    return wraps(make)(lambda: make().replace(name=make.__name__))


def named(name: str) -> Recipe:
    """The recipe called `name`; RecipeError says which name is near."""
    if name in ENSEMBLES:
        parts = ", ".join(ENSEMBLES[name])
        raise RecipeError(f"{name} is several recipes, but one is needed here: {parts}")
    if name not in RECIPES:
        near = get_close_matches(name, [*RECIPES, *ENSEMBLES], n=1)
        hint = f"did you mean {near[0]}?" if near else "`make recipes` lists them"
        raise RecipeError(f"no recipe {name!r}; {hint}")
    return RECIPES[name]()


def chosen(name: str, settings: Iterable[str], n_seeds: int = 1) -> list[Recipe]:
    """The recipe called `name` under `settings`, once for each of `n_seeds`, or an ensemble's."""
    settings = list(settings)
    if n_seeds == 1:
        return [override(named(member), settings) for member in members([name])]
    if n_seeds < 1:
        raise RecipeError(f"SEEDS must be 1 or more, got {n_seeds}")
    recipe = override(named(name), settings)
    return [_repeated(recipe, number) for number in range(n_seeds)]


def _repeated(recipe: Recipe, number: int) -> Recipe:
    """`recipe` with other seeds, and in other folds where all photos are held out; 0: itself."""
    folds = recipe.folds
    if folds.fit is None and folds.split is None:
        folds = folds.replace(seed=folds.seed + number)
    return recipe.replace(seed=recipe.seed + number, folds=folds)


def members(runs: Iterable[str]) -> list[str]:
    """`runs` with each ensemble's name replaced by its recipes'."""
    return [member for run in runs for member in ENSEMBLES.get(run, (run,))]


def listed() -> list[str]:
    """Lines for a terminal: recipes by group with the first line of their claims, and the guide."""
    groups = {
        title: [(make.__name__, (make.__doc__ or "").partition("\n")[0]) for make in group]
        for title, group in _GROUPS.items()
    }
    groups["Several recipes, blended"] = [(name, ", ".join(x)) for name, x in ENSEMBLES.items()]
    groups["Which to take for how many photos"] = [
        (f"{photos}, {like} ImageNet's", " or ".join(names))
        for (photos, like), names in GUIDE.items()
    ]
    lines = []
    for title, rows in groups.items():
        lines += ["", title]
        for name, claim in rows:
            lines += wrap(f"  {name:24}{claim}", 80, subsequent_indent=" " * 26)
    return lines[1:]
