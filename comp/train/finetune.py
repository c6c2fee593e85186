"""One fold of fine-tuning: from a network with a head to the weights that are kept."""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from comp.errors import TrainingError
from comp.progress import Advance
from comp.recipe import FineTune
from comp.train.backbone import Input
from comp.train.batches import Batch
from comp.train.device import Device
from comp.train.optimisers import make_optimiser
from comp.train.schedules import learning_rate
from comp.train.views import normalise

LOOK_EVERY = 10  # steps between two looks at the loss, fewer in runs under 100 steps; each waits for the device
EXPLODED = 10.0  # a mean log loss over LOOK_EVERY steps above this is a run gone wrong: saying 0.5 always costs 0.69


@dataclass(frozen=True, slots=True)
class Point:
    """A look at the training: after `step` steps, the mean loss since the look before, and the head's learning rate."""

    step: int
    loss: float
    lr: float


def ema_decay(step: int, training: FineTune) -> float:
    """The decay of the averaged weights in `step`; it grows to `training.ema`, so that a short run is not ruled by where it began."""
    return min(training.ema, (1 + step) / (10 + step))


def smoothed(labels: Tensor, smoothing: float) -> Tensor:
    """Labels in [smoothing, 1 - smoothing]."""
    return labels * (1 - 2 * smoothing) + smoothing


def fine_tune(
    network: nn.Module,
    batches: Iterable[Batch],
    n_steps: int,
    training: FineTune,
    shown: Input | None,
    device: Device,
    advance: Advance,
) -> list[Point]:
    """Train `network` in place and leave it in evaluation mode with the averaged weights; a look at the loss now and then.

    TrainingError if the loss is not finite or explodes. `shown` is how squares are normalised; None: batches hold what was kept.
    Batch norms keep their statistics, so that a small batch does not disturb them; their weight and bias are trained.
    """
    take_step = Step(network, training, shown, device)
    kept, before = (
        _Averaged(network, training),
        [parameter.detach().clone() for parameter in _trained(network)],
    )
    history: list[Point] = []
    since = torch.zeros((), device=device.where)
    look_every = max(1, min(LOOK_EVERY, n_steps // 10))
    for step, (squares, labels) in enumerate(batches):
        lr = learning_rate(step, n_steps, training)
        since += take_step(squares, labels, lr)
        kept.update(step)
        if (step + 1) % look_every == 0 or step + 1 == n_steps:
            n_since = step + 1 - (history[-1].step if history else 0)
            history.append(Point(step + 1, float(since) / n_since, lr))
            since.zero_()
            _refuse_divergence(history, training)
        shrunk = (
            f", {take_step.at_once} photos in memory at once"
            if take_step.at_once < (training.micro_batch or len(labels))
            else ""
        )
        advance(len(labels), note=f"loss {history[-1].loss:.4f}{shrunk}" if history else "")
    kept.store()
    with torch.no_grad():
        torch._foreach_lerp_(_trained(network), before, 1 - training.wise_ft)
    network.eval()
    return history


class Step:
    """Takes one step after the other with a network, and with as many photos in memory at once as fit."""

    def __init__(
        self, network: nn.Module, training: FineTune, shown: Input | None, device: Device
    ) -> None:
        network.to(device.where).to(memory_format=torch.channels_last)
        set_training(network)
        self._network, self._training, self._shown, self._device = network, training, shown, device
        self._loss_of = torch.compile(_loss) if training.compile else _loss
        self._optimiser = make_optimiser(network, training)
        self._scaler = torch.amp.GradScaler(enabled=device.train_dtype == torch.float16)
        self.at_once = (
            training.micro_batch or training.batch_size
        )  # photos; halved where the device's memory ends

    def __call__(self, squares: Tensor, labels: Tensor, lr: float) -> Tensor:
        """The mean loss before the step, on the device, not waited for; uint8 squares [b, s, s, 3], or what was kept [b, ...], labels [b].

        `lr` is the head's learning rate. TrainingError if one photo alone is too much for the device's memory.
        """
        for group in self._optimiser.param_groups:
            group["lr"] = lr * group["lr_scale"]
        loss = self._backward(squares, labels)
        self._scaler.unscale_(self._optimiser)
        if self._training.clip_norm is not None:
            trained = [
                parameter for group in self._optimiser.param_groups for parameter in group["params"]
            ]
            torch.nn.utils.clip_grad_norm_(trained, self._training.clip_norm, foreach=True)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        return loss

    def _backward(self, squares: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of the batch, its gradients added up over micro-batches."""
        while True:
            try:
                return self._added_up(squares, labels)
            except torch.OutOfMemoryError as error:
                if self.at_once == 1:
                    raise TrainingError(
                        "one photo alone does not fit into the device's memory: lower pixels.size_px"
                    ) from error
            self.at_once = (self.at_once + 1) // 2
            self._optimiser.zero_grad(set_to_none=True)  # what was added up before memory ended
            if self._device.is_cuda:
                torch.cuda.empty_cache()

    def _added_up(self, squares: Tensor, labels: Tensor) -> Tensor:
        device, total = self._device, torch.zeros((), device=self._device.where)
        autocast = (
            torch.autocast(device.where.type, device.train_dtype)
            if device.train_dtype != torch.float32
            else nullcontext()
        )
        for start in range(0, len(labels), self.at_once):
            part = squares[start : start + self.at_once].to(device.where, non_blocking=True)
            target = smoothed(
                labels[start : start + self.at_once].to(device.where, non_blocking=True),
                self._training.label_smoothing,
            )
            with autocast:
                given = (
                    part
                    if self._shown is None
                    else normalise(part.permute(0, 3, 1, 2), self._shown, torch.float32)
                )
                loss = self._loss_of(self._network, given, target)
            share = loss * (len(part) / len(labels))
            self._scaler.scale(share).backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        return total


def set_training(network: nn.Module) -> None:
    """Training mode for dropout and stochastic depth, evaluation mode for batch norm and for what is frozen."""
    network.train()
    for module in network.modules():
        trains = [parameter.requires_grad for parameter in module.parameters()]
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (trains and not any(trains)):
            module.eval()


def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return binary_cross_entropy_with_logits(logits.squeeze(1).float(), labels)


def _refuse_divergence(history: list[Point], training: FineTune) -> None:
    last = history[-1]
    bound = "" if training.clip_norm is None else f" below {training.clip_norm:g}"
    remedy = f"set training.peak_lr below {training.peak_lr:g} or training.clip_norm{bound}"
    if not math.isfinite(last.loss):
        raise TrainingError(f"the loss is {last.loss} after {last.step} steps; {remedy}")
    if last.loss > EXPLODED:
        raise TrainingError(
            f"the loss exploded to {last.loss:.3g} after {last.step} steps, from {history[0].loss:.3g}; {remedy}"
        )


def _trained(network: nn.Module) -> list[Tensor]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


class _Averaged:
    """An exponential moving average of the trained parameters."""

    def __init__(self, network: nn.Module, training: FineTune) -> None:
        self._training = training
        self._live = _trained(network)
        self._mean = (
            [parameter.detach().clone() for parameter in self._live] if training.ema else []
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self._mean:
            torch._foreach_lerp_(
                self._mean,
                [parameter.detach() for parameter in self._live],
                1 - ema_decay(step, self._training),
            )

    @torch.no_grad()
    def store(self) -> None:
        """Put the average in the place of the last weights."""
        for parameter, mean in zip(self._live, self._mean, strict=False):
            parameter.copy_(mean)
