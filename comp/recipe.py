"""What a run is: typed, frozen knobs with units, overridden by name, told apart by fingerprint."""

import ast
import dataclasses
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from comp.errors import RecipeError
from comp.store import fingerprint, plain

Fit = Literal["squash", "shorter", "letterbox", "center-crop"]
Crop = Literal["random-resized-crop", "pad-and-crop", "center-crop"]
ViewsName = Literal["none", "flip", "five_crop", "multi_scale"]
Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
Pool = Literal["mean", "flatten"]
Normalise = Literal["backbone", "constants", "measured"]
Kernel = Literal["linear", "rbf"]
Activation = Literal["relu", "gelu", "silu", "tanh"]
Schedule = Literal["cosine", "one-cycle", "step", "exponential", "constant"]


def _need(holds: bool, knob: str, must: str, value: object) -> None:
    if not holds:
        raise RecipeError(f"{knob} must be {must}, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The network: a timm backbone, and where its weights come from."""

    backbone: str = "convnext_tiny"  # any name that timm.list_models() knows, with or without a tag
    weights: str | None = (
        None  # a .safetensors or .pth file; None: a package that carries them, else timm's hub; "random": none
    )
    layer: str | None = (
        None  # timm's name of the layer under the head, where the backbone then ends; None: all of it, in its own pooling
    )
    pool: Pool = "mean"  # of a layer's output, over places or tokens; flatten: every number of it, for which size_px must stay
    drop_path: float = 0.0  # largest rate of stochastic depth, rising linearly with depth

    def __post_init__(self) -> None:
        _need(
            self.pool == "mean" or self.layer is not None,
            "model.pool",
            "mean where model.layer names no layer",
            self.pool,
        )
        _need(0 <= self.drop_path < 1, "model.drop_path", "in [0, 1)", self.drop_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The canvas that each photo becomes once, and the square of it that the network sees."""

    # squash: the whole photo into a square, whatever its shape; letterbox: the same in its own shape, between bars; shorter: the shorter
    # side to the canvas, the rest kept for crops, of which prediction takes the centre; center-crop: the middle of it, not resized
    fit: Fit = "squash"
    size_px: int | None = None  # side of what the network sees; None: the backbone's own
    canvas: float | None = (
        None  # canvas side / size_px, at least 1; None: 1 / the backbone's own crop_pct
    )
    normalise: Normalise = "backbone"  # by the backbone's own mean and std, by those below, or by those of the fold's own training photos
    mean: tuple[float, ...] = (
        0.5,
        0.5,
        0.5,
    )  # of red, green, blue in [0, 1], where normalise=constants
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        _need(len(self.mean) == 3, "pixels.mean", "three numbers", self.mean)
        _need(
            len(self.std) == 3 and min(self.std) > 0,
            "pixels.std",
            "three positive numbers",
            self.std,
        )
        _need(
            self.size_px is None or 16 <= self.size_px <= 2048,
            "pixels.size_px",
            "in [16, 2048]",
            self.size_px,
        )
        _need(
            self.canvas is None or 1 <= self.canvas <= 2, "pixels.canvas", "in [1, 2]", self.canvas
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Folds:
    """Cross-validation: who is held out when."""

    n: int = 5  # folds
    fit: int | None = (
        None  # how many of them are fitted, from fold 0 on; None: all. Fewer leave photos without an out-of-fold logit
    )
    split: tuple[float, ...] | None = (
        None  # instead of folds: shares for validation and for test, both held out by one fit on the rest
    )
    n_photos: int | None = (
        None  # a stratified subset of whole groups with about this many training photos; None: all
    )
    verdicts: str | None = (
        None  # of data/verdicts.csv, what is applied: all, drop, flip, soft or one photo's id; None: nothing
    )

    def __post_init__(self) -> None:
        _need(2 <= self.n <= 100, "folds.n", "in [2, 100]", self.n)
        _need(
            self.fit is None or 1 <= self.fit <= self.n, "folds.fit", f"in [1, {self.n}]", self.fit
        )
        both = self.split is None or (
            len(self.split) == 2 and min(self.split) > 0 and sum(self.split) < 1
        )
        _need(
            both,
            "folds.split",
            "two positive shares that leave photos to train on, such as [0.1,0.1]",
            self.split,
        )
        _need(
            self.split is None or self.fit is None,
            "folds.fit",
            "none where folds.split holds photos out",
            self.fit,
        )
        _need(
            self.n_photos is None or self.n_photos >= 2 * self.n,
            "folds.n_photos",
            "at least two a fold",
            self.n_photos,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A frozen backbone, its pooled features cached, and a logistic head solved to its optimum in each fold.

    The L2 penalty is chosen in every fold by inner folds of its own training photos.
    """

    penalties: tuple[float, ...] = (
        1e-6,
        3e-6,
        1e-5,
        3e-5,
        1e-4,
        3e-4,
        1e-3,
        1e-2,
    )  # candidate weights of |w|^2 / 2 beside the mean log loss
    n_inner: int = 4  # inner folds that choose among them
    views: ViewsName = "flip"  # whose features are averaged for the fit

    def __post_init__(self) -> None:
        _need(
            len(self.penalties) > 0 and min(self.penalties) > 0,
            "training.penalties",
            "one or more positive numbers",
            self.penalties,
        )
        _need(2 <= self.n_inner <= 20, "training.n_inner", "in [2, 20]", self.n_inner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Svm:
    """A frozen backbone, its features cached, and a support vector machine in each fold whose decisions are calibrated.

    Platt's sigmoid is fitted to its decisions in inner folds of the fold's own training photos, which never split a group.
    """

    kernel: Kernel = "rbf"
    cost: float = 1.0  # C: of a photo on the wrong side of its margin
    n_inner: int = 4  # inner folds
    views: ViewsName = "none"  # whose features are averaged for the fit

    def __post_init__(self) -> None:
        _need(self.cost > 0, "training.cost", "positive", self.cost)
        _need(2 <= self.n_inner <= 20, "training.n_inner", "in [2, 20]", self.n_inner)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The layers of a head that is trained by gradients: hidden ones, if any, and a linear one to the logit."""

    widths: tuple[int, ...] = ()  # of the hidden layers
    activation: Activation = "relu"  # after each of them
    dropout: float = 0.0  # rate, after each of them; where there are none, on the features

    def __post_init__(self) -> None:
        _need(
            all(width >= 1 for width in self.widths),
            "training.head.widths",
            "whole numbers from 1",
            self.widths,
        )
        _need(0 <= self.dropout < 1, "training.head.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """What a fine-tune does before its main part, on a schedule of its own; all that is not named here is the same in both."""

    trains: str = "head"
    epochs: int = 0  # 0: there is no such phase
    peak_lr: float = 1e-3

    def __post_init__(self) -> None:
        _need_policy("training.first.trains", self.trains)
        _need(self.epochs >= 0, "training.first.epochs", "0 or more", self.epochs)
        _need(self.peak_lr > 0, "training.first.peak_lr", "positive", self.peak_lr)


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """The whole network, or its last part, trained by gradients."""

    head: HeadShape = field(default_factory=HeadShape)
    first: Phase = field(default_factory=Phase)
    trains: str = "all"  # all | head | last:N (the last N of timm's blocks) | from:NAME (timm's module and what comes after), with the head
    epochs: int = 3
    batch_size: int = 64  # photos a step, over all micro-batches
    micro_batch: int | None = (
        None  # photos in memory at once; None: the whole batch, or as much of it as fits
    )
    optimiser: str = "adamw"  # sgd | rmsprop | adam | adamw, torch's; or any other that timm.optim.list_optimizers() knows
    momentum: float = 0.9  # of sgd, rmsprop and those of timm's that have one
    nesterov: bool = False  # look ahead by the momentum; sgd's alone
    peak_lr: float = (
        1e-4  # of the head; the block at depth d from the end gets layer_decay ** d of it
    )
    layer_decay: float = 0.75  # learning-rate factor from one block to the one before it
    weight_decay: float = (
        0.05  # the optimiser's; never on norms, biases and other one-dimensional parameters
    )
    warmup: float = 0.1  # fraction of all steps that the learning rate rises in: along a line from 0, in one-cycle along a cosine
    schedule: Schedule = "cosine"  # of the learning rate after the warm-up
    final_lr: float = 0.01  # fraction of the peak that cosine and one-cycle end at, and that step and exponential do not fall below
    decay: float = 0.1  # factor of the learning rate: of step every `step_epochs`, of exponential over the whole schedule
    step_epochs: int = 7  # epochs between two steps of the schedule step
    clip_norm: float | None = 1.0  # largest norm of all gradients together; None: no bound
    ema: float = (
        0.99  # decay a step of the averaged weights that are kept; 0: keep the last weights
    )
    # share of the way from the weights before to those after that is kept: 1 all of it, less where tuning ends overconfident. Source:
    # Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"
    wise_ft: float = 1.0
    label_smoothing: float = 0.0  # share of the label given to the other class
    head_start: bool = True  # begin from the solved logistic head, so that no epoch is spent on finding it; a linear head's alone
    # The square of the canvas that training sees. random-resized-crop: of random size, shape and place, resized; pad-and-crop: of the
    # input's size, from a random place after black bars were added; center-crop: what prediction sees too
    crop: Crop = "random-resized-crop"
    crop_area: float = 0.6  # smallest share of the canvas that a random-resized-crop covers
    crop_aspect: float = 1.33  # largest ratio of its sides
    crop_pad_px: int = 4  # added on each side by pad-and-crop
    flip: bool = True  # mirror half of the photos
    colour: float = 0.2  # strength of brightness, contrast and saturation changes; 0: none
    # 0: each step runs the frozen layers too, on a new draw of the augmentation. More: each photo is drawn so many times, what the frozen
    # layers make of it is computed once and kept, and epochs take the draws in turn; what is frozen is then the same in every fold
    cached_views: int = 0
    fold_norms: bool = False  # batch norms become part of their convolutions before training: the same network, in fewer and faster steps
    compile: bool = False  # torch.compile the step; on a CPU it took 40 s and halved the speed (LOG.md), on a GPU it is not measured

    def __post_init__(self) -> None:
        _need(self.epochs >= 1, "training.epochs", "at least 1", self.epochs)
        _need(self.batch_size >= 2, "training.batch_size", "at least 2", self.batch_size)
        whole = self.micro_batch is None or (
            self.micro_batch >= 1 and self.batch_size % self.micro_batch == 0
        )
        _need(
            whole,
            "training.micro_batch",
            f"a divisor of batch_size {self.batch_size}",
            self.micro_batch,
        )
        _need(0 <= self.momentum < 1, "training.momentum", "in [0, 1)", self.momentum)
        looks_ahead = not self.nesterov or (self.optimiser == "sgd" and self.momentum > 0)
        _need(
            looks_ahead,
            "training.nesterov",
            f"false with {self.optimiser} of momentum {self.momentum}",
            self.nesterov,
        )
        _need(self.peak_lr > 0, "training.peak_lr", "positive", self.peak_lr)
        _need(0 < self.layer_decay <= 1, "training.layer_decay", "in (0, 1]", self.layer_decay)
        _need(self.weight_decay >= 0, "training.weight_decay", "0 or more", self.weight_decay)
        _need(0 <= self.warmup < 1, "training.warmup", "in [0, 1)", self.warmup)
        _need(0 <= self.final_lr <= 1, "training.final_lr", "in [0, 1]", self.final_lr)
        _need(0 < self.decay <= 1, "training.decay", "in (0, 1]", self.decay)
        _need(self.step_epochs >= 1, "training.step_epochs", "at least 1", self.step_epochs)
        _need(
            self.clip_norm is None or self.clip_norm > 0,
            "training.clip_norm",
            "positive or none",
            self.clip_norm,
        )
        _need(0 <= self.ema < 1, "training.ema", "in [0, 1)", self.ema)
        _need(0 < self.wise_ft <= 1, "training.wise_ft", "in (0, 1]", self.wise_ft)
        _need(
            0 <= self.label_smoothing < 0.5,
            "training.label_smoothing",
            "in [0, 0.5)",
            self.label_smoothing,
        )
        _need(0 < self.crop_area <= 1, "training.crop_area", "in (0, 1]", self.crop_area)
        _need(self.crop_aspect >= 1, "training.crop_aspect", "at least 1", self.crop_aspect)
        _need(
            0 <= self.crop_pad_px <= 1024, "training.crop_pad_px", "in [0, 1024]", self.crop_pad_px
        )
        _need(0 <= self.colour <= 1, "training.colour", "in [0, 1]", self.colour)
        _need_policy("training.trains", self.trains)
        frozen = self.trains != "all" and not (self.first.epochs and self.first.trains == "all")
        _need(self.cached_views >= 0, "training.cached_views", "0 or more", self.cached_views)
        _need(
            frozen or not self.cached_views,
            "training.cached_views",
            "0 where all layers train",
            self.cached_views,
        )
        _need(
            not (self.head_start and self.head.widths),
            "training.head_start",
            "false with hidden layers in the head",
            self.head_start,
        )

    def phases(self) -> tuple["FineTune", ...]:
        """The fine-tunes that follow one another, each with an optimiser and a schedule of its own."""
        main, first = dataclasses.replace(self, first=Phase()), self.first
        if not first.epochs:
            return (main,)
        return dataclasses.replace(
            main, trains=first.trains, epochs=first.epochs, peak_lr=first.peak_lr, wise_ft=1.0
        ), main

    @property
    def on_features(self) -> bool:
        """Whether the head alone trains and sees each photo the same way in every epoch: then the features are computed once."""
        same = self.crop == "center-crop" and not self.flip and not self.colour
        return same and all(phase.trains == "head" for phase in self.phases())


def _need_policy(knob: str, trains: str) -> None:
    kind, _, what = trains.partition(":")
    known = (
        trains in ("all", "head")
        or (kind == "last" and what.isdigit() and int(what) > 0)
        or (kind == "from" and what != "")
    )
    _need(known, knob, "all, head, last:N or from:NAME", trains)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How fitted folds become probabilities; nothing here needs another fit."""

    views: ViewsName = "flip"  # test-time augmentation: none, mirrored, four corners and centre, or two scales; all but none also mirrored
    calibration: Method = "temperature"  # the map from logits to probabilities, fitted out of fold; `make calibrate` compares them
    noise_rate: float | None = (
        None  # share of the board's labels that contradict any confident model; None: the competition's
    )
    clip: float = 0.005  # probabilities stay in [clip, 1 - clip]; of six published scores of one model the best was at .005

    def __post_init__(self) -> None:
        _need(
            self.noise_rate is None or 0 <= self.noise_rate < 0.5,
            "prediction.noise_rate",
            "in [0, 0.5)",
            self.noise_rate,
        )
        _need(0 < self.clip < 0.5, "prediction.clip", "in (0, 0.5)", self.clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run's result, but the photos and the machine."""

    name: str
    seed: int = 0  # of shuffling, augmentation, dropout and the subset; not of the folds, which are the manifest's
    model: Model = field(default_factory=Model)
    pixels: Pixels = field(default_factory=Pixels)
    folds: Folds = field(default_factory=Folds)
    training: Head | Svm | FineTune = field(default_factory=FineTune)
    prediction: Prediction = field(default_factory=Prediction)

    def __post_init__(self) -> None:
        by_fold = (
            isinstance(self.training, FineTune)
            and not self.on_kept
            and not self.training.head_start
        )
        measured = (
            self.pixels.normalise == "measured"
        )  # each fold has colours of its own, and features that are shared have not
        _need(
            by_fold or not measured,
            "pixels.normalise",
            "backbone or constants where features are computed for all folds",
            "measured",
        )

    @property
    def on_features(self) -> bool:
        """Whether only heads are fitted, to features that are computed once for all folds."""
        return not isinstance(self.training, FineTune) or self.training.on_features

    @property
    def on_kept(self) -> bool:
        """Whether what trains is given features or activations of a frozen part that all folds share, computed once."""
        return self.on_features or (
            isinstance(self.training, FineTune) and self.training.cached_views > 0
        )

    def fit_key(self) -> str:
        """Told apart: what changes the fitted folds. Two recipes with one key share their checkpoints."""
        return fingerprint(self.seed, self.model, self.pixels, self.folds, self.training)

    def key(self) -> str:
        """Told apart: what changes the predictions."""
        return fingerprint(self.fit_key(), self.prediction)


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """`recipe` with each `section.knob=value` of `settings` applied, all at once. RecipeError names what is unknown or out of range."""
    values: dict[str, str] = {}
    for setting in settings:
        path, found, text = setting.partition("=")
        if not found:
            raise RecipeError(f"a setting reads section.knob=value, got {setting!r}")
        values[path] = text
    changed: Recipe = _replaced(recipe, values, "")
    return changed


def _replaced(owner: Any, values: dict[str, str], above: str) -> Any:
    """`owner` with `values`, by path below `above`; together, because knobs that bound each other would refuse them one by one."""
    hints = typing.get_type_hints(type(owner))
    changes: dict[str, Any] = {}
    for path, text in values.items():
        name, _, rest = path.removeprefix(above).partition(".")
        current = getattr(owner, name, None)
        if name not in hints or name == "name":
            raise RecipeError(
                f"no knob {path!r}: {type(owner).__name__} has {', '.join(hint for hint in hints if hint != 'name')}"
            )
        if dataclasses.is_dataclass(current) and not rest:
            raise RecipeError(
                f"{path!r} is a section: name one of its knobs, such as {path}.{dataclasses.fields(current)[0].name}"
            )
        if dataclasses.is_dataclass(current):
            section = f"{above}{name}."
            changes[name] = _replaced(
                current,
                {path: text for path, text in values.items() if path.startswith(section)},
                section,
            )
        elif rest:
            raise RecipeError(f"{path!r} goes below the knob {name!r}, which has no parts")
        else:
            changes[name] = _parsed(text, hints[name], path)
    return dataclasses.replace(owner, **changes)


def _parsed(text: str, kind: Any, path: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    try:
        value = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    value = tuple(value) if isinstance(value, list) else value
    for option in typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,):
        if typing.get_origin(option) is Literal and text in typing.get_args(option):
            return text
        if _fits(value, option):
            return float(text) if option is float else value
        if option is str and not isinstance(value, tuple) and value is not None:
            return text
    raise RecipeError(f"{path} takes {_shown(kind)}, got {text!r}")


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            _fits(item, typing.get_args(kind)[0]) for item in value
        )
    if kind is float:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and value == value
            and abs(value) != float("inf")
        )
    return type(value) is kind


def _shown(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(map(str, typing.get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)


def described(recipe: Recipe) -> dict[str, Any]:
    """`recipe` in terms of JSON, as run.json keeps it."""
    return typing.cast(dict[str, Any], plain(recipe))


def restored(value: Any) -> Any:
    """What `described` made `value` of. RecipeError where it was made by other code, whose knobs were not these."""
    if isinstance(value, list):
        return tuple(map(restored, value))
    if not isinstance(value, dict):
        return value
    kind, knobs = (
        globals().get(str(value.get("type"))),
        {name: restored(item) for name, item in value.items() if name != "type"},
    )
    if not dataclasses.is_dataclass(kind) or not set(knobs) <= {
        knob.name for knob in dataclasses.fields(kind)
    }:
        raise RecipeError(
            f"a run was made with knobs of {value.get('type')} that are no more: train it again"
        )
    return kind(**knobs)  # type: ignore[operator]  # a class
