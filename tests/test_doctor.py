"""The doctor: every line comes, whatever fails, and each bad one says what to do."""

import os
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from heard import Heard
from kaggle_stand import ARCHIVE, HASTE, Stand, stand

from comp import doctor
from comp.competition import COMPETITION
from comp.doctor import Check, Doubt, account_probes, examine, machine_probes, run_probes
from comp.errors import UnavailableError, UserError
from comp.kaggle import Kaggle
from comp.network.device import Device
from comp.store import Workspace, free_memory

ASKED = ["credentials", "authentication", "competition", "rules", "submissions"]
HERE = ["Python", "packages", "disk", "memory", "folders", "torch", "device"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


def account(kaggle: Kaggle) -> dict[str, Check]:
    return {check.name: check for check in run_probes(account_probes(kaggle, COMPETITION))}


def bad(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.level == "BAD"]


def test_where_a_run_would_work_each_line_is_fine_or_worth_a_look(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arm()
    monkeypatch.setattr(doctor, "machine_probes", lambda *_: {})
    heard = Heard()
    done = examine(Workspace(tmp_path), COMPETITION, scene.kaggle, heard)
    checks = {check.name: check for check in done}
    assert list(checks) == [*ASKED, "archive"]
    assert [name for name, check in checks.items() if check.level == "look"] == ["credentials"]
    assert "to a stand-in" in checks["credentials"].text
    assert "100,000 left today" in checks["submissions"].text
    assert [line[:5].strip() for line in heard.lines] == [check.level for check in done]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "names", "words"),
    [
        (
            "401",
            ["competition", "rules", "submissions"],
            "renew it at https://www.kaggle.com/settings",
        ),
        ("403-rules", ["rules"], COMPETITION.rules_url),
        ("404", ["competition", "rules", "submissions"], "check the competition's name"),
        ("503:on=ListDataFiles", ["competition"], "try again later"),
        ("html", ["rules"], "something else than was asked for"),
        ("daily-limit", ["submissions"], "after midnight UTC"),
    ],
)
def test_a_failure_is_bad_in_its_own_line_and_the_others_come(
    scene: Stand, fault: str, names: list[str], words: str
) -> None:
    scene.arm(fault)
    checks = account(scene.kaggle)
    assert list(checks) == ASKED
    assert bad(checks) == names
    assert all(words in checks[name].text for name in names)
    texts = "".join(check.text for check in checks.values())
    assert "\n" not in texts
    assert scene.server.account.token not in texts


@pytest.mark.parametrize(
    ("variables", "name", "words"),
    [
        ({"KAGGLE_API_TOKEN": ""}, "credentials", "set KAGGLE_API_TOKEN, or"),
        ({"KAGGLE_API_TOKEN": "stale-token"}, "authentication", "token from KAGGLE_API_TOKEN"),
        ({"http_proxy": "http://127.0.0.1:9"}, "authentication", "cannot be reached"),
    ],
)
def test_without_credentials_or_a_network_one_line_says_why_and_the_rest_is_unknown(
    scene: Stand, variables: dict[str, str], name: str, words: str
) -> None:
    scene.arm()
    kaggle, _ = scene.another(replace(HASTE, n_tries=2), **variables)
    checks = account(kaggle)
    assert list(checks) == ASKED
    assert bad(checks) == [name]
    assert words in checks[name].text
    assert [checks[other].text for other in ASKED[2:]] == ["unknown without authentication"] * 3


def test_bad_lines_end_in_an_error_that_names_them(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.arm("403-rules", "daily-limit")
    monkeypatch.setattr(doctor, "machine_probes", lambda *_: {})
    with pytest.raises(UserError, match=r"2 of 6 checks are bad \(rules, submissions\)"):
        examine(Workspace(tmp_path), COMPETITION, scene.kaggle, Heard())


def test_the_archive_is_absent_partial_or_complete_and_one_of_unknown_origin_is_doubted(
    scene: Stand, tmp_path: Path
) -> None:
    def find() -> str:
        return doctor.describe_archive(tmp_path, COMPETITION)

    assert find().startswith("absent:")
    scene.arm("cut:1", "503:skip=1:on=file")
    with pytest.raises(UnavailableError):
        scene.kaggle.download(tmp_path)
    assert find().startswith("partial and resumable,")
    (tmp_path / f"{ARCHIVE}.part.json").unlink()
    assert find().startswith("partial,")
    scene.arm()
    scene.kaggle.download(tmp_path)
    assert find().startswith("complete and checked,")
    os.utime(tmp_path / ARCHIVE)
    with pytest.raises(Doubt, match="it will check them"):
        find()


def test_the_machine_is_examined_to_the_end_and_nothing_is_written(tmp_path: Path) -> None:
    probes = machine_probes(Workspace(tmp_path), COMPETITION)
    checks = {check.name: check for check in run_probes(probes)}
    assert list(checks) == HERE
    fine = [name for name in HERE if name not in ("packages", "device", "disk", "memory")]
    assert [checks[name].level for name in fine] == ["ok"] * 3
    assert version("torch") in checks["torch"].text
    assert list(tmp_path.iterdir()) == []


def test_torch_that_does_not_load_is_one_bad_line_and_the_device_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "RuntimeError: operator torchvision::nms does not exist"
    code = f"import sys; sys.exit('Traceback\\n{said}\\nFor debugging')"
    monkeypatch.setattr(doctor, "USE_TORCH", code)
    probes = machine_probes(Workspace(tmp_path), COMPETITION)
    loaded, device = run_probes({name: probes[name] for name in ("torch", "device")})
    assert loaded.level == "BAD"
    assert f"({said})" in loaded.text
    assert device == Check("device", "look", "unknown without torch")


def test_packages_that_are_missing_or_not_as_locked_are_named(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.txt"
    with pytest.raises(Doubt, match="this is no checkout"):
        doctor.find_packages(lock)
    here = version("torch").split("+")[0]
    text = f"torch=={here} \\\n    --hash=sha256:00\n# a comment\nabsent==1 ; sys_platform == 'x'\n"
    lock.write_text(text)
    assert doctor.find_packages(lock) == "1 are as locked"
    lock.write_text(text + "numpy==0.1  # old\nno-such-package==1\n")
    with pytest.raises(Doubt, match=r"^2 of 3 .* \(numpy==0.1, no-such-package==1\): delete .venv"):
        doctor.find_packages(lock)


@pytest.mark.parametrize(
    ("cuda", "has_driver", "words"),
    [
        ("13.2", False, "only the CPU"),
        ("13.2", True, "this torch for CUDA 13.2 finds no GPU"),
        (None, True, "this torch without CUDA finds no GPU"),
    ],
)
def test_a_cpu_is_doubted_with_a_word_on_a_driver_that_torch_cannot_use(
    cuda: str | None, has_driver: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(Doubt, match=words) as caught:
        doctor.find_accelerator(has_driver)
    assert ("driver" in str(caught.value)) == has_driver


@pytest.mark.parametrize("works", [True, False])
def test_a_gpu_is_described_and_bad_if_this_torch_cannot_use_it(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(*_: object, **__: object) -> Any:
        if works:
            return torch.zeros(2)
        raise RuntimeError("no kernel image is available\nfor debugging")

    gpu = Device(where=torch.device("cuda"), name="A GPU", train_dtype=torch.float32)
    monkeypatch.setattr("comp.network.device.find_device", lambda: gpu)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch, "ones", ones)
    properties = SimpleNamespace(total_memory=80 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    if works:
        assert doctor.find_accelerator(True) == "A GPU, 80 GB, torch for CUDA 13.2"
    else:
        with pytest.raises(UserError, match=r"A GPU .* \(no kernel image is available\): "):
            doctor.find_accelerator(True)


def test_memory_is_what_is_available_or_the_limit_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    monkeypatch.setattr(doctor, "free_memory", lambda: free_memory(info, limit))
    with pytest.raises(Doubt, match="unknown"):
        doctor.find_memory()
    info.write_text("MemTotal:       24000000 kB\nMemAvailable:   16000000 kB\n")
    assert doctor.find_memory().startswith("16.4 GB")
    limit.write_text("max\n")
    assert doctor.find_memory().startswith("16.4 GB")
    limit.write_text("1000000000\n")
    with pytest.raises(Doubt, match=r"^1\.0 GB are available, 4 GB are needed"):
        doctor.find_memory()


def test_a_folder_is_writable_if_the_nearest_that_exists_is(tmp_path: Path) -> None:
    assert doctor.check_writable(Workspace(tmp_path / "not" / "yet")).endswith("are writable")
    for name, make in (("runs", Path.touch), ("data", lambda path: path.symlink_to("nowhere"))):
        make(tmp_path / name)
        with pytest.raises(UserError, match=f"{name} is not writable: change its owner"):
            doctor.check_writable(Workspace(tmp_path))


def test_only_files_that_a_run_needs_reduce_the_disk_space_it_still_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    free: Any = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=doctor.RUN_BYTES + 4000))
    monkeypatch.setattr(doctor, "shutil", free)
    small = replace(COMPETITION, archive_bytes=2000, n_train=0, n_test=0)
    for folder, is_enough in (("nothing", False), ("features", False), ("raw", True)):
        (workspace.data / folder).mkdir(parents=True)
        (workspace.data / folder / "file").write_bytes(bytes(1000))
        if is_enough:
            assert "0.6 GB more" in doctor.find_disk(workspace, small)
        else:
            with pytest.raises(UserError, match="make room"):
                doctor.find_disk(workspace, small)
