"""The stage `bench`: rows measured in turn, tables, a JSON file.

1. The photos are laid out, the same for everybody.
2. Each process that a row wants is started and its rows warm up in it; nothing of that is timed.
3. Every round runs every row once, in an order of its own, so that what neighbours on the machine do strikes all alike.
4. What runs for its score, or is a long pass, runs once.
5. Medians with the least and the most, ratios within rounds beside what is asked, and all rounds as JSON.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from comp.bench.catalogue import chosen, left_out
from comp.bench.child import Children
from comp.bench.hardware import origin
from comp.bench.photos import lay_out
from comp.bench.rows import Measured, Row, Setup
from comp.bench.targets import TARGETS, Round, time_to
from comp.competition import Competition
from comp.errors import UserError
from comp.progress import Reporter
from comp.recipe import Model
from comp.seeds import derive_seed
from comp.store import Workspace, plain, write_json

DEFAULT = Setup(root=Path(), model=Model(backbone="tf_efficientnet_lite0"))
FORMAT = 1  # of the JSON file


def bench(
    home: Path,
    competition: Competition,
    reporter: Reporter,
    *,
    archive: Path | None = None,
    solution: Path | None = None,
    names: Sequence[str] | None = None,
    n_rounds: int = 3,
    n_photos: int = 2000,
    full: bool = False,
    amounts: Setup = DEFAULT,
) -> Path:
    """Measure the rows called `names`, or all, in `n_rounds`; the JSON file, under `home`/runs.

    Of data/, or of an `archive` with its `solution`, `n_photos` are taken where there are more. `full` lets the peers that run for their
    score come to their end, and adds what is long.
    """
    if n_rounds < 1:
        raise UserError(f"a bench takes at least one round, got {n_rounds}")
    rows, began, found = chosen(names, full=full), datetime.now(UTC), origin()
    root, counts = lay_out(home, competition, archive, solution, n_photos, reporter)
    setup = replace(amounts, root=root, limit_s=None if full else amounts.limit_s)
    reporter.say(
        f"{len(rows)} rows, {n_rounds} rounds; {counts['learnt']:,} photos to learn from, {counts['held out']:,} held out"
    )
    orders = [
        _shuffled([row.name for row in rows if not row.once], number) for number in range(n_rounds)
    ]
    rounds, failed = _measured(rows, setup, orders, reporter)
    rows = [row for row in rows if row.name not in failed]
    _show(rows, rounds, reporter)
    path = Workspace(home).runs / f"bench-{began:%Y%m%dT%H%M%SZ}.json"
    found |= {
        "format": FORMAT,
        "began": began.isoformat(timespec="seconds"),
        "photos": counts,
        "setup": setup,
        "orders": orders,
        "failed": failed,
    }
    write_json(
        path,
        found
        | {"rows": [_row_json(row, rounds) for row in rows], "targets": _targets_json(rounds)},
    )
    for line in left_out() if names is None else []:
        reporter.say(line)
    reporter.say(f"all rounds are in {path}")
    return path


def _shuffled(names: list[str], number: int) -> list[str]:
    order = np.random.default_rng(derive_seed(0, "bench", number)).permutation(len(names))
    return [names[int(index)] for index in order]


def _measured(
    rows: list[Row], setup: Setup, orders: list[list[str]], reporter: Reporter
) -> tuple[list[Round], dict[str, str]]:
    """What was measured in each round by row, what is measured once in all of them; and why rows failed, which stops no other row."""
    rounds: list[dict[str, Measured]] = [{} for _ in orders]
    turns = [(name, [one]) for one, order in zip(rounds, orders, strict=True) for name in order]
    with Children({row.name: row.process for row in rows}, setup, reporter) as children:
        with reporter.track("warming up", len(orders[0]), "rows") as advance:
            for name in orders[0]:
                children.prepare(name)
                advance(note=name)
        for what, these in (
            ("rounds", turns),
            ("once", [(row.name, rounds) for row in rows if row.once]),
        ):
            with reporter.track(what, len(these), "rows") as advance:
                for name, into in these:
                    measured = children.measure(name)
                    if measured:
                        for one in into:
                            one[name] = measured
                    advance(note=name)
    if len(children.failed) == len(rows):
        name, why = next(iter(children.failed.items()))
        raise UserError(f"no row could be measured; {name}: {why.splitlines()[-1]}")
    return list(rounds), children.failed


def _show(rows: list[Row], rounds: list[Round], reporter: Reporter) -> None:
    columns = ("row", "seconds", "least-most", "core-s", "n/s", "n/core-s")
    again = [row for row in rows if not row.once]
    if again:
        reporter.table(
            f"median of {len(rounds)} rounds; n: photos, or views of them",
            columns,
            [_line(row, rounds) for row in again],
        )
    memory = [
        (row.what, rounds[0][row.name].done.figures)
        for row in rows
        if row.name.startswith("memory")
    ]
    if memory:
        lines = [
            (what, *(f"{value:,.0f}" for value in figures.values())) for what, figures in memory
        ]
        reporter.table("memory", ("", *memory[0][1]), lines)
    scored = [row for row in rows if rounds[0][row.name].done.looks]
    if scored:
        title = "log loss on the held-out photos, and seconds from raw photos to it"
        reporter.table(
            title,
            ("row", "seconds", "core-s", "log loss", "to .06", "to .03"),
            [_score(row, rounds) for row in scored],
        )
    figures = [
        (target, target.found(rounds, "wall"), target.found(rounds, "core")) for target in TARGETS
    ]
    found = [
        (one.text, one.asked, _figure(wall), _figure(core), one.met(wall))
        for one, wall, core in figures
        if wall is not None
    ]
    if found:
        reporter.table(
            "targets, met or not by wall time", ("", "asked", "wall", "core-s", "met"), found
        )


def _line(row: Row, rounds: list[Round]) -> tuple[str, ...]:
    measured = [one[row.name] for one in rounds]
    wall, core = ([one.spent(kind) for one in measured] for kind in ("wall", "core"))
    rates = [f"{median(1 / one.cost(kind) for one in measured):,.1f}" for kind in ("wall", "core")]
    spread = f"{min(wall):.2f}-{max(wall):.2f}"
    return (row.name, f"{median(wall):.2f}", spread, f"{median(core):.2f}", *rates)


def _score(row: Row, rounds: list[Round]) -> tuple[str, ...]:
    """The last look of the median round."""
    done = sorted((one[row.name].done for one in rounds), key=lambda done: done.looks[-1].wall_s)[
        len(rounds) // 2
    ]
    last, cut = done.looks[-1], ", cut off" if done.figures.get("cut off") else ""
    times = [time_to(done.looks, loss, "wall") for loss in (0.06, 0.03)]
    reached = [f"{time:.1f}" if time is not None else "not reached" for time in times]
    return (
        row.name + cut,
        f"{last.wall_s:.1f}",
        f"{last.core_s:.1f}",
        f"{last.log_loss:.4f}",
        *reached,
    )


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _row_json(row: Row, rounds: list[Round]) -> dict[str, Any]:
    seen = [plain(one[row.name]) for one in (rounds[:1] if row.once else rounds)]
    return {
        "name": row.name,
        "what": row.what,
        "process": row.process,
        "once": row.once,
        "rounds": seen,
    }


def _targets_json(rounds: list[Round]) -> list[dict[str, Any]]:
    lines = []
    for target in TARGETS:
        figures = {kind: target.found(rounds, kind) for kind in ("wall", "core")}
        written = {
            kind: value if value is not None and math.isfinite(value) else None
            for kind, value in figures.items()
        }
        lines.append(
            {
                "target": target.text,
                "asked": target.asked,
                **written,
                "met": target.met(figures["wall"]),
            }
        )
    return lines
