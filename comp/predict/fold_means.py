"""Means over folds, as test photos get them, for photos whose labels are known.

A test photo has a logit from each fold's head and is given their mean; an out-of-fold photo has one alone. So heads are solved anew, each
without two folds, and score both: then every photo has a logit from all heads but those that saw it, n - 1 of n folds, each from a head
that learnt from n - 2. They compare ways of averaging; the log loss of a run is another, whose heads learn from n - 1 folds.
"""

from itertools import combinations

import numpy as np
import torch

from comp.metric import Floats
from comp.progress import Reporter
from comp.recipe import Head, Recipe
from comp.store import Workspace
from comp.train.device import Device
from comp.train.head import LinearHead
from comp.train.run import open_run
from comp.train.stage import solved_head
from comp.train.workbench import open_workbench

LEAST = 3  # folds: with two, no head has anything to learn from


def fold_logits(
    workspace: Workspace, recipe: Recipe, device: Device, reporter: Reporter
) -> Floats | None:
    """Logits [n, folds - 1] of the photos of oof.csv, each from heads that saw neither it nor its fold; None where no heads are solved.

    The penalty is the median of those that the run chose.
    """
    training, n_folds = recipe.training, recipe.folds.n
    if (
        not isinstance(training, Head)
        or recipe.folds.split is not None
        or recipe.folds.fit is not None
        or n_folds < LEAST
    ):
        return None
    bench = open_workbench(open_run(workspace, recipe), device, reporter, with_test=False)
    embedder, _ = bench.frozen(bench.backbone())
    heads = [bench.fitted(fold, embedder)[1] for fold in bench.run.folds]
    penalty = float(np.median([head.penalty for head in heads if isinstance(head, LinearHead)]))
    photos, ids, fold = bench.photos, list(bench.photos["id"]), bench.photos["fold"].to_numpy()
    learnt, scored = (
        bench.mean_features(embedder, ids, bench.views(training.views)),
        bench.mean_features(embedder, ids, bench.views()),
    )
    columns: list[list[float]] = [[] for _ in ids]
    pairs = list(combinations(range(n_folds), 2))
    with reporter.track("heads without two folds", len(pairs), "heads") as advance:
        for pair in pairs:
            held = np.isin(fold, pair)
            once = training.replace(penalties=(penalty,))
            head = solved_head(learnt, photos.assign(fold=held.astype(int)), 1, once, recipe.seed)
            for row, logit in zip(
                np.flatnonzero(held),
                head.logits(torch.from_numpy(scored[held])).tolist(),
                strict=True,
            ):
                columns[row].append(logit)
            advance()
    return np.array(columns)
