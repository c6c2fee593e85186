"""What can go wrong with a session on Kaggle: how `make remote` ends, and how it goes on.

Whatever happened, there is never a second session beside the first, and the next call without
faults brings the run home.
"""

import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finished_run import TINY_HEAD
from kaggle_stand import make_competition
from remote_stand import FINISH, RemoteStand
from twin.faults import KERNEL_FAULTS
from twin.server import Twin

from comp.errors import KaggleError, RulesError, UnavailableError, UserError
from comp.remote import attempts, pack, stage
from comp.remote.attempts import Attempt

SLEEP = "if stage == 'train': time.sleep(60)"


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteStand]:
    with Twin(*make_competition(tmp_path, 1000)) as twin:
        made = RemoteStand(twin, tmp_path)
        monkeypatch.setattr(pack, "CODE", made.code)
        yield made


def once(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, *, before: bool) -> None:
    """The function is interrupted, once, before or after it is carried out."""
    real: Callable[..., Any] = getattr(where, name)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(where, name, real)
        if not before:
            real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(where, name, interrupted)


RIDDEN_OUT = [  # faults, and what is said of them
    ("push-busy:2", "session count"),
    ("push-412:2", "412"),
    ("push-ghost:2", "not found"),
    ("push-lost:1", "arrived anyway"),
    ("503:1:on=SaveKernel", "arrived anyway"),
    ("hang:1:on=SaveKernel", "arrived anyway"),
    ("429:1:on=SaveKernel", "fewer requests"),
    ("push-drift:1", "-v2"),
    ("status-unknown:2", "pushed"),
    ("status-null:2", "pushed"),
    ("503:3:on=GetKernelSessionStatus", "pushed"),
    ("404:3:on=GetKernelSessionStatus", "pushed"),
    ("quota-unknown", "sets no limit"),
    ("503:on=log", "pushed"),
    ("cut:2:on=log", "pushed"),
    ("stall:1:on=log", "pushed"),
    ("503:1:on=file cut:1", "503"),
    ("expired-url:1 cut:1", "pushed"),
    ("503:2:on=ListKernelSessionOutput", "503"),
]


@pytest.mark.parametrize(("faults", "said"), RIDDEN_OUT)
def test_what_passes_is_ridden_out_in_one_session(
    stand: RemoteStand, faults: str, said: str
) -> None:
    assert said in stand.remote(*faults.split())
    assert len(stand.twin.sessions) == 1
    assert stand.is_home
    assert stand.twin.token not in str(stand.heard)


REFUSED = [
    ("push-quota", KaggleError, "30.00 hours reached.*after 2026-11-28"),
    ("push-phone", KaggleError, "verified"),
    ("push-ghost", KaggleError, "not found"),
    ("401:on=SaveKernel", KaggleError, "renew it"),
    ("503:on=SaveKernel", UnavailableError, "503"),
]


@pytest.mark.parametrize(("faults", "kind", "words"), REFUSED)
def test_a_refusal_says_which_it_is_and_starts_nothing(
    stand: RemoteStand, faults: str, kind: type[KaggleError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        stand.remote(faults)
    assert stand.twin.sessions == []
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_a_kernel_without_the_photos_is_deleted_at_once(stand: RemoteStand) -> None:
    stand.twin.accepted_rules = False
    with pytest.raises(RulesError, match=r"accept the rules at https"):
        stand.remote()
    assert stand.twin.kernels == {}
    stand.twin.accepted_rules = True
    stand.remote()
    assert stand.is_home


@pytest.mark.parametrize(
    ("where", "name", "before"),
    [(attempts, "push", True), (attempts, "push", False), (stage, "follow", True)],
)
def test_a_killed_call_is_taken_up_by_the_next_one_without_another_session(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, before: bool
) -> None:
    once(monkeypatch, where, name, before=before)
    with pytest.raises(KeyboardInterrupt):
        stand.remote()
    said = stand.remote()
    assert ("going on with" in said) == ((name, before) != ("push", True))
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_a_call_killed_while_the_run_comes_home_fetches_it_again(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, stage, "bring_home", before=True)
    with pytest.raises(KeyboardInterrupt):
        stand.remote()
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_waiting_ends_if_kaggle_stays_silent_and_the_next_call_attaches(stand: RemoteStand) -> None:
    with pytest.raises(UnavailableError, match=r"goes on at .*attach"):
        stand.remote("503:on=GetKernelSessionStatus")
    with pytest.raises(UnavailableError, match="is not known"):
        stand.remote("503:on=GetKernelSessionStatus")
    assert "going on with" in stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_while_kaggle_does_not_say_what_runs_nothing_more_is_pushed(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.behave(f"time.sleep(.2)\n{FINISH}")
    for _ in range(2):  # once with the answer lost, once with a note of it
        with pytest.raises(UnavailableError, match="is not known: run this again"):
            stand.remote("push-lost", "503:on=GetKernelSessionStatus")
        assert len(stand.twin.sessions) == 1
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_a_session_that_never_ends_is_deleted_at_the_own_deadline(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.twin.never_ends = True
    monkeypatch.setattr(attempts, "GRACE_S", 0.0)
    monkeypatch.setattr(stage, "MOST_S", 1)
    with pytest.raises(KaggleError, match=r"does not delete.*delete it at https"):
        stand.remote("undeleted")
    with pytest.raises(KaggleError, match="long past its limit of 1 s and is deleted"):
        stand.remote()
    assert stand.twin.kernels == {}


GO_ON = """
if stage == 'train':
    folder = runs / {name!r}
    if (folder / 'fold-0.safetensors').exists():
        finish()
        sys.exit()
    folder.mkdir()
    shutil.copy(finished / 'runs' / {name!r} / 'fold-0.safetensors', folder)
    (folder / 'fold-1.resume.safetensors').touch()
    {wait}
"""
ASKED = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); time.sleep(60)"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.parametrize("wait", [ASKED, DEAF], ids=["by itself", "by Kaggle"])
def test_a_session_ended_at_its_limit_is_followed_by_one_that_takes_up_its_output(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setattr(stage, "MOST_S", 3)
    stand.behave(GO_ON.format(name=stand.run_folder.name, wait=wait))
    said = stand.remote()
    first, second = stand.twin.sessions
    assert "ended at its limit" in said
    assert "kernelDataSources" not in first.fields
    assert second.fields["kernelDataSources"] == [f"rehearsal/{first.slug}"]
    assert first.slug != second.slug
    assert stand.is_home
    assert not list(stand.home.runs.rglob("*.resume.*"))


FAILING = [
    ("print('error: no such layer'); sys.exit(1)", "comp train failed: no such layer"),
    ("os.kill(os.getppid(), signal.SIGKILL)", r"more memory than is available.*micro_batch"),
]


@pytest.mark.parametrize(("behaviour", "words"), FAILING)
def test_a_run_that_fails_there_says_why_here_and_may_begin_again(
    stand: RemoteStand, behaviour: str, words: str
) -> None:
    stand.behave(f"if stage == 'train': {behaviour}")
    with pytest.raises(KaggleError, match=words):
        stand.remote()
    stand.behave(FINISH)
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (2, True)


OTHER_MANIFEST = "if stage == 'data': (workspace / 'data' / 'train.csv').write_text('other')"


def test_where_kaggle_makes_another_manifest_the_one_from_here_follows(stand: RemoteStand) -> None:
    check = "assert (workspace / 'data/train.csv').read_text() != 'other'"
    stand.behave(f"{OTHER_MANIFEST}\nif stage == 'train':\n    {check}\n    finish()")
    said = stand.remote()
    assert "data/train.csv as made on Kaggle is not the one at home" in said
    assert "datasetDataSources" not in stand.twin.sessions[0].fields
    (ref,) = stand.twin.sessions[1].fields["datasetDataSources"]
    assert set(stand.twin.datasets[ref].files) == {"train.csv", "test.csv"}
    assert (len(stand.twin.sessions), stand.is_home) == (2, True)


def test_an_edited_manifest_goes_along_from_the_start(stand: RemoteStand) -> None:
    path = stand.home.manifest("train")
    path.write_text(path.read_text().replace(",ok\n", ",grey\n", 1))
    with pytest.raises(KaggleError, match="incomplete"):  # these stages made another run
        stand.remote()
    (session,) = stand.twin.sessions
    assert session.fields["datasetDataSources"]


def test_a_session_stopped_by_its_owner_is_not_started_again_by_itself(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.behave(SLEEP)
    once(monkeypatch, stage, "follow", before=True)
    with pytest.raises(KeyboardInterrupt):
        stand.remote()
    words = "The kernel was killed due to a requested cancel."
    stand.twin.sessions[0].end("CANCEL_ACKNOWLEDGED", words)
    with pytest.raises(KaggleError, match=r"stopped .*requested cancel.*goes on from"):
        stand.remote()
    stand.behave(FINISH)
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (2, True)


def test_ctrl_c_says_that_the_session_goes_on_and_how_to_end_it(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, attempts, "status_of", before=True)
    with pytest.raises(KeyboardInterrupt, match=r"goes on: .* deleting https://\S+ ends it"):
        stand.remote()
    assert "going on with" in stand.remote()


def test_a_kernel_that_cannot_be_deleted_is_not_forgotten(stand: RemoteStand) -> None:
    with pytest.raises(UnavailableError, match="does not delete"):
        stand.remote("dataset-missing:1", "undeleted")
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_two_calls_at_once_make_one_session(stand: RemoteStand) -> None:
    stand.behave(f"time.sleep(.2)\n{FINISH}")
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: stand.remote(), range(2)))
    assert "waiting for another run" in said[0] + said[1]
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_a_kernel_that_its_owner_deleted_is_named_and_then_pushed_anew(
    stand: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, stage, "follow", before=True)
    with pytest.raises(KeyboardInterrupt):
        stand.remote()
    stand.twin.kernels.clear()
    with pytest.raises(KaggleError, match="is gone from Kaggle"):
        stand.remote()
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (2, True)


def test_what_comes_home_damaged_is_refused_and_fetched_again(stand: RemoteStand) -> None:
    with pytest.raises(KaggleError, match=r"comp\.tar came home damaged"):
        stand.remote("flipped-bytes")
    assert not stand.is_home
    stand.remote()
    assert (len(stand.twin.sessions), stand.is_home) == (1, True)


def test_each_line_of_the_log_is_printed_once(stand: RemoteStand) -> None:
    stand.behave(f"for n in range(30): print(n, flush=True); time.sleep(.02)\n{FINISH}")
    lines = [line.strip() for line in stand.remote().splitlines()]
    assert [line for line in lines if line.isdecimal()] == [*map(str, range(30))] * 3


def make_wheel(folder: Path) -> None:
    """A package `extra`, which no image has."""
    with zipfile.ZipFile(folder / "extra-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("extra.py", "ANSWER = 42")
        about, places = "Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n", "extra-1.0.dist-info"
        wheel.writestr(f"{places}/METADATA", about)
        wheel.writestr(f"{places}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{places}/RECORD", "")


@pytest.fixture
def offline(
    stand: RemoteStand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RemoteStand]:
    """A recipe that names a file of weights, and a package that the image lacks."""
    recipe = TINY_HEAD.replace(model=TINY_HEAD.model.replace(weights="own/w.safetensors"))
    made = RemoteStand(stand.twin, tmp_path / "offline", recipe)
    monkeypatch.setattr(pack, "CODE", made.code)
    monkeypatch.setattr(stage, "pins", lambda _: ["extra==1.0"])
    make_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Path("own").mkdir()
    Path("own/w.safetensors").write_text("weights")
    check = "assert open('own/w.safetensors').read() == 'weights'; assert extra.ANSWER == 42"
    made.behave(f"import extra\nif stage == 'train':\n    {check}\n    finish()")
    return made


DATASET_FAULTS = ["", "dataset-lost:1", "upload-503:1", "503:1:on=StartBlobUpload"]


@pytest.mark.parametrize("fault", DATASET_FAULTS)
def test_own_weights_and_packages_are_uploaded_once_and_found_without_the_internet(
    offline: RemoteStand, fault: str
) -> None:
    offline.twin.ready_s = 0.2
    offline.remote(*filter(None, [fault]))
    (session,) = offline.twin.sessions
    assert not session.fields.get("enableInternet")
    (ref,) = session.fields["datasetDataSources"]
    assert set(offline.twin.datasets[ref].files) == {"w.safetensors", "extra-1.0-py3-none-any.whl"}
    assert offline.is_home
    shutil.rmtree(offline.home.runs)
    assert "uploading" not in offline.remote()
    assert list(offline.twin.datasets) == [ref]


def test_a_kernel_without_its_dataset_is_deleted_and_pushed_again(offline: RemoteStand) -> None:
    assert "did not attach" in offline.remote("dataset-missing:1")
    first, second = offline.twin.sessions
    assert list(offline.twin.kernels) == [second.slug]
    assert first.slug != second.slug
    assert offline.is_home


def test_missing_weights_and_packages_are_named_before_anything_is_pushed(
    offline: RemoteStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match="pip does not get the packages"):
        offline.remote()
    Path("own/w.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights at own/w\.safetensors"):
        offline.remote()
    assert offline.twin.sessions == []


def test_without_quota_nothing_is_pushed_and_little_of_it_shortens_the_session(
    stand: RemoteStand,
) -> None:
    stand.twin.used_s = stand.twin.allowed_s - 600
    with pytest.raises(KaggleError, match=r"too few GPU hours are left.*renewed 2026-11-28"):
        stand.remote()
    stand.twin.used_s = stand.twin.allowed_s - 3600
    assert "1.0 left" in stand.remote()
    assert stand.twin.sessions[0].fields["sessionTimeoutSeconds"] in range(3500, 3601)


def test_every_fault_of_kernels_is_met_here() -> None:
    named = " ".join(Path(__file__).read_text().splitlines())
    assert {name for name in KERNEL_FAULTS if not re.search(rf'"{name}[":]', named)} == set()


def test_an_attempt_survives_its_note(tmp_path: Path) -> None:
    note = attempts.Note(tmp_path / "note.json")
    attempt = Attempt(slug="a", accepted=True, pushed=1.5, limit_s=3, source="b")
    assert note.write(attempt) == note.read() == attempt
    note.path.write_text('{"another": 1}')
    assert note.read() == Attempt()
