"""How a backbone wants its input, and the canvas that a recipe decodes photos to. No torch."""

from dataclasses import dataclass, replace
from typing import Any

from comp.data.canvas import Geometry
from comp.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What a backbone was trained on, from its own timm config."""

    size_px: int
    crop_pct: float  # side of the centre crop / side of the resized photo
    interpolation: str = "bicubic"  # of the resize: bicubic or bilinear
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of red, green, blue in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_LINEAR = {"interpolation": "bilinear"}
# timm's configs of the backbones that recipes name (a test compares them): side, crop_pct and what
# differs from the defaults above. So `make data` need not load timm, which takes seconds.
_KNOWN: dict[str, tuple[int, float, dict[str, Any]]] = {
    "tf_efficientnet_lite0": (224, 0.875, _HALF),
    "tf_efficientnet_lite1": (240, 0.882, _HALF),
    "tf_efficientnet_lite2": (260, 0.890, _HALF),
    "convnext_tiny.in12k_ft_in1k": (224, 0.95, {}),
    "convnext_base.fb_in22k_ft_in1k": (224, 0.875, {}),
    "vit_small_patch14_dinov2.lvd142m": (518, 1.0, {}),
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": (224, 0.9, _HALF),
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": (448, 1.0, _CLIP),
    "vgg16.tv_in1k": (224, 0.875, _LINEAR),
    "vgg19.tv_in1k": (224, 0.875, _LINEAR),
    "inception_v3.tf_in1k": (299, 0.875, _HALF),
}
KNOWN = {
    name: Preprocessing(size_px=size_px, crop_pct=crop_pct, **rest)
    for name, (size_px, crop_pct, rest) in _KNOWN.items()
}


def preprocessing_of(recipe: Recipe) -> Preprocessing:
    """What the recipe's network is given: its backbone's own, other than options that replace it.

    RecipeError if timm knows no such backbone.
    """
    backbone, pixels = recipe.model.backbone, recipe.pixels
    if backbone in KNOWN:
        own = KNOWN[backbone]
    else:
        from comp.network.backbone import timm_config

        own = Preprocessing(**timm_config(backbone))
    if pixels.normalise == "constants":
        own = replace(own, mean=pixels.mean, std=pixels.std)
    return replace(own, size_px=pixels.size_px or own.size_px)


def canvas_ratio(recipe: Recipe, preprocessing: Preprocessing) -> float:
    """Side of the canvas / side of the network's input."""
    return recipe.pixels.canvas or 1 / preprocessing.crop_pct


def geometry_of(recipe: Recipe) -> Geometry:
    """The canvas that `recipe` decodes each photo to."""
    preprocessing = preprocessing_of(recipe)
    return Geometry(
        fit=recipe.pixels.fit,
        size_px=round(preprocessing.size_px * canvas_ratio(recipe, preprocessing)),
        interpolation="bilinear" if preprocessing.interpolation == "bilinear" else "bicubic",
    )
