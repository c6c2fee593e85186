"""The script that is pushed: one file, which carries comp itself."""

import base64
import io
import json
import tarfile
from dataclasses import asdict

from comp.errors import UserError
from comp.remote.job import CODE, Job
from comp.store import PACKED_COMMIT, code_commit

MAX_BYTES = 900_000  # of a script; Kaggle is known to take 222 kB and believed to take 1 MB
SCRIPT = '''"""A run of comp, pushed by `make remote`: this file carries the code."""
import base64, io, json, os, pathlib, sys, tarfile
root = pathlib.Path(os.environ.get("COMP_KAGGLE", "/kaggle"))
code = root / "temp" / "code"
packed = io.BytesIO(base64.b64decode("{code}"))
tarfile.open(fileobj=packed, mode="r:xz").extractall(code, filter="data")
sys.path.insert(0, str(code))
from comp.remote.job import Job, do
if status := do(Job(**json.loads({job!r})), root):
    sys.exit(status)  # a notebook's runner takes any exit for a failure
'''


def script_for(job: Job) -> str:
    """The text of a Python file that does `job` in /kaggle. UserError if Kaggle may not take it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as tar:
        for path in sorted(CODE.joinpath("comp").rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                tar.add(path, path.relative_to(CODE))
        commit = code_commit(CODE / "comp").encode()
        entry = tarfile.TarInfo(f"comp/{PACKED_COMMIT}")
        entry.size = len(commit)
        tar.addfile(entry, io.BytesIO(commit))
    code = base64.b64encode(packed.getvalue()).decode()
    text = SCRIPT.format(code=code, job=json.dumps(asdict(job)))
    if len(text) > MAX_BYTES:
        too_large = f"the script has {len(text):,} bytes, of which Kaggle may refuse all"
        raise UserError(f"{too_large} above {MAX_BYTES:,}: move large files out of {CODE / 'comp'}")
    return text
