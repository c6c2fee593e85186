"""What a workspace is, a rehearsal's or Kaggle's, decides where its runs may go."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from finished_run import make_run, make_workspace
from kaggle_stand import Stand, stand
from tiny import contents

from comp.__main__ import main
from comp.competition import COMPETITION
from comp.data.origin import REHEARSAL, account_home, competition_of, mark_rehearsal, origin_path
from comp.errors import StaleError, UserError
from comp.options import override
from comp.predict.runs import read_run
from comp.predict.stage import predict
from comp.progress import Reporter
from comp.recipes import named
from comp.rehearsal import stage
from comp.store import Workspace, read_json, write_json
from comp.submit.forecast import print_forecast
from comp.train.stage import train


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A server that plays Kaggle."""
    with stand(tmp_path_factory.mktemp("kaggle")) as made:
        yield made


def enter(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


REAL = {"slug": COMPETITION.slug, "is_real": True}
TO_KAGGLE = ["submit", "submit --force", "scores", "leaderboard", "data"]


@pytest.mark.parametrize("command", TO_KAGGLE)
@pytest.mark.parametrize(
    ("origin", "is_rehearsal", "to_stand_in", "words"),
    [
        (None, True, True, "is the workspace of a rehearsal"),
        (REAL | {"is_real": False}, True, False, "is the workspace of a rehearsal"),
        (REAL | {"is_real": False}, False, False, "are not those of Kaggle"),
        (REAL, True, False, "is the workspace of a rehearsal"),
        (REAL, False, True, "KAGGLE_API_ENVIRONMENT=LOCALHOST names a stand-in"),
        (REAL | {"slug": "titanic"}, False, True, "has the data of titanic, not of dogs-vs-cats"),
    ],
)
def test_a_workspace_is_refused_by_every_server_but_its_own(
    command: str,
    origin: dict[str, object] | None,
    is_rehearsal: bool,
    to_stand_in: bool,
    words: str,
    scene: Stand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    workspace = make_workspace(tmp_path)
    run = make_run(workspace)
    if origin:
        write_json(origin_path(workspace), origin)
    if is_rehearsal:
        mark_rehearsal(workspace, COMPETITION)
    enter(monkeypatch, scene.env)
    if not to_stand_in:
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "PROD")
    scene.arm()
    name, *words_of_command = command.split()
    where = ["--workspace", str(tmp_path), *(["--run", run.name] if name == "submit" else [])]
    assert main([name, *words_of_command, *where]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert len(scene.server.requests) == scene.n_before
    assert not workspace.submissions.exists()


def test_the_stand_in_of_a_rehearsal_takes_its_runs(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path)
    mark_rehearsal(workspace, COMPETITION)
    enter(monkeypatch, scene.server.environment(account_home(workspace)))
    n_before, where = len(scene.server.submissions), ["--workspace", str(tmp_path)]
    assert main(["submit", "--run", make_run(workspace).name, *where]) == 0
    assert main(["leaderboard", *where]) == 0
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "PROD")  # in the same home
    assert main(["leaderboard", *where]) == 1
    assert len(scene.server.submissions) == n_before + 1


def test_a_run_copied_from_a_rehearsal_is_neither_forecast_nor_submitted(
    scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, other = make_workspace(tmp_path / "real"), make_workspace(tmp_path / "other")
    photos = other.manifest("test")
    photos.write_text(photos.read_text().replace("0" * 16, "1" * 16))
    run = make_run(other)
    shutil.copytree(run, workspace.runs / run.name)
    enter(monkeypatch, scene.env)
    scene.arm()
    with pytest.raises(StaleError, match="made from other photos"):
        print_forecast(workspace, COMPETITION, read_run(workspace.runs / run.name), Reporter())
    assert main(["submit", "--run", run.name, "--workspace", str(workspace.root)]) == 1
    assert len(scene.server.requests) == scene.n_before


def test_later_stages_of_a_rehearsal_know_its_noise_rate_and_change_nothing_that_is_finished(
    drawn_copy: Workspace,
) -> None:
    settings = ["pixels.size_px=64", "folds.n=2"]
    recipe, competition = (
        override(named("lite0_head"), settings),
        mark_rehearsal(drawn_copy, COMPETITION),
    )
    assert (competition.noise_rate, competition.noise_spread) == (0, 0)
    train(drawn_copy, recipe, "cpu", Reporter())
    run = predict(drawn_copy, competition, recipe, "cpu", Reporter())
    before = contents(run.folder)
    words = ["--workspace", str(drawn_copy.root), "--recipe", "lite0_head", "--set", *settings]
    for command in ("train", "predict", "forecast"):
        assert main([command, *words]) == 0
    assert contents(run.folder) == before
    assert read_json(run.folder / "calibration.json")["noise_rate"] == 0


def test_a_rehearsal_is_known_as_one_before_anything_else_is_written(
    edition: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(workspace: Workspace, *_: object) -> None:
        files = {path.name for path in workspace.root.rglob("*") if path.is_file()}
        assert files == {REHEARSAL}
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "prepare", stop)
    folder = tmp_path / "downloads"
    folder.mkdir()
    shutil.copy(edition[0], folder / f"{COMPETITION.slug}.zip")
    given = folder, edition[1]
    with pytest.raises(KeyboardInterrupt):
        stage.rehearse(tmp_path, COMPETITION, [named("lite0_head")], "cpu", *given, Reporter())
    (root,) = (tmp_path / ".rehearsal").iterdir()
    assert competition_of(Workspace(root), COMPETITION).noise_rate == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + "21,0\n", "0 of 20 ids in sample_submission.csv have no label, and 1"),
        (lambda text: text[: text.rindex("20,")], "1 of 20 ids in sample_submission.csv"),
        (lambda text: text.replace("\n20,", "\n020,"), "and 1 of 20 labels are of other ids"),
    ],
)
def test_a_solution_of_other_photos_is_refused_before_the_rehearsal_writes_anything(
    change: Callable[[str], str], words: str, edition: tuple[Path, Path], tmp_path: Path
) -> None:
    solution = tmp_path / "solution.csv"
    solution.write_text(change(edition[1].read_text()))
    given = edition[0], solution
    with pytest.raises(UserError, match=words):
        stage.rehearse(tmp_path, COMPETITION, [named("lite0_head")], "cpu", *given, Reporter())
    assert not (tmp_path / ".rehearsal").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"noise_rate": 0.5}'])
def test_a_damaged_mark_is_still_a_rehearsals_and_keeps_kaggle_out(
    content: str, scene: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / REHEARSAL).write_text(content)
    assert competition_of(Workspace(tmp_path), COMPETITION).noise_rate == 0
    enter(monkeypatch, scene.env)
    scene.arm()
    assert main(["leaderboard", "--workspace", str(tmp_path)]) == 1
    assert len(scene.server.requests) == scene.n_before
