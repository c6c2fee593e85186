"""The named runs. Each docstring is its measured claim; blank means not measured."""

from collections.abc import Callable
from dataclasses import replace

from comp.errors import RecipeError
from comp.recipe import FineTune, Head, Model, Pixels, Prediction, Recipe

DEFAULT = "convnext_tiny"
ON_CPU = "lite0_head"  # what a machine without a GPU should run


def lite0_head() -> Recipe:
    """EfficientNet-Lite0, frozen, at 224 px; a solved logistic head a fold."""
    return Recipe(
        name="lite0_head",
        model=Model(backbone="tf_efficientnet_lite0"),
        pixels=Pixels(fit="shorter", canvas=1.0),
        training=Head(),
    )


def lite1_head() -> Recipe:
    """EfficientNet-Lite1, frozen, at 240 px."""
    return replace(lite0_head(), name="lite1_head", model=Model(backbone="tf_efficientnet_lite1"))


def lite2_head() -> Recipe:
    """EfficientNet-Lite2, frozen, at 260 px."""
    return replace(lite0_head(), name="lite2_head", model=Model(backbone="tf_efficientnet_lite2"))


def lite0_finetune() -> Recipe:
    """EfficientNet-Lite0, all layers, from the solved head; made for CPUs."""
    return Recipe(
        name="lite0_finetune",
        model=Model(backbone="tf_efficientnet_lite0"),
        training=FineTune(epochs=1, batch_size=32, peak_lr=1e-4, layer_decay=0.8),
    )


def convnext_tiny() -> Recipe:
    """ConvNeXt-Tiny (in12k, fine-tuned on in1k), all layers, at 224 px; for one GPU."""
    return Recipe(
        name="convnext_tiny",
        model=Model(backbone="convnext_tiny.in12k_ft_in1k", drop_path=0.1),
        training=FineTune(epochs=3, batch_size=64, peak_lr=1e-4, layer_decay=0.75),
        prediction=Prediction(views="multi_scale"),
    )


_ALL: tuple[Callable[[], Recipe], ...] = (convnext_tiny, lite0_head, lite1_head, lite2_head, lite0_finetune)
RECIPES: dict[str, Callable[[], Recipe]] = {make.__name__: make for make in _ALL}


def named(name: str) -> Recipe:
    """The recipe called `name`; RecipeError lists the names there are."""
    if name not in RECIPES:
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
