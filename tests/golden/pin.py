"""Pins what the commands make of a small fixed edition, so that a rebuild can be compared with it.

    python tests/golden/pin.py                  compare with tests/golden/pinned, as the tests do
    python tests/golden/pin.py --only NAME ...  pin these goldens anew, such as lite0_head
    python tests/golden/pin.py --out DIR        write everything in full precision: on one machine,
                                                two commits compare by `diff -r DIR_A DIR_B`

Only the command line is called, so that this survives any change of the modules behind it.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch

HERE = Path(__file__).resolve().parent
PINNED = HERE / "pinned"
HEAD = "--set pixels.size_px=128 training.penalties=[1e-3,1e-2,1e-1]"
REHEARSED = {  # golden: recipe and options
    "lite0_head": f"lite0_head {HEAD}",
    "lite0_tail": "lite0_tail --set pixels.size_px=96 training.epochs=1"
    " training.cached_views=2 training.batch_size=8 training.wise_ft=0.5",
    "lite0_finetune": "lite0_finetune --set pixels.size_px=64 folds.n=2 training.batch_size=8"
    " training.head_start=false training.peak_lr=1e-3 training.epochs=4",
    "vgg16_last_layer": "vgg16_last_layer --set pixels.size_px=32 folds.n=2 training.epochs=3"
    " training.batch_size=8 training.peak_lr=1 model.weights=random",
    "svm": "vgg19_block4_svm --set pixels.size_px=128 model.backbone=tf_efficientnet_lite0"
    " model.layer=blocks.6",
    "ensemble": f"ensemble {HEAD}",
}
LEARNS_NOTHING = "vgg16_last_layer"  # random weights: status 1, after everything is written
BLENDED = {  # golden: runs that are finished by then, and the method
    "blend_greedy": "lite0_head vgg19_block4_svm --method greedy",
    "blend_features": "lite0_head lite1_head --method features",
}
PRINTED = {  # golden file: command whose numbers are pinned; its words may change
    "forecast": f"forecast --recipe lite0_head {HEAD}",
    "calibrate": f"calibrate --recipe lite0_head {HEAD}",
    "compare": "compare --a lite0_head --b lite1_head",
}
HASH = re.compile(r"(?<![\w.])(?:[0-9a-f]{10,64}|(?<=-)[0-9a-f]{8})\b")
DECIMAL = re.compile(r"(?<![\w.])[+-]?\d+\.\d+(?:e[+-]?\d+)?")
ANY_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?")
TOLERANCE = 1e-3  # of a logit, between machines; relative above 1


def produce(home: Path, *, exact: bool) -> dict[str, str]:
    """Texts by "golden/file", made in the empty folder `home` by one thread.

    `exact`: in full precision, and by this CPU's fastest arithmetic. Otherwise numbers have six
    decimals, and bfloat16 is off, because only some CPUs have it. OMP_NUM_THREADS: more threads.
    """
    fast, threads = exact and torch.cpu._is_avx512_bf16_supported(), torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    with (
        patch.dict(os.environ, COLUMNS="100", NO_COLOR="1", TERM="dumb"),
        patch("torch.cpu._is_avx512_bf16_supported", lambda: fast),
    ):
        texts = _helps() | _runs(home, exact=exact)
    torch.set_num_threads(threads)
    return texts if exact else {name: DECIMAL.sub(_rounded, text) for name, text in texts.items()}


def _helps() -> dict[str, str]:
    top = _call("--help")
    commands = re.findall(r"^    (\w+)(?: |$)", top, re.MULTILINE)
    return {"help/comp.txt": top} | {f"help/{name}.txt": _call(name, "--help") for name in commands}


def _runs(home: Path, *, exact: bool) -> dict[str, str]:
    edition = ["--archive", HERE / "archive.zip", "--solution", HERE / "solution.csv"]
    texts = {}
    for golden, recipe in REHEARSED.items():
        chosen = ["--device", "cpu", "--workspace", home, "--recipe", *recipe.split()]
        _call("rehearsal", *edition, *chosen, status=int(golden == LEARNS_NOTHING))
        (root,) = (home / ".rehearsal").iterdir()
        row = pd.read_csv(root / "submissions" / "ledger.csv", dtype=str).tail(1)
        file = row["file"].item()
        row = row.drop(columns=["when", "sha256", "fingerprint", "commit"], errors="ignore")
        texts[f"{golden}/ledger.csv"] = HASH.sub("<hash>", row.to_csv(index=False))
        texts[f"{golden}/submission.csv"] = (root / "submissions" / file).read_text()
        texts |= _run(golden, root / "runs" / Path(file).stem)
    for golden, arguments in BLENDED.items():
        before = set((root / "runs").iterdir())
        _call("blend", *arguments.split(), "--workspace", root)
        (folder,) = set((root / "runs").iterdir()) - before
        texts |= _run(golden, folder)
    for name, arguments in PRINTED.items():
        said = _call(*arguments.split(), "--workspace", root).replace(str(root), "")
        said = HASH.sub("", said)
        texts[f"printed/{name}.txt"] = "\n".join(ANY_NUMBER.findall(said)) + "\n"
    for split in ("train.csv", "test.csv"):
        texts[f"data/{split}"] = (root / "data" / split).read_text()
    return texts | _files(root, exact=exact)


def _run(golden: str, folder: Path) -> dict[str, str]:
    figures = json.loads((folder / "calibration.json").read_text())
    kept = {key: figures[key] for key in figures if key not in ("of", "says")}  # hashes, words
    return {
        f"{golden}/calibration.json": json.dumps(kept, indent=1, sort_keys=True) + "\n",
        f"{golden}/oof.csv": (folder / "oof.csv").read_text(),
        f"{golden}/test.csv": (folder / "test.csv").read_text(),
    }


def _files(root: Path, *, exact: bool) -> dict[str, str]:
    """The names of all files but locks; if `exact`, also the digests of their contents."""
    names = {
        path: HASH.sub("<hash>", path.relative_to(root).as_posix())
        for folder in ("data", "runs", "submissions")
        for path in (root / folder).rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }
    texts = {"files/files.txt": "\n".join(sorted(names.values())) + "\n"}
    if exact:
        content = (".bin", ".npy", ".safetensors", ".csv", ".jpg")
        lines = [
            f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n"
            for path, name in names.items()
            if path.suffix in content and path.name != "ledger.csv"
        ]
        texts["digests/digests.txt"] = "".join(sorted(lines))
    return texts


def _call(*arguments: object, status: int = 0) -> str:
    """What the command prints to stdout; AssertionError if it ends with another status."""
    from comp.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            got = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # --help
            got = int(stop.code or 0)
    assert got == status, f"{arguments} ended with {got}:\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue()


def _rounded(number: re.Match[str]) -> str:
    text = number.group()
    is_long = "e" in text or len(text.partition(".")[2]) > 6
    return f"{round(float(text), 6) + 0.0:.6f}" if is_long else text


def difference(name: str, old: str, new: str) -> str | None:
    """The first difference of two texts, or None: words are equal, measured numbers nearly so.

    White space does not count: versions of Python break the lines of a help text differently.
    """
    for a, b in zip(DECIMAL.sub("#", old).split(), DECIMAL.sub("#", new).split(), strict=False):
        if a != b:
            return f"{name}: {a!r} was pinned, {b!r} was made"
    if len(old.split()) != len(new.split()):
        return f"{name}: {len(old.split())} words were pinned, {len(new.split())} were made"
    tolerance = TOLERANCE / 4 if name.endswith("submission.csv") else TOLERANCE
    for a, b in zip(DECIMAL.findall(old), DECIMAL.findall(new), strict=True):
        is_measured = max(len(number.partition(".")[2]) for number in (a, b)) >= 5
        allowed = tolerance * max(1.0, abs(float(a))) if is_measured else 0.0
        if abs(float(a) - float(b)) > allowed:
            return f"{name}: {a} was pinned, {b} was made"
    return None


def pinned() -> dict[str, str]:
    """What tests/golden/pinned holds, by "golden/file"."""
    files = [path for path in PINNED.rglob("*") if path.is_file()]
    return {path.relative_to(PINNED).as_posix(): path.read_text() for path in files}


def write(texts: dict[str, str], folder: Path) -> None:
    """Write `texts` under `folder`, in the place of what was there of the same goldens."""
    for golden in {name.partition("/")[0] for name in texts}:
        shutil.rmtree(folder / golden, ignore_errors=True)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="pin these anew")
    parser.add_argument("--out", type=Path, help="write everything there, in full precision")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        made = produce(Path(home), exact=options.out is not None)
    if options.out:
        write(made, options.out)
        return 0
    chosen = {name: made[name] for name in made if name.partition("/")[0] in options.only}
    write(chosen, PINNED)
    old = pinned()
    lines = [difference(name, old.get(name, ""), made.get(name, "")) for name in {**old, **made}]
    print("\n".join(filter(None, lines)) or "equal")
    return int(any(lines))


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))
    sys.exit(_main())
