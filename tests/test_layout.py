"""The house: data flows one way, and each heavy library has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

COMP = Path(__file__).parents[1] / "comp"
FLOW = [
    "kaggle",
    "data",
    "train",
    "predict",
    "submit",
    "doctor",
    "rehearsal",
]  # each may import from itself, from those before it, and from the top level
DOORS = {
    "kaggle": "comp/kaggle/",
    "kagglesdk": "comp/kaggle/",
    "requests": "comp/kaggle/",
    "timm": "comp/network/",
    "huggingface_hub": "comp/train/backbone.py",
    "albumentations": "comp/train/augment.py",
    "cv2": "comp/train/augment.py",
    "rich": "comp/progress.py",
    "scipy": ("comp/predict/blend.py", "comp/data/duplicates.py"),
    "sklearn": "comp/train/classical.py",
    "matplotlib": "comp/plots.py",
    "fastai": (),  # tests/bench alone
    "tests": (),
}
MODULES = sorted(COMP.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(COMP)))
def test_a_module_imports_only_what_flows_into_it_and_heavy_libraries_only_at_their_door(
    path: Path,
) -> None:
    place = path.relative_to(COMP).with_suffix("").parts
    for name in imports_of(path):
        root, *rest = name.split(".")
        if root == "comp" and rest and rest[0] in FLOW and place[0] != "__main__":
            assert place[0] in FLOW, f"{path} is at the top and imports {name}"
            assert FLOW.index(rest[0]) <= FLOW.index(place[0]), (
                f"{path} imports {name}, which comes after it"
            )
        if root in DOORS:
            assert f"comp/{path.relative_to(COMP)}".startswith(DOORS[root]), (
                f"{path} imports {root}, whose door is {DOORS[root]}"
            )


def test_help_and_submit_need_no_torch() -> None:
    code = "import sys, comp.__main__, comp.submit.stage, comp.train.run, comp.kaggle; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
