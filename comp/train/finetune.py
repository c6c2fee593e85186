"""Training by gradients: optimisers and learning rates, and steps to the weights that are kept."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from comp.errors import TrainingError
from comp.network.backbone import parameter_groups, timm_optimiser
from comp.network.device import Device, Room
from comp.network.embedder import normalise
from comp.network.preprocessing import Preprocessing
from comp.progress import Advance, counted
from comp.recipe import FineTune
from comp.store import derive_seed
from comp.train.batches import Batch
from comp.train.resume import (
    Bookmark,
    Facts,
    Point,
    go_on,
    optimiser_state,
    restore_optimiser,
    state_of,
)

ONE_CYCLE_START = 1 / 25  # of the peak, where one-cycle begins; torch's and fastai's default
LOG_EVERY = 10  # steps between two points of the history, fewer in runs under 100 steps
EXPLODED = 10.0  # a mean log loss above this is a run gone wrong: predicting 0.5 always costs 0.69


def make_optimiser(network: nn.Module, training: FineTune) -> torch.optim.Optimizer:
    """The optimiser that `training` names, for a network of timm's or for a head alone.

    Each group carries `lr_scale`, its factor on the head's learning rate. RecipeError if neither
    torch nor timm has the optimiser.
    """
    decay = training.weight_decay
    if hasattr(network, "pretrained_cfg"):
        groups = parameter_groups(network, weight_decay=decay, layer_decay=training.layer_decay)
        return _named(training, groups)
    matrices = [value for value in network.parameters() if value.ndim > 1]
    vectors = [value for value in network.parameters() if value.ndim <= 1]
    decayed = {"params": matrices, "weight_decay": decay, "lr_scale": 1.0}
    return _named(training, [decayed, {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0}])


def check_optimiser(training: FineTune) -> None:
    """RecipeError if there is no such optimiser."""
    _named(training, [{"params": [torch.zeros(1, requires_grad=True)]}])


def _named(training: FineTune, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    fused, lr, momentum = kinds <= {"cpu", "cuda"}, training.peak_lr, training.momentum
    match training.optimiser:
        case "sgd":
            nesterov = training.nesterov
            return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, fused=fused)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr, momentum=momentum)
        case "adam":
            return torch.optim.Adam(groups, lr, fused=fused)
        case "adamw":
            return torch.optim.AdamW(groups, lr, fused=fused)
        case other:
            return timm_optimiser(other, groups, lr=lr, momentum=momentum)


def learning_rate(step: int, n_steps: int, training: FineTune) -> float:
    """The head's learning rate in step 0 .. n_steps - 1 of `training`."""
    n_warm = training.warmup * n_steps
    if step < n_warm:
        return training.peak_lr * _warmup(step, n_warm, training)
    done = (step - n_warm) / max(n_steps - n_warm, 1)
    return training.peak_lr * _after_warmup(done, step * training.epochs // n_steps, training)


def _warmup(step: int, n_warm: float, training: FineTune) -> float:
    """The share of the peak in a step of the warm-up: a line from 0, or half a cosine."""
    if training.schedule == "one-cycle":
        risen = (1 - math.cos(math.pi * step / n_warm)) / 2
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * risen
    return (step + 1) / (n_warm + 1)


def _after_warmup(done: float, epoch: int, training: FineTune) -> float:
    """The share of the peak after a fraction `done` in [0, 1) of the rest, in `epoch` from 0."""
    match training.schedule:
        case "cosine" | "one-cycle":
            return training.final_lr + (1 - training.final_lr) * (1 + math.cos(math.pi * done)) / 2
        case "step":
            return max(training.final_lr, math.pow(training.decay, epoch // training.step_epochs))
        case "exponential":
            return max(training.final_lr, math.pow(training.decay, done))
        case "constant":
            return 1.0


def ema_decay(step: int, training: FineTune) -> float:
    """The decay of the averaged weights in `step`.

    It grows to `training.ema`, so that in a short run the initial weights do not dominate.
    """
    return min(training.ema, (1 + step) / (10 + step))


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Labels in [smoothing, 1 - smoothing]."""
    return labels * (1 - 2 * smoothing) + smoothing


def fine_tune(
    network: nn.Module,
    batches: Iterable[Batch],
    n_steps: int,
    training: FineTune,
    preprocessing: Preprocessing | None,
    device: Device,
    advance: Advance,
    *,
    seed: int = 0,
    book: Bookmark | None = None,
    on_point: Callable[[Point], None] = lambda _: None,
) -> list[Point]:
    """Train `network` in place and leave it in evaluation mode with the averaged weights.

    `preprocessing` normalises crops; None: the batches hold cached arrays. TrainingError if the
    loss is not finite or explodes. `seed` is of dropout and stochastic depth, not of a GPU's sums.
    `book` has the state to go on from. Batch norms train, but keep their statistics.
    """
    take_step = Step(network, training, preprocessing, device)
    average = _Average(network, training)
    initial = [parameter.detach().clone() for parameter in _trained(network)]
    history, loss_sum = list[Point](), torch.zeros((), device=device.where)
    kept: dict[str, list[Tensor]] = {
        "weights": [parameter.detach() for parameter in network.parameters()],
        "initial": initial,
        "average": average.mean,
        "loss": [loss_sum],
    }
    done = go_on(book, take_step, kept, history) if book else 0
    log_every = max(1, min(LOG_EVERY, n_steps // 10))
    for step, (arrays, labels) in enumerate(batches, done):
        torch.manual_seed(derive_seed(seed, "dropout", step))
        lr = learning_rate(step, n_steps, training)
        loss_sum += take_step(arrays, labels, lr)
        average.update(step)
        if (step + 1) % log_every == 0 or step + 1 == n_steps:
            n_since = step + 1 - (history[-1].step if history else 0)
            history.append(Point(step + 1, float(loss_sum) / n_since, lr))  # waits for the device
            loss_sum.zero_()
            _check_loss(history, training)
            on_point(history[-1])
        advance(len(labels), note=_note(history, take_step.room, len(labels), training))
        if book:
            book.step_done(step + 1, partial(state_of, step + 1, take_step, kept, history))
    average.store()
    with torch.no_grad():
        torch._foreach_lerp_(_trained(network), initial, 1 - training.wise_ft)
    network.eval()
    return history


def _note(history: list[Point], room: Room, n_photos: int, training: FineTune) -> str:
    """What to show while training: the last loss, and how many photos fit where not all do."""
    if not history:
        return ""
    is_halved = room.n_photos < (training.micro_batch or n_photos)
    fit = f", {counted(room.n_photos, 'photo')} in memory at once" if is_halved else ""
    return f"loss {history[-1].loss:.4f}{fit}"


class Step:
    """Takes training steps, with as many photos in memory at once as fit."""

    def __init__(
        self,
        network: nn.Module,
        training: FineTune,
        preprocessing: Preprocessing | None,
        device: Device,
    ) -> None:
        network.to(device.where).to(memory_format=torch.channels_last)
        set_training_mode(network)
        self._network, self._training, self._device = network, training, device
        self._preprocessing = preprocessing
        self._loss = torch.compile(_mean_loss) if training.compile else _mean_loss
        self._optimiser = make_optimiser(network, training)
        self._scaler = torch.amp.GradScaler(enabled=device.train_dtype == torch.float16)
        self.room = Room(training.micro_batch or training.batch_size)

    def __call__(self, arrays: Tensor, labels: Tensor, lr: float) -> Tensor:
        """One step at the head's learning rate `lr`; the mean loss before it, on the device.

        `arrays` are uint8 crops [b, s, s, 3], or cached arrays [b, ...]; `labels [b]`.
        UserError if a single photo does not fit into the device's memory.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]
        loss = self.room.run(partial(self._sum_gradients, arrays, labels))
        self._scaler.unscale_(self._optimiser)
        if self._training.clip_norm is not None:
            trained = [value for group in self._optimiser.param_groups for value in group["params"]]
            torch.nn.utils.clip_grad_norm_(trained, self._training.clip_norm, foreach=True)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return loss

    def state(self) -> tuple[dict[str, Tensor], Facts]:
        """What the next step depends on besides the weights: tensors and JSON."""
        tensors, facts = optimiser_state(self._optimiser)
        more = {"scaler": self._scaler.state_dict(), "at_once": self.room.n_photos}
        return {f"optimiser.{name}": value for name, value in tensors.items()}, {**facts, **more}

    def restore(self, tensors: Mapping[str, Tensor], facts: Facts) -> None:
        """Go on where `state` was taken."""
        start = "optimiser."
        own = {n.removeprefix(start): each for n, each in tensors.items() if n.startswith(start)}
        restore_optimiser(self._optimiser, own, facts)
        self._scaler.load_state_dict(facts["scaler"])
        self.room.n_photos = facts["at_once"]

    def _sum_gradients(self, arrays: Tensor, labels: Tensor, micro_batch: int) -> Tensor:
        """The mean loss of the batch; gradients are summed over micro-batches."""
        self._optimiser.zero_grad(set_to_none=True)  # what an attempt without memory left
        device, total = self._device, torch.zeros((), device=self._device.where)
        is_float = device.train_dtype == torch.float32
        precision = (
            nullcontext() if is_float else torch.autocast(device.where.type, device.train_dtype)
        )
        for start in range(0, len(labels), micro_batch):
            part, target = (
                each[start : start + micro_batch].to(device.where, non_blocking=True)
                for each in (arrays, labels)
            )
            target = smooth_labels(target, self._training.label_smoothing)
            with precision:
                if self._preprocessing is not None:
                    images = part.permute(0, 3, 1, 2)
                    part = normalise(images, self._preprocessing, torch.float32)
                loss = self._loss(self._network, part, target)
            share = loss * (len(part) / len(labels))
            self._scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        return total


def set_training_mode(network: nn.Module) -> None:
    """Training mode for dropout and stochastic depth; not for batch norm and what is frozen."""
    network.train()
    for module in network.modules():
        is_trained = [parameter.requires_grad for parameter in module.parameters()]
        is_frozen = bool(is_trained) and not any(is_trained)
        if is_frozen or isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def _mean_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return binary_cross_entropy_with_logits(logits.squeeze(1).float(), labels)


def _check_loss(history: list[Point], training: FineTune) -> None:
    last = history[-1]
    bound = "" if training.clip_norm is None else f" below {training.clip_norm:g}"
    remedy = f"set training.peak_lr below {training.peak_lr:g} or training.clip_norm{bound}"
    if not last.loss <= EXPLODED:  # nan too
        raise TrainingError(f"the loss is {last.loss:.3g} after step {last.step}; {remedy}")


def _trained(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class _Average:
    """An exponential moving average of the trained parameters."""

    def __init__(self, network: nn.Module, training: FineTune) -> None:
        self._training, self._live = training, _trained(network)
        self.mean = [value.detach().clone() for value in self._live] if training.ema else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self.mean:
            live = [parameter.detach() for parameter in self._live]
            torch._foreach_lerp_(self.mean, live, 1 - ema_decay(step, self._training))

    @torch.no_grad()
    def store(self) -> None:
        """Replace the last weights by the average."""
        for parameter, mean in zip(self._live, self.mean, strict=False):
            parameter.copy_(mean)
