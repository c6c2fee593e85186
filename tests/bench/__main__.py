"""`make bench`: speed and score of bare models, our stages and their peers, side by side.

1. The photos are laid out, the same for everybody.
2. Each round runs every row once, in a new order. A row prepares and warms up before its first
   round; that is not timed.
3. Peers that run for their score, and passes that measure peak memory, run once.
4. Medians with the least and the most, ratios within rounds beside what we ask, all rounds as JSON.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from comp.arguments import words_of
from comp.errors import UserError
from comp.progress import Reporter
from comp.store import Workspace, write_json
from tests.bench.catalogue import ROWS, choose
from tests.bench.photos import lay_out, read_photos
from tests.bench.report import figures_of, origin, print_tables
from tests.bench.rows import Row, Setup, measure


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if it did what was asked, 1 after a failure that the user can act on, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    add = parser.add_argument
    add("--workspace", type=Path, default=Path(), help="of data/ and runs/ (default: here)")
    add("--archive", type=Path, help="a zip like Kaggle's, in the place of data/")
    add("--solution", type=Path, help="its labels: a CSV of id,label with 0 or 1")
    add("--rows", nargs="+", metavar="ROW", help=f"memory, {', '.join(ROWS)}")
    add("--rounds", type=int, default=3, help="how often (default: 3)")
    add("--photos", type=int, default=2000, help="photos at most (default: 2000)")
    add("--full", action="store_true", help="also scores of peers, our tail, memory: half an hour")
    options, reporter = parser.parse_args(arguments), Reporter()
    try:
        names, home = options.rows and words_of(options.rows), options.workspace.resolve()
        rows = choose(names, options.full, reporter)
        root = lay_out(home, options.archive, options.solution, options.photos, reporter)
        bench(home, rows, Setup(root=root), options.rounds, reporter)
    except UserError as error:
        reporter.fail(str(error))
        return 1
    except KeyboardInterrupt:
        reporter.fail("stopped")
        return 130
    return 0


def bench(home: Path, rows: list[Row], setup: Setup, n_rounds: int, reporter: Reporter) -> Path:
    """Measure `rows`, print the tables and write the JSON file under `home`/runs; its path."""
    if n_rounds < 1:
        raise UserError(f"a benchmark takes at least one round, got {n_rounds}")
    began, found = datetime.now(UTC), origin()
    photos = read_photos(setup.root)["split"].value_counts().to_dict()
    reporter.say(
        f"{len(rows)} rows, {n_rounds} rounds; {photos['train']:,} photos to train on,"
        f" {photos['test']:,} held out"
    )
    rounds, failed = measure(rows, setup, n_rounds, reporter)
    print_tables([row for row in rows if row.name not in failed], rounds, reporter)
    path = Workspace(home).runs / f"bench-{began:%Y%m%dT%H%M%SZ}.json"
    found |= {"began": began.isoformat(timespec="seconds"), "photos": photos, "setup": setup}
    targets = [  # JSON has no infinity
        {key: None if value == math.inf else value for key, value in figure.items()}
        for figure in figures_of(rounds)
    ]
    found |= {"failed": failed, "rounds": rounds, "targets": targets}
    write_json(path, found)
    reporter.say(f"all rounds are in {path}")
    return path


if __name__ == "__main__":
    sys.exit(main())
