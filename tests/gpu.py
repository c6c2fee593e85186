"""`make gpu`: what only a GPU can show, in at most nine minutes and without a network.

1. The tests marked `gpu`: numbers like a CPU's, float16, training that goes on after a stop.
2. The benchmark's rows for a GPU: a step bare and in our loop, compiled, and the loader alone.
3. Lite2 with its packaged weights, every layer tuned, through all four stages.

A part that fails or takes too long stops no other. All is written to one JSON file. With
`--device cpu` the same parts run small, to test this command.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from comp.progress import Reporter
from comp.rehearsal.drawing import write_edition
from comp.store import write_json
from tests.bench.catalogue import ROWS
from tests.bench.report import origin

ROOT = Path(__file__).parents[1]
DRAWN = {"seed": 0, "n_train": 800, "n_test": 200}
LITE2 = "model.backbone=tf_efficientnet_lite2", "training.epochs=3"
ON_CPU = "folds.n_photos=200", "folds.n=2", "training.epochs=1", "pixels.size_px=192"


def parts_of(device: str, edition: Sequence[str], home: Path) -> dict[str, tuple[int, list[str]]]:
    """By name, the seconds that a part may take and the words of its command."""
    is_small = device == "cpu"
    rows = ["step-frozen"] if is_small else [name for name in ROWS if name.startswith("gpu-")]
    size = ["--rounds", "1", "--photos", "200"] if is_small else ["--rounds", "3"]
    tests = ["pytest", "-q", "-p", "no:cacheprovider", "-rs", "-m", "gpu"]
    tune = ["rehearsal", "--recipe", "lite0_finetune", "--device", device, "--set", *LITE2]
    where = ["--workspace", str(home), *edition]
    return {
        "tests": (120, [*tests, "tests/test_gpu.py"]),
        "bench": (240, ["tests.bench", *where, *size, "--rows", *rows]),
        "lite2": (150, ["comp", *tune, *(ON_CPU if is_small else ()), *where]),
    }


def perform(limit_s: int, words: list[str]) -> dict[str, Any]:
    """How a part ended, its seconds, and the end of what it printed."""
    print("python -m", *words, flush=True)
    began = time.monotonic()
    command = [sys.executable, "-m", *words]
    try:
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(command, cwd=ROOT, timeout=limit_s, text=True, check=False, **both)
        ended, printed = f"status {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as late:
        ended, printed = f"stopped after {limit_s} s", (late.stdout or b"").decode()
    print(printed, flush=True)
    return {
        "ended": ended,
        "seconds": round(time.monotonic() - began, 1),
        "command": words,
        "printed": printed.splitlines()[-100:],
    }


def figures_in(home: Path) -> dict[str, Any]:
    """What the benchmark and the runs under `home` wrote."""
    benches = [json.loads(path.read_text()) for path in home.glob("runs/bench-*.json")]
    names = (".rehearsal/*/runs/*/run.json", ".rehearsal/*/runs/*/calibration.json")
    runs = [json.loads(path.read_text()) for name in names for path in home.glob(name)]
    ledgers = [pd.read_csv(path) for path in home.glob(".rehearsal/*/submissions/ledger.csv")]
    return {"bench": benches, "runs": runs, "ledger": [x.to_dict("records") for x in ledgers]}


def main() -> int:
    """0 if every part ended well, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu")
    add = parser.add_argument
    add("--device", default="cuda", help="cpu: a small try of this command (default: cuda)")
    add("--archive", type=Path, help="a zip like Kaggle's, in the place of drawn pictures")
    add("--solution", type=Path, help="its labels: a CSV of id,label with 0 or 1")
    add("--output", type=Path, default=Path("runs/gpu.json"), help="(default: runs/gpu.json)")
    options, began, results = parser.parse_args(), time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        home, archive, solution = Path(folder), options.archive, options.solution
        if archive is None or solution is None:
            archive, solution = write_edition(home, reporter=Reporter(), **DRAWN)
        edition = ["--archive", str(archive.resolve()), "--solution", str(solution.resolve())]
        for name, part in parts_of(options.device, edition, home).items():
            results[name] = perform(*part)
        found = {"origin": origin(), "parts": results, **figures_in(home)}
    found["seconds"] = round(time.monotonic() - began, 1)
    write_json(options.output.resolve(), found)
    for name, result in results.items():
        print(f"{name}: {result['ended']}, {result['seconds']} s")
    print(f"all of it is in {options.output}")
    return int(any(result["ended"] != "status 0" for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
