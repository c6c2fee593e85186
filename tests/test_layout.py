"""The layout of the package: data flows one way, names are unique, and modules stay small."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from comp.competition import COMPETITION
from comp.options import override
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipes import named
from comp.store import Workspace
from comp.train.stage import train

COMP = Path(__file__).parents[1] / "comp"
# each may import from itself and those before it; other files at the top only from each other
FLOW = ["kaggle", "data", "network", "train", "predict", "submit", "report"]
FLOW += ["remote", "doctor", "rehearsal", "arguments", "__main__", "notebook", "__init__"]
DOORS = {
    "kaggle": ("kaggle/",),
    "kagglesdk": ("kaggle/",),
    "requests": ("kaggle/",),
    "timm": ("network/backbone.py", "network/surgery.py"),
    "huggingface_hub": ("network/backbone.py",),
    "albumentations": ("train/augment.py",),
    "cv2": ("train/augment.py",),
    "sklearn": ("train/svm.py",),
    "scipy": (
        "data/folds.py",
        "predict/blend.py",
        "predict/calibrate.py",
        "report/ledger_page.py",
    ),
    "optuna": ("train/sweep.py",),
    "matplotlib": ("plots.py",),
    "jinja2": ("report/page.py",),
    "rich": ("progress.py",),
    "accelerate": ("train/tracking.py",),
    "argcomplete": ("arguments.py",),
    "onnxruntime": ("predict/portable.py",),
    "onnxscript": (),  # torch.onnx imports it
    "filelock": ("store.py",),
    "pydantic": ("options.py", "recipe.py", "predict/runs.py", "predict/calibrate.py"),
    "fastai": (),  # tests/bench alone
    "tests": (),
}
MAX_MODULE, MAX_FUNCTION = 300, 50  # lines
TREES = {
    str(path.relative_to(COMP)): ast.parse(path.read_text()) for path in sorted(COMP.rglob("*.py"))
}


def imports_of(tree: ast.Module) -> set[str]:
    """Modules that are imported anywhere in `tree`, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("name", TREES)
def test_imports_flow_one_way_and_heavy_libraries_stay_behind_their_doors(
    name: str,
) -> None:
    place = name.removesuffix(".py").partition("/")[0]
    for imported in imports_of(TREES[name]):
        root, _, rest = imported.partition(".")
        if root in DOORS:
            assert name.startswith(DOORS[root]), f"{root} is imported outside its door"
        target = rest.partition(".")[0]
        if root == "comp" and target in FLOW:
            assert place in FLOW, f"a file at the top imports {imported}"
            assert FLOW.index(target) <= FLOW.index(place), f"{imported} comes later"


def test_no_public_name_is_defined_in_two_modules() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            is_definition = isinstance(node, ast.FunctionDef | ast.ClassDef)
            if is_definition and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_modules_and_functions_are_short() -> None:
    n_lines = {name: len((COMP / name).read_text().splitlines()) for name in TREES}
    assert {name: n for name, n in n_lines.items() if n > MAX_MODULE} == {}
    n_lines = {
        f"{name}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: n for name, n in n_lines.items() if n > MAX_FUNCTION} == {}


def test_the_stage_that_trains_stays_an_overview() -> None:
    modules = {f"comp.{name.removesuffix('.py').replace('/', '.')}" for name in TREES}
    imported = imports_of(TREES["train/stage.py"]) & modules
    assert 0 < len(imported) <= 12, sorted(imported)


def test_finished_stages_submit_and_heads_on_kept_features_load_no_torch(
    drawn_copy: Workspace,
) -> None:
    settings = ["pixels.size_px=64", "folds.n=2"]
    recipe = override(named("lite0_head"), settings)
    train(drawn_copy, recipe, "cpu", Reporter())
    predict(drawn_copy, COMPETITION, recipe, "cpu", Reporter())
    words = ["--workspace", str(drawn_copy.root), "--recipe", "lite0_head", "--set", *settings]
    other_head = [*words, "training.penalties=[1e-3,1e-2]", "--device", "cpu"]
    some, more = "'torch', 'timm', 'sklearn', 'scipy'", ", 'matplotlib'"
    for code, names in (
        ("import comp.submit.stage, comp.train.run, comp.kaggle", some + more),
        (f"from comp.__main__ import main; assert main(['train', *{words}]) == 0", some + more),
        (f"from comp.__main__ import main; assert main(['predict', *{words}]) == 0", some + more),
        (f"from comp.__main__ import main; assert main(['train', *{other_head}]) == 0", some),
        (f"from comp.__main__ import main; assert main(['predict', *{other_head}]) == 0", some),
    ):
        loaded = f"sorted({{{names}}} & set(sys.modules))"
        command = [sys.executable, "-c", f"import sys; {code}; sys.exit(' '.join({loaded}) or 0)"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        shown = [line for line in done.stderr.splitlines() if not line.endswith(("/s)", " each)"))]
        assert (done.returncode, shown) == (0, []), code
