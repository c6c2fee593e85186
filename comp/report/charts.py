"""The figures of a report, each with a sentence for those who cannot see it, and its numbers."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

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
    rows, ends = [], []
    for fold, points in histories.items():
        loss.plot(points["step"], points["loss"], label=f"fold {fold}")
        rate.plot(points["step"], points["lr"])
        kept = points.iloc[np.unique(np.linspace(0, len(points) - 1, N_SAMPLED).astype(int))]
        cells = kept[["step", "loss", "lr"]].itertuples(index=False)
        rows += [(fold, f"{step:,.0f}", f"{y:.4f}", f"{lr:.2e}") for step, y, lr in cells]
        ends.append(points["loss"].iloc[[0, -1]])
    loss.set(ylabel="training loss", ylim=(0, None))
    rate.set(ylabel="learning rate", xlabel="step", ylim=(0, None))
    rate.ticklabel_format(axis="y", scilimits=(0, 0))
    if len(histories) <= len(SERIES):
        drawing.legend()
    first, last = np.mean(ends, axis=0)
    over = f"mean of {counted(len(histories), 'fold')}"
    sentence = f"Training loss, {over}: {first:.4f} at first, {last:.4f} at the end."
    columns = ("fold", "step", "training loss", "learning rate")
    return Chart("Learning curves", sentence, drawing.svg(), columns, rows)


def fold_losses(oof: pd.DataFrame, names: Mapping[int, str]) -> Chart:
    """Log loss of each fold of `oof` (fold, loss, group, is_right), with intervals."""
    parts = {name: oof[oof["fold"] == fold] for fold, name in names.items()} | {"all": oof}
    drawing = Drawing("folds", height=1.2 + 0.25 * len(parts))
    (axes,) = drawing.axes
    rows, means = [], []
    for row, (name, part) in enumerate(parts.items()):
        mean, right = part["loss"].mean(), part["is_right"].mean()
        low, high = bootstrap_interval(part["loss"], part["group"])
        colour = INK if name == "all" else BLUE
        axes.plot([low, high], [row, row], color=colour, linewidth=1.5)
        axes.plot(mean, row, "o", color=colour)
        interval = f"{low:.4f}-{high:.4f}"
        rows.append((name, f"{len(part):,}", f"{mean:.5f}", interval, f"{right:.2%}"))
        means.append(mean)
    *of_folds, whole = means
    axes.axvline(whole, color=MUTED, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(parts)), parts)
    axes.set(xlabel="log loss, 95 % interval", ylim=(len(parts) - 0.5, -0.5), xlim=(0, None))
    by_fold = f"by fold from {min(of_folds):.4f} to {max(of_folds):.4f}"
    sentence = f"Held-out log loss: {whole:.4f} over all photos, {by_fold}."
    columns = ("", "photos", "log loss", "95 % interval", "accuracy")
    return Chart("Folds", sentence, drawing.svg(), columns, rows)


def reliability(labels: Floats, by_name: Mapping[str, Floats], positive: str) -> Chart:
    """Observed against predicted share of the positive class, in bins of each of `by_name`."""
    drawing = Drawing("reliability", height=3.2)
    (axes,) = drawing.axes
    ends = (3e-4, 1 - 3e-4)
    axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1, label="perfect")
    rows, words = [], []
    for (name, probs), colour, marker in zip(by_name.items(), (ORANGE, BLUE), "so", strict=False):
        bins = pd.DataFrame({"prob": probs, "label": labels}).groupby(np.digitize(probs, BIN_EDGES))
        n, hits = np.asarray(bins["label"].agg(["count", "sum"]), np.float64).T
        mean = bins["prob"].mean().to_numpy()
        x, share = np.clip(mean, *ends), np.clip(hits / n, *ends)
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
    distance = f"mean distance from the diagonal over photos: {', '.join(words)}"
    sentence = f"Observed against predicted share of {positive}s, on logit axes; {distance}."
    columns = ("", "mean prediction", f"{positive}s of photos", "observed share")
    return Chart("Reliability", sentence, drawing.svg(), columns, rows)


def clip_curve(
    labels: Floats, probs: Floats, settings: Settings, competition: Competition
) -> Chart:
    """Expected log loss against the clip; `probs [n]` calibrated, without noise rate and clip."""
    clips, rate = np.geomspace(1e-4, 0.05, 41), competition.noise_rate
    more = rate + 2 * competition.noise_spread
    names = {more: "two deviations more", rate: "expected flips", 0.0: "clean labels"}
    rates = {name: rate for rate, name in sorted(names.items())}
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
    expected, best = curves[names[rate]], int(np.argmin(curves[names[rate]]))
    chosen = f"{settings.clip:g} has {loss(settings.clip, rate):.5f} with {names[rate]}"
    least = f"the least, {expected[best]:.5f}, is at {clips[best]:.2g}"
    sentence = f"Expected log loss on a leaderboard. The chosen clip {chosen}; {least}."
    numbers = list(zip(clips, *curves.values(), strict=True))[::4]
    rows = [(f"{clip:.2g}", *(f"{each:.5f}" for each in losses)) for clip, *losses in numbers]
    return Chart("Clip", sentence, drawing.svg(), ("clip", *curves), rows)


def distribution(
    oof: pd.DataFrame,
    test_logits: Floats | None,
    classes: tuple[str, str],
    drift: Mapping[str, float] | None,
) -> Chart:
    """Logits of out-of-fold photos by class, and of test photos; `drift` of these, if measured."""
    logits = {f"{name}s": oof["logit"][oof["label"] == k] for k, name in enumerate(classes)}
    words = f"{sigmoid(oof['logit']).mean():.1%} out of fold"
    if test_logits is not None:
        logits["test photos"] = pd.Series(test_logits)
        words += f" and {sigmoid(test_logits).mean():.1%} test"
    edges = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, 31)
    counts = {
        name: np.histogram(each.clip(-LOGIT_LIMIT, LOGIT_LIMIT), edges)[0]
        for name, each in logits.items()
    }
    drawing = Drawing("distribution", rows=len(counts) - 1, height=3.4)
    places = ((BLUE, drawing.axes[0]), (ORANGE, drawing.axes[0]), (GREEN, drawing.axes[-1]))
    for (name, n), (colour, axes) in zip(counts.items(), places, strict=False):
        axes.stairs(n, edges, color=colour, fill=True, alpha=0.55, label=name)
        axes.set(ylabel="photos")
        axes.legend()
    drawing.axes[-1].set(xlabel=f"logit of P({classes[1]})")
    told = "not measured, make report does"
    if drift:
        told = f"{drift['auc']:.3f} ({drift['low']:.3f} to {drift['high']:.3f}); 0.5: none"
    sentence = (
        f"Histograms of logits. Mean predicted share of {classes[1]}s: {words}. Drift, the AUC of"
        f" telling test from training photos by their features: {told}."
    )
    rows = [
        (f"{low:.0f} to {low + 1:.0f}", *(f"{n:,}" for n in each))
        for low, *each in zip(edges[:-1], *counts.values(), strict=True)
        if any(each)
    ]
    return Chart("Predictions", sentence, drawing.svg(), ("logits", *counts), rows)


def loss_pairs(oof: pd.DataFrame, other: pd.DataFrame, name: str) -> Chart:
    """Largest losses of `oof` (id, label, loss) beside those of `other` (id, label, logit)."""
    both = oof[["id", "label", "loss"]].merge(other[["id", "label", "logit"]], on=["id", "label"])
    both["theirs"] = per_photo_logit_loss(both["label"], both["logit"])
    both["saved"] = both["theirs"] - both["loss"]
    drawn = both[["loss", "theirs"]].clip(lower=MIN_LOSS)
    drawn = drawn.loc[drawn.max(axis=1).nlargest(N_DRAWN).index]
    drawing = Drawing("pairs", height=3.2)
    (axes,) = drawing.axes
    ends = [MIN_LOSS, max(1.0, float(drawn.to_numpy().max(initial=0)))]
    axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1)
    axes.plot(drawn["theirs"], drawn["loss"], ".", color=BLUE, markersize=3)
    make_logarithmic(axes.xaxis, axes.yaxis)
    axes.set(xlabel=f"log loss in {name}", ylabel="log loss here")
    worse, better = (both["saved"] < -NOTABLE).sum(), (both["saved"] > NOTABLE).sum()
    sentence = (
        f"{len(both):,} photos held out here and in {name}: {better:,} cost less here by more than"
        f" {NOTABLE:g}, {worse:,} more; on the dashed line both cost the same."
    )
    ranked = both.sort_values("saved", key=np.abs, ascending=False, kind="stable")
    cells = ranked[["id", "loss", "theirs", "saved"]].head(N_DIFFERING).itertuples(index=False)
    rows = [(id, f"{own:.4f}", f"{their:.4f}", f"{gain:+.4f}") for id, own, their, gain in cells]
    columns = ("largest differences", "here", name, "gain")
    return Chart("Photo by photo", sentence, drawing.svg(), columns, rows)


def work_times(times: pd.DataFrame, device: str) -> Chart:
    """Where the time went on `device`; `times` has work, photos and seconds."""
    kinds = times["work"].str.replace(r" \d+$", "s", regex=True)
    totals = times.groupby(kinds, sort=False)["seconds"].sum()
    drawing = Drawing("times", height=0.9 + 0.35 * len(totals))
    (axes,) = drawing.axes
    axes.barh(range(len(totals)), totals, color=BLUE, height=0.6)
    axes.set_yticks(range(len(totals)), totals.index)
    axes.set(xlabel="seconds", ylim=(len(totals) - 0.5, -0.5))
    words = ", ".join(f"{kind} {seconds:,.1f} s" for kind, seconds in totals.items())
    sentence = f"On {device}: {words}. The first fold also computes what all folds share."
    rows = [
        (work, f"{n:,}", f"{seconds:,.1f}", f"{n / seconds:,.0f}" if seconds else "-")
        for work, n, seconds in times[["work", "photos", "seconds"]].itertuples(index=False)
    ]
    columns = ("work", "photos", "seconds", "photos/s")
    return Chart("Where the time went", sentence, drawing.svg(), columns, rows)
