"""The doctor: every line comes, whatever is wrong, and each says what to do; fine only if a run would work."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
from kaggle_stand import ARCHIVE, HASTE, Notebook, Stand, stand

from comp.competition import COMPETITION
from comp.doctor import machine, stage
from comp.doctor.account import account, archive_state, clock
from comp.doctor.check import Check
from comp.errors import UnavailableError, UserError
from comp.kaggle import Kaggle
from comp.store import Workspace

ASKED = ["credentials", "authentication", "competition", "rules", "phone", "submissions", "clock"]
HERE = [
    "Python",
    "packages",
    "lock",
    "torch",
    "device",
    "disk",
    "memory",
    "data/",
    "runs/",
    "submissions/",
]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


def by_name(kaggle: Kaggle) -> dict[str, Check]:
    return {check.name: check for check in account(kaggle, COMPETITION)}


def bad(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.level == "bad"]


def test_where_a_run_would_work_each_line_is_fine_or_worth_a_look(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arm()
    monkeypatch.setattr(stage, "machine", lambda _: [])
    notebook = Notebook()
    checks = {
        check.name: check
        for check in stage.examine(Workspace(tmp_path), COMPETITION, scene.kaggle, notebook)
    }
    assert list(checks) == [*ASKED, "archive"]
    assert {name for name, check in checks.items() if check.level != "ok"} == {
        "credentials",
        "phone",
    }
    assert "to a stand-in" in checks["credentials"].text
    assert "API does not tell" in checks["phone"].text
    assert "100,000 left today" in checks["submissions"].text
    assert [line[:4] for line in notebook.lines] == [
        stage.MARKS[check.level] for check in checks.values()
    ]
    assert list(tmp_path.iterdir()) == []  # it looks, and leaves nothing


@pytest.mark.parametrize(
    ("fault", "names", "words"),
    [
        (
            "401",
            ["competition", "rules", "phone", "submissions"],
            "renew it at https://www.kaggle.com/settings",
        ),
        ("403-rules", ["rules"], COMPETITION.rules_url),
        ("404", ["competition", "rules", "phone", "submissions"], "check the competition's name"),
        ("503:on=ListDataFiles", ["competition"], "try again later"),
        ("html", ["rules"], "something else than was asked for"),
        ("daily-limit", ["submissions"], "after midnight UTC"),
    ],
)
def test_what_fails_is_bad_in_its_own_line_and_the_walk_goes_on(
    scene: Stand, fault: str, names: list[str], words: str
) -> None:
    scene.arm(fault)
    checks = by_name(scene.kaggle)
    assert list(checks) == ASKED
    assert bad(checks) == names
    assert all(words in checks[name].text for name in names)
    assert not any(
        "\n" in check.text or scene.server.account.token in check.text for check in checks.values()
    )


@pytest.mark.parametrize(
    ("variables", "name", "words"),
    [
        ({"KAGGLE_API_TOKEN": ""}, "credentials", "set KAGGLE_API_TOKEN, or"),
        ({"KAGGLE_API_TOKEN": "stale-token"}, "authentication", "token from KAGGLE_API_TOKEN"),
        ({"http_proxy": "http://127.0.0.1:9"}, "authentication", "cannot be reached"),
    ],
)
def test_without_credentials_or_a_network_all_lines_come_and_one_says_why(
    scene: Stand, variables: dict[str, str], name: str, words: str
) -> None:
    scene.arm()
    kaggle, _ = scene.another(replace(HASTE, n_tries=2), **variables)
    checks = by_name(kaggle)
    assert list(checks) == ASKED
    assert bad(checks) == [name]
    assert words in checks[name].text
    assert [checks[other].text for other in ASKED[2:]] == ["not known without authentication"] * 5


def test_a_bad_line_makes_the_end_an_error_that_names_it(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arm("403-rules", "daily-limit")
    monkeypatch.setattr(stage, "machine", lambda _: [])
    with pytest.raises(UserError, match=r"2 of 8 checks are bad \(rules, submissions\)"):
        stage.examine(Workspace(tmp_path), COMPETITION, scene.kaggle, Notebook())


def test_the_archive_is_absent_partial_or_complete_and_a_stranger_is_not_trusted(
    scene: Stand, tmp_path: Path
) -> None:
    def state() -> tuple[str, str]:
        check = archive_state(tmp_path, COMPETITION)
        return check.level, check.text.partition(",")[0].partition(":")[0]

    assert state() == ("ok", "absent")
    scene.arm("cut:1", "503:skip=1:on=file")
    with pytest.raises(UnavailableError):
        scene.kaggle.download(tmp_path)
    assert state() == ("ok", "partial and resumable")
    (tmp_path / f"{ARCHIVE}.part.json").unlink()
    assert state() == ("ok", "partial")
    scene.arm()
    scene.kaggle.download(tmp_path)
    assert state() == ("ok", "complete and checked")
    os.utime(tmp_path / ARCHIVE)
    assert state()[0] == "warn"


def test_a_clock_is_compared_with_kaggles(scene: Stand) -> None:
    scene.arm()
    scene.kaggle.limits()
    skew_s = scene.kaggle.clock_skew_s()
    assert skew_s is not None
    assert abs(skew_s) < 5
    assert [clock(skew_s).level for skew_s in (-0.7, 59, None, 61, -3600)] == [
        "ok",
        "ok",
        "warn",
        "warn",
        "warn",
    ]
    assert "3,600 s ahead of" in clock(-3600).text


def test_the_machine_is_walked_through_to_the_end(tmp_path: Path) -> None:
    checks = {check.name: check for check in machine.machine(Workspace(tmp_path))}
    assert list(checks) == HERE
    assert [
        checks[name].level
        for name in ("Python", "packages", "torch", "data/", "runs/", "submissions/")
    ] == ["ok"] * 6
    assert version("torch") in checks["torch"].text
    assert list(tmp_path.iterdir()) == []


def test_torch_that_does_not_load_is_one_bad_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(
            1,
            command,
            stderr="Traceback\nRuntimeError: operator torchvision::nms does not exist\nFor debugging\n",
        )

    monkeypatch.setattr(subprocess, "run", fails)
    torch, device = machine.torch_and_device()
    assert (torch.level, device.level) == ("bad", "warn")
    assert "(RuntimeError: operator torchvision::nms does not exist)" in torch.text


def test_packages_that_do_not_fit_together_or_to_the_lock_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = version("torch").split("+")[0]
    check = machine.packages(["no-such-package", "numpy", "torch>=99", "six; python_version < '3'"])
    assert check.level == "bad"
    assert check.text.startswith(
        f"comp needs torch>=99 and finds {version('torch')}; comp needs no-such-package and finds none: "
    )
    assert machine.packages(["torchvision"]).level == "ok"
    for name, number, needs in (("visible", "1.0", "beneath>=2"), ("beneath", "1.9", "six")):
        (tmp_path / f"{name}-{number}.dist-info").mkdir()
        metadata = (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\nRequires-Dist: {needs}\n"
        )
        (tmp_path / f"{name}-{number}.dist-info" / "METADATA").write_text(metadata)
    monkeypatch.syspath_prepend(tmp_path)
    assert machine.packages(["visible"]).text.startswith(
        "visible 1.0 needs beneath>=2 and finds 1.9: "
    )
    lock = f"torch=={here} \\\n    --hash=sha256:00\nnumpy==0.1  # old\n# a remark\nabsent==1.0 ; sys_platform == 'none'\n"
    check = machine.lock(lock)
    assert check.level == "warn"
    assert check.text.startswith(f"1 of 2 packages are not as locked, numpy {version('numpy')}: ")


def test_a_driver_without_a_torch_for_it_is_said() -> None:
    found = {"kind": "cpu", "name": "x86_64", "n_bytes": 0, "torch": "2.15.0"}
    assert "built without CUDA" in machine.device(driver="570.1", cuda=None, **found).text  # type: ignore[arg-type]
    assert "built for CUDA 13.2" in machine.device(driver="570.1", cuda="13.2", **found).text  # type: ignore[arg-type]
    assert machine.device(driver=None, cuda=None, **found).level == "warn"  # type: ignore[arg-type]
    gpu = machine.device(
        driver="570.1", cuda="13.2", kind="cuda", name="A GPU", n_bytes=80 * 10**9, torch="2.15.0"
    )
    assert (gpu.level, gpu.text) == ("ok", "A GPU, 80 GB, driver 570.1, torch for CUDA 13.2")


def test_memory_is_what_is_available_or_the_containers_limit(tmp_path: Path) -> None:
    info, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    assert machine.available_bytes(info, limit) is None
    info.write_text("MemTotal:       24000000 kB\nMemAvailable:   16000000 kB\n")
    assert machine.available_bytes(info, limit) == 16_000_000 * 1024
    limit.write_text("max\n")
    assert machine.available_bytes(info, limit) == 16_000_000 * 1024
    limit.write_text("1000000\n")
    assert machine.available_bytes(info, limit) == 1_000_000


def test_room_and_permission_are_of_the_nearest_folder_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.writable(tmp_path / "not" / "yet").level == "ok"
    (tmp_path / "file").touch()
    assert machine.writable(tmp_path / "file" / "runs").level == "bad"
    workspace = Workspace(tmp_path)
    monkeypatch.setattr(machine, "DISK_BYTES", 10**18)
    assert machine.disk(workspace).level == "bad"
    workspace.data.mkdir()
    (workspace.data / "archive").write_bytes(bytes(1000))
    monkeypatch.setattr(machine, "DISK_BYTES", 1000)
    assert machine.disk(workspace).level == "ok"


def test_of_what_is_on_the_disk_only_that_which_a_run_needs_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(machine, "DISK_GB", {"raw": 1e-6})
    monkeypatch.setattr(machine, "DISK_BYTES", 1500)
    for place, level in (("features", "bad"), ("raw", "ok")):
        (workspace.data / place).mkdir(parents=True)
        (workspace.data / place / "file").write_bytes(bytes(1000))
        assert machine.disk(workspace).level == level
