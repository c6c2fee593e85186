"""What a run is: frozen options with units and bounds, identified by a fingerprint."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from comp.options import Options, require
from comp.store import fingerprint

FORMAT = 2  # of fingerprints: one more when a default changes or an option changes its meaning

Fit = Literal["squash", "shorter", "letterbox", "center-crop"]
Crop = Literal["random-resized-crop", "pad-and-crop", "center-crop"]
ViewsName = Literal["none", "flip", "five_crop", "multi_scale"]
Method = Literal["none", "temperature", "platt", "beta", "isotonic"]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


def _layers(trainable: str) -> str:
    if not re.fullmatch(r"all|head|last:0*[1-9]\d*|from:.+", trainable):
        raise ValueError("must be all, head, last:N or from:NAME")
    return trainable


# all; head; last:N, timm's last N blocks and the head; from:NAME, that module of timm's, what comes
# after it, and the head
Layers = Annotated[str, AfterValidator(_layers)]


class Model(Options):
    """The network: a timm backbone, and where its weights come from."""

    backbone: str = "convnext_tiny"  # any name in timm.list_models(), with or without a tag
    # a .safetensors or .pth file; "random"; None: a package that carries them, else timm's hub
    weights: str | None = None
    # timm's name of the layer that feeds the head, where the backbone is cut; None: all of it, with
    # its own pooling
    layer: str | None = None
    # of a layer's output: mean over positions or tokens, or every number of it (fixes size_px)
    pool: Literal["mean", "flatten"] = "mean"
    drop_path: Share = 0.0  # largest rate of stochastic depth, rising linearly with depth

    @model_validator(mode="after")
    def _check(self) -> Self:
        has_layer = self.pool == "mean" or self.layer is not None
        require(has_layer, "model.pool", "mean where model.layer names no layer", self.pool)
        return self


class Pixels(Options):
    """The canvas that each photo is decoded to once, and the crop of it that the network gets."""

    # squash: the whole photo squeezed into a square; letterbox: the whole photo, black bars around
    # it; shorter: shorter side resized to the canvas, the rest kept for crops, and prediction takes
    # the centre; center-crop: the middle of the photo, not resized
    fit: Fit = "squash"
    size_px: int | None = Field(None, ge=16, le=2048)  # side of the input; None: the backbone's own
    # side of the canvas / size_px; None: 1 / the backbone's own crop_pct
    canvas: float | None = Field(None, ge=1, le=2)
    # by the backbone's own mean and std, by those below, or by those of the fold's training photos
    normalise: Literal["backbone", "constants", "measured"] = "backbone"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of red, green, blue in [0, 1]
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)


class Folds(Options):
    """Cross-validation: which photos are used, and when each is held out."""

    n: int = Field(5, ge=2, le=100)  # folds
    # of which photos are held out together; 0: the manifest's own folds. Another seed is a repeat
    seed: int = Field(0, ge=0)
    # folds to fit, from fold 0 on; None: all. Fewer leave photos without an out-of-fold logit
    fit: int | None = Field(None, ge=1)
    # instead of folds: shares for validation and test, both held out by one fit on the rest
    split: tuple[Positive, Positive] | None = None
    # a stratified subset of whole groups with about this many training photos; None: all
    n_photos: int | None = None
    # which lines of data/verdicts.csv apply: all, drop, flip, soft or one photo's id; None: none
    label_fixes: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(self.fit is None or self.fit <= self.n, "folds.fit", f"at most {self.n}", self.fit)
        leaves_some = self.split is None or sum(self.split) < 1
        require(leaves_some, "folds.split", "shares that leave photos to train on", self.split)
        one_of_them = self.split is None or self.fit is None
        require(one_of_them, "folds.fit", "none where folds.split is set", self.fit)
        enough = self.n_photos is None or self.n_photos >= 2 * self.n
        require(enough, "folds.n_photos", "at least two per fold", self.n_photos)
        return self


class Head(Options):
    """A logistic head on cached features of a frozen backbone, solved to its optimum."""

    kind: Literal["head"] = "head"
    # weights of |w|^2 / 2 beside the mean log loss, of which inner folds choose one in each fold
    penalties: tuple[Positive, ...] = Field(
        (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 1e-2), min_length=1
    )
    n_inner: int = Field(4, ge=2, le=20)  # those inner folds
    views: ViewsName = "flip"  # whose features are averaged for the fit


class Svm(Options):
    """A support vector machine on cached features of a frozen backbone; Platt's calibration."""

    kind: Literal["svm"] = "svm"
    kernel: Literal["linear", "rbf"] = "rbf"
    cost: Positive = 1.0  # C, the price of a photo on the wrong side of its margin
    n_inner: int = Field(4, ge=2, le=20)  # inner folds, to which Platt's sigmoid is fitted
    views: ViewsName = "none"  # whose features are averaged for the fit


class HeadShape(Options):
    """The layers of a head trained by gradients: hidden ones, if any, then a linear one."""

    widths: tuple[Annotated[int, Field(ge=1)], ...] = ()  # of the hidden layers
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"  # after each of them
    dropout: Share = 0.0  # rate after each of them; with no hidden layer, on the features


class Augmentation(Options):
    """What a photo may look like in training."""

    # what training cuts from the canvas. random-resized-crop: random size, shape and position,
    # resized; pad-and-crop: the input's size, at a random position after padding with black;
    # center-crop: what prediction uses
    crop: Crop = "random-resized-crop"
    area: float = Field(0.6, gt=0, le=1)  # smallest share of the canvas in a resized crop
    aspect: float = Field(1.33, ge=1)  # largest ratio of its sides
    pad_px: int = Field(4, ge=0, le=1024)  # on each side, by pad-and-crop
    flip: bool = True  # mirror half of the photos
    colour: float = Field(0.2, ge=0, le=1)  # strength of jitter in brightness, contrast, saturation


class Phase(Options):
    """A first phase of fine-tuning with its own schedule; everything else is as in the main one."""

    trainable: Layers = "head"
    epochs: int = Field(0, ge=0)  # 0: no such phase
    peak_lr: Positive = 1e-3


class FineTune(Options):
    """The whole network, or its last part, trained by gradients."""

    kind: Literal["fine-tune"] = "fine-tune"
    head: HeadShape = HeadShape()
    first: Phase = Phase()
    trainable: Layers = "all"
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(64, ge=2)  # photos per step, over all micro-batches
    # photos in memory at once; None: the whole batch, or as much of it as fits
    micro_batch: int | None = Field(None, ge=1)
    optimiser: str = "adamw"  # sgd, rmsprop, adam, adamw, or any in timm.optim.list_optimizers()
    momentum: Share = 0.9  # of sgd, rmsprop and those of timm's that have one
    nesterov: bool = False  # of sgd only
    peak_lr: Positive = 1e-4  # of the head; blocks below get layer_decay ** distance of it
    # learning-rate factor from a block to the one below
    layer_decay: float = Field(0.75, gt=0, le=1)
    weight_decay: float = Field(0.05, ge=0)  # never on norms, biases and other vectors
    warmup: Share = 0.1  # fraction of all steps; rises linearly from 0, in one-cycle as a cosine
    # of the learning rate after the warm-up
    schedule: Literal["cosine", "one-cycle", "step", "exponential", "constant"] = "cosine"
    final_lr: float = Field(0.01, ge=0, le=1)  # fraction of the peak where the schedule ends
    # factor on the learning rate: step applies it every step_epochs, exponential over the schedule
    decay: float = Field(0.1, gt=0, le=1)
    step_epochs: int = Field(7, ge=1)
    clip_norm: float | None = Field(1.0, gt=0)  # largest norm of all gradients; None: no clipping
    ema: Share = 0.99  # decay per step of the averaged weights, which are kept; 0: the last weights
    # how far to move from the initial to the trained weights: 1 all the way, less against
    # overconfidence. Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"
    wise_ft: float = Field(1.0, gt=0, le=1)
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # share of the label given to the other class
    head_start: bool = True  # start from the solved logistic head; for a linear head only
    augment: Augmentation = Augmentation()
    # 0: each step runs the frozen layers too, on freshly augmented photos. N: augment each photo N
    # times, compute the frozen layers' output once and cache it; epochs use the N in turn
    cached_views: int = Field(0, ge=0)
    # merge batch norms into their convolutions before training: the same network, faster steps
    fuse_batch_norm: bool = False
    # torch.compile the step: on a CPU it took 40 s and halved the speed, not measured on a GPU
    compile: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        divides = self.micro_batch is None or self.batch_size % self.micro_batch == 0
        of_batch = f"a divisor of batch_size {self.batch_size}"
        require(divides, "training.micro_batch", of_batch, self.micro_batch)
        has_momentum = not self.nesterov or (self.optimiser == "sgd" and self.momentum > 0)
        no_momentum = f"false with {self.optimiser} of momentum {self.momentum}"
        require(has_momentum, "training.nesterov", no_momentum, self.nesterov)
        some_frozen = all(phase.trainable != "all" for phase in self.phases())
        can_cache = some_frozen or not self.cached_views
        require(can_cache, "training.cached_views", "0 where all layers train", self.cached_views)
        is_linear = not (self.head_start and self.head.widths)
        require(is_linear, "training.head_start", "false with hidden layers in the head", True)
        return self

    def phases(self) -> tuple["FineTune", ...]:
        """The fine-tunes that follow each other, each with its own optimiser and schedule."""
        main = self.model_copy(update={"first": Phase()})
        if not self.first.epochs:
            return (main,)
        first = dict(self.first)
        return main.model_copy(update=first | {"wise_ft": 1.0}), main

    @property
    def on_features(self) -> bool:
        """Whether only the head trains, on photos that look the same in every epoch."""
        look = self.augment
        is_same = look.crop == "center-crop" and not look.flip and not look.colour
        return is_same and all(phase.trainable == "head" for phase in self.phases())


class Prediction(Options):
    """How fitted folds become probabilities; changing it needs no new fit."""

    # test-time augmentation: none, mirrored, four corners and centre, or two scales; all but none
    # also mirrored
    views: ViewsName = "flip"
    calibration: Method = "temperature"  # fitted out of fold; `make calibrate` compares them
    # share of the leaderboard's labels that contradict any confident model; None: the competition's
    noise_rate: float | None = Field(None, ge=0, lt=0.5)
    # probabilities stay in [clip, 1 - clip]; best of six published scores of one model was .005
    clip: float = Field(0.005, gt=0, lt=0.5)


class Recipe(Options):
    """Everything that decides a run's result, other than the photos and the machine."""

    name: str
    seed: int = 0  # of shuffling, augmentation and dropout; folds.seed is that of the folds
    model: Model = Model()
    pixels: Pixels = Pixels()
    folds: Folds = Folds()
    training: Annotated[Head | Svm | FineTune, Field(discriminator="kind")] = FineTune()
    prediction: Prediction = Prediction()

    @model_validator(mode="after")
    def _check(self) -> Self:
        training = self.training
        per_fold = isinstance(training, FineTune) and not training.head_start and not self.is_cached
        allowed = per_fold or self.pixels.normalise != "measured"
        shared = "backbone or constants where all folds share their features"
        require(allowed, "pixels.normalise", shared, self.pixels.normalise)
        return self

    @property
    def on_features(self) -> bool:
        """Whether only heads are fitted, on features that are computed once for all folds."""
        return not isinstance(self.training, FineTune) or self.training.on_features

    @property
    def is_cached(self) -> bool:
        """Whether the fit reads the cached output of frozen layers that all folds share."""
        return self.on_features or (
            isinstance(self.training, FineTune) and self.training.cached_views > 0
        )

    def fit_key(self) -> str:
        """Fingerprint of everything that affects fitting. Equal keys share their checkpoints."""
        fitted = self.replace(name="", prediction=Prediction())
        return fingerprint(FORMAT, fitted.changed())

    def key(self) -> str:
        """Fingerprint of everything that affects the predictions."""
        return fingerprint(self.fit_key(), self.prediction.changed())
