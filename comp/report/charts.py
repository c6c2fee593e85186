"""The figures of a report, each with a sentence for those who cannot see it, and its numbers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from comp.competition import Competition
from comp.metric import Floats, bootstrap_interval, per_photo_logit_loss, sigmoid
from comp.plots import BLUE, GREEN, INK, MUTED, ORANGE, SERIES, Drawing, make_logarithmic
from comp.predict.calibrate import Settings, board_losses, with_flips
from comp.progress import counted
from comp.report.page import Chart

N_SAMPLED = 12  # steps of a learning curve in its table
# of predicted P(positive): most photos lie near 0 or 1, so that the edges are logits in equal steps
BIN_EDGES = sigmoid(np.arange(-8.0, 8.1, 2.0))
LOGIT_LIMIT = 15.0  # logits beyond it are drawn there
MIN_LOSS, N_DRAWN = 1e-4, 1500  # of a photo, beside that in another run; photos in that figure
NOTABLE, N_DIFFERING = 0.1, 20  # a difference that counts; photos in that figure's table


def learning_curves(histories: Mapping[int, pd.DataFrame]) -> Chart:
    """Training loss and learning rate by step; `histories` (step, loss, lr) by fold."""
    drawing = Drawing("curves", rows=2, height=3.4)
    loss, rate = drawing.axes
    for index, (fold, points) in enumerate(histories.items()):
        colour = SERIES[index % len(SERIES)]
        loss.plot(points["step"], points["loss"], color=colour, label=f"fold {fold}")
        rate.plot(points["step"], points["lr"], color=colour)
    loss.set(ylabel="training loss", ylim=(0, None))
    rate.set(ylabel="learning rate", xlabel="step", ylim=(0, None))
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    if len(histories) <= len(SERIES):
        drawing.legend()
    rows, ends = list[tuple[object, ...]](), []
    for fold, points in histories.items():
        kept = points.iloc[np.unique(np.linspace(0, len(points) - 1, N_SAMPLED).astype(int))]
        cells = kept[["step", "loss", "lr"]].itertuples(index=False)
        rows += [(fold, f"{step:,.0f}", f"{y:.4f}", f"{lr:.2e}") for step, y, lr in cells]
        ends.append((points["loss"].iloc[0], points["loss"].iloc[-1]))
    first, last = np.mean(ends, axis=0)
    return Chart(
        title="Learning curves",
        sentence=f"Training loss, mean of {counted(len(histories), 'fold')}: {first:.4f} at first,"
        f" {last:.4f} at the end.",
        svg=drawing.svg(),
        columns=("fold", "step", "training loss", "learning rate"),
        rows=rows,
    )


def fold_losses(oof: pd.DataFrame, names: Mapping[int, str]) -> Chart:
    """Log loss of each fold of `oof` (fold, loss, group, is_right), with intervals."""
    parts = [(name, oof[oof["fold"] == fold]) for fold, name in names.items()] + [("all", oof)]
    means = [float(part["loss"].mean()) for _, part in parts]
    bounds = [bootstrap_interval(part["loss"], part["group"]) for _, part in parts]
    drawing = Drawing("folds", height=1.2 + 0.25 * len(parts))
    (axes,) = drawing.axes
    for row, (mean, (low, high)) in enumerate(zip(means, bounds, strict=True)):
        colour = INK if row == len(parts) - 1 else BLUE
        axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
        axes.plot(mean, row, "o", color=colour)
    axes.axvline(means[-1], color=MUTED, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(parts)), [name for name, _ in parts])
    axes.set(xlabel="log loss, 95 % interval", ylim=(len(parts) - 0.5, -0.5), xlim=(0, None))
    spread = f"from {min(means[:-1]):.4f} to {max(means[:-1]):.4f}, " if len(parts) > 2 else ""
    return Chart(
        title="Folds",
        sentence=f"Held-out log loss by fold: {spread}{means[-1]:.4f} over all photos.",
        svg=drawing.svg(),
        columns=("", "photos", "log loss", "95 % interval", "accuracy"),
        rows=[
            (name, f"{len(part):,}", f"{mean:.5f}", f"{low:.4f}-{high:.4f}", f"{right:.2%}")
            for (name, part), mean, (low, high), right in zip(
                parts, means, bounds, (part["is_right"].mean() for _, part in parts), strict=True
            )
        ],
    )


def wilson(n_positive: Floats, n: Floats) -> tuple[Floats, Floats]:
    """95 % intervals of shares `n_positive / n`. Source: Wilson 1927."""
    z2, share = 1.96**2, n_positive / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return middle - half, middle + half


def reliability(labels: Floats, by_name: Mapping[str, Floats], positive: str) -> Chart:
    """Observed against predicted share of the positive class, in bins of each of `by_name`."""
    drawing = Drawing("reliability", height=3.2)
    (axes,) = drawing.axes
    ends = (3e-4, 1 - 3e-4)
    axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1, label="perfect")
    rows, words = list[tuple[object, ...]](), []
    for (name, probs), colour, marker in zip(by_name.items(), (ORANGE, BLUE), "so", strict=False):
        bins = pd.DataFrame({"prob": probs, "label": labels}).groupby(np.digitize(probs, BIN_EDGES))
        n = np.asarray(bins["prob"].count(), np.float64)
        mean, hits = bins["prob"].mean().to_numpy(), bins["label"].sum().to_numpy(np.float64)
        x, share, low, high = (np.clip(y, *ends) for y in (mean, hits / n, *wilson(hits, n)))
        axes.vlines(x, low, high, color=colour, linewidth=1.2)
        axes.scatter(x, share, 8 + 60 * n / n.max(), color=colour, marker=marker, label=name)
        rows += [
            (name, f"{p:.4f}", f"{hit:,.0f} of {count:,.0f}", f"{hit / count:.4f}")
            for p, hit, count in zip(mean, hits, n, strict=True)
        ]
        words.append(f"{(np.abs(mean - hits / n) * n).sum() / n.sum():.4f} {name}")
    ticks = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999]
    axes.set(xscale="logit", yscale="logit", xlim=(2e-4, 1 - 2e-4), ylim=(2e-4, 1 - 2e-4))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set(xlabel=f"predicted P({positive})", ylabel=f"observed share of {positive}s")
    axes.legend()
    return Chart(
        title="Reliability",
        sentence=f"Observed against predicted share of {positive}s, on logit axes; mean distance"
        f" from the diagonal over photos: {', '.join(words)}.",
        svg=drawing.svg(),
        columns=("", "mean prediction", f"{positive}s of photos", "observed share"),
        rows=rows,
    )


def clip_curve(
    labels: Floats, probs: Floats, settings: Settings, competition: Competition
) -> Chart:
    """Expected log loss against the clip; `probs [n]` calibrated, without noise rate and clip."""
    clips = np.geomspace(1e-4, 0.05, 41)
    rates = {"clean labels": 0.0, "expected flips": competition.noise_rate}
    if competition.noise_spread:
        rates["two deviations more"] = competition.noise_rate + 2 * competition.noise_spread
    if not competition.noise_rate:
        del rates["expected flips"]
    mixed = with_flips(probs, settings.noise_rate)

    def loss(clip: float, rate: float) -> float:
        return float(board_losses(labels, np.clip(mixed, clip, 1 - clip), rate).mean())

    drawing = Drawing("clip")
    (axes,) = drawing.axes
    curves = {name: [loss(clip, rate) for clip in clips] for name, rate in rates.items()}
    for (name, losses), colour in zip(curves.items(), (GREEN, BLUE, ORANGE), strict=False):
        label = f"{name}, {rates[name]:.1%}" if rates[name] else name
        axes.plot(clips, losses, color=colour, label=label)
    axes.axvline(settings.clip, color=INK, linestyle="--", linewidth=1, label="chosen")
    make_logarithmic(axes.xaxis)
    axes.set(xlabel="clip", ylabel="expected log loss")
    drawing.legend()
    name, losses = list(curves.items())[min(1, len(curves) - 1)]
    best = int(np.argmin(losses))
    return Chart(
        title="Clip",
        sentence=f"Expected log loss on a leaderboard. The chosen clip {settings.clip:g} has"
        f" {loss(settings.clip, rates[name]):.5f} with {name}; the least, {losses[best]:.5f}, is at"
        f" {clips[best]:.2g}.",
        svg=drawing.svg(),
        columns=("clip", *curves),
        rows=[
            (f"{clip:.2g}", *(f"{losses[row]:.5f}" for losses in curves.values()))
            for row, clip in enumerate(clips)
            if row % 4 == 0
        ],
    )


def distribution(
    oof: pd.DataFrame,
    test_logits: Floats | None,
    classes: tuple[str, str],
    drift: Mapping[str, float] | None,
) -> Chart:
    """Logits of the out-of-fold photos by class, and of the test photos, in one scale.

    `drift`: AUC of a classifier that tells the test photos by their features, if it was measured.
    """
    shown = {
        f"{name}s": oof["logit"][oof["label"] == label].to_numpy(np.float64)
        for label, name in enumerate(classes)
    }
    drawing = Drawing("distribution", rows=2 if test_logits is not None else 1, height=3.4)
    edges = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, 31)
    counts = {name: _counts(logits, edges) for name, logits in shown.items()}
    axes = drawing.axes
    for (name, n), colour in zip(counts.items(), (BLUE, ORANGE), strict=True):
        axes[0].stairs(n, edges, color=colour, fill=True, alpha=0.55, label=name)
    axes[0].set(ylabel="out of fold")
    axes[0].legend()
    means = {"out of fold": sigmoid(oof["logit"]).mean()}
    if test_logits is not None:
        counts["test photos"] = _counts(test_logits, edges)
        axes[1].stairs(counts["test photos"], edges, color=GREEN, fill=True, alpha=0.55)
        axes[1].set(ylabel="test")
        means["test"] = sigmoid(test_logits).mean()
    axes[-1].set(xlabel=f"logit of P({classes[1]})")
    words = " and ".join(f"{mean:.1%} {name}" for name, mean in means.items())
    told = "not measured, make report does"
    if drift:
        told = f"{drift['auc']:.3f} ({drift['low']:.3f} to {drift['high']:.3f}); 0.5: none"
    return Chart(
        title="Predictions",
        sentence=f"Histograms of logits. Mean predicted share of {classes[1]}s: {words}. Drift, the"
        f" AUC of telling test from training photos by their features: {told}.",
        svg=drawing.svg(),
        columns=("logits", *counts),
        rows=[
            (f"{low:.0f} to {low + 1:.0f}", *(f"{n[row]:,}" for n in counts.values()))
            for row, low in enumerate(edges[:-1])
            if any(n[row] for n in counts.values())
        ],
    )


def _counts(logits: Floats, edges: Floats) -> NDArray[np.int64]:
    return np.histogram(np.clip(logits, edges[0], edges[-1]), edges)[0].astype(np.int64)


def loss_shares(losses: Floats) -> Chart:
    """How much of the whole loss the worst photos carry; `losses [n]` in any order."""
    ranked = np.sort(losses)[::-1]
    share = np.cumsum(ranked) / (ranked.sum() or 1.0)
    n = np.arange(1, len(ranked) + 1)
    drawing = Drawing("shares")
    (axes,) = drawing.axes
    axes.plot(n, share, color=BLUE)
    make_logarithmic(axes.xaxis)
    axes.set(xlabel="worst photos", ylabel="share of the loss", ylim=(0, 1.02))
    marks = [m for m in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if m <= len(n)]
    tenth = min(10, len(n))
    return Chart(
        title="Who carries the loss",
        sentence=f"Share of the worst {tenth} of {len(n):,}: {share[tenth - 1]:.0%}.",
        svg=drawing.svg(),
        columns=("worst photos", "share of the loss"),
        rows=[(f"{m:,}", f"{share[m - 1]:.1%}") for m in marks],
    )


def loss_pairs(oof: pd.DataFrame, other: pd.DataFrame, name: str) -> Chart:
    """Loss of each photo of `oof` (id, label, loss) beside that of the run called `name`.

    `other`: id, label and logit there. The largest losses are drawn, on logarithmic axes.
    """
    both = oof[["id", "label", "loss"]].merge(other[["id", "label", "logit"]], on=["id", "label"])
    both["theirs"] = per_photo_logit_loss(both["label"], both["logit"])
    saved = both["theirs"] - both["loss"]
    ranked = both.iloc[np.argsort(-saved.abs(), kind="stable")]
    drawn = both[["loss", "theirs"]].clip(lower=MIN_LOSS)
    drawn = drawn.loc[drawn.max(axis=1).nlargest(N_DRAWN).index]
    drawing = Drawing("pairs", height=3.2)
    (axes,) = drawing.axes
    ends = [MIN_LOSS, max(1.0, float(drawn.to_numpy().max(initial=0)))]
    axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1)
    axes.plot(drawn["theirs"], drawn["loss"], ".", color=BLUE, markersize=3)
    make_logarithmic(axes.xaxis, axes.yaxis)
    axes.set(xlabel=f"log loss in {name}", ylabel="log loss here")
    worse, better = (saved < -NOTABLE).sum(), (saved > NOTABLE).sum()
    return Chart(
        title="Photo by photo",
        sentence=f"{counted(len(both), 'photo')} held out here and in {name}: {better:,} cost less"
        f" here by more than {NOTABLE:g}, {worse:,} more; on the dashed line both cost the same.",
        svg=drawing.svg(),
        columns=("largest differences", "here", name, "gain"),
        rows=[
            (id, f"{own:.4f}", f"{their:.4f}", f"{their - own:+.4f}")
            for id, own, their in ranked[["id", "loss", "theirs"]]
            .head(N_DIFFERING)
            .itertuples(index=False)
        ],
    )


def work_times(times: pd.DataFrame) -> Chart:
    """Where the time went; `times` has work, photos and seconds."""
    kinds = times.assign(kind=times["work"].str.replace(r" \d+$", "s", regex=True))
    totals = kinds.groupby("kind", sort=False)["seconds"].sum()
    drawing = Drawing("times", height=0.9 + 0.35 * len(totals))
    (axes,) = drawing.axes
    axes.barh(range(len(totals)), totals, color=BLUE, height=0.6)
    axes.set_yticks(range(len(totals)), totals.index)
    axes.set(xlabel="seconds", ylim=(len(totals) - 0.5, -0.5))
    words = ", ".join(f"{kind} {seconds:,.1f} s" for kind, seconds in totals.items())
    return Chart(
        title="Where the time went",
        sentence=f"{words}. The first fold also computes what all folds share.",
        svg=drawing.svg(),
        columns=("work", "photos", "seconds", "photos/s"),
        rows=[
            (work, f"{n:,}", f"{seconds:,.1f}", f"{n / seconds:,.0f}" if seconds else "-")
            for work, n, seconds in times[["work", "photos", "seconds"]].itertuples(index=False)
        ],
    )
