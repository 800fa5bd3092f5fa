"""Working folders: what is copied, what is linked, and that the user's files stay as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amplint.config import Settings
from amplint.verify import workspace
from amplint.verify.workspace import Workspace, make


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git work tree in which the user is in src/, with data, an environment and caches, and data beside it."""
    top = tmp_path / "home" / "project"
    for folder in ("src/__pycache__", "data/many", ".git", "env/bin", "runs"):
        (top / folder).mkdir(parents=True)
    (top / "src/train.py").write_text("open('../data/small.txt'); open('../../sets/big.bin')")
    (top / "src/__pycache__/train.pyc").touch()
    (top / "data/small.txt").write_text("small")
    (top / "data/big.bin").write_bytes(bytes(workspace.SMALL + 1))
    (top / "env/pyvenv.cfg").touch()
    (top / "runs/last.pt").write_text("yesterday's")
    for number in range(30):
        (top / f"data/many/{number}.txt").write_text(str(number))
    (top / "latest").symlink_to("runs/last.pt")
    (top.parent / "sets").mkdir()
    (top.parent / "sets/big.bin").write_text("0")
    (top.parent / "secrets").mkdir()
    (top / "store").symlink_to(top.parent / "sets")
    monkeypatch.chdir(top / "src")
    return top


def space_of(project: Path, *arguments: str) -> Workspace:
    return make(str(project.parents[1] / "space"), ["train.py"], arguments, Settings(root=str(project / "src")))


def test_small_files_are_copies_and_large_ones_links(project):
    space = space_of(project)
    top = Path(space.inside(str(project)))
    assert Path(space.inside("train.py")) == top / "src/train.py"
    assert (top / "data/small.txt").read_text() == "small" and not (top / "data/small.txt").is_symlink()
    assert (top / "data/big.bin").is_symlink() and (top / "env").is_symlink() and (top / ".git").is_symlink()
    assert not (top / "src/__pycache__").exists()
    assert (top.parent / "sets/big.bin").read_text() == "0", "which the script speaks of"
    assert not (top.parent / "secrets").exists()
    assert space.outside(str(top / "data/big.bin")) == str(project / "data/big.bin")


@pytest.mark.parametrize(
    "said",
    [
        "open('../../sets/big.bin')",
        'os.path.join("..", "..", "sets")',
        "here / '..' / '..' / 'sets'",
        "parent.parent / 'sets'",
    ],
)
def test_what_is_two_folders_above_is_there(project, said):
    (project / ".git").rmdir()
    (project / "src/train.py").write_text(said)
    space = space_of(project)
    source = Path(space.inside("train.py")).parent
    assert [theirs for theirs, _ in space.trees] == [str(project / "src")]
    assert (source / "../../sets/big.bin").read_text() == "0" and not (source / "../../secrets").exists()


def test_what_is_written_is_written_here(project):
    space = space_of(project)
    top = Path(space.inside(str(project)))
    (top / "runs/last.pt").write_text("today's")
    assert (top / "latest").read_text() == "today's", "a link inside the project leads to the copy"
    (top / "runs/new.pt").touch()
    assert (project / "runs/last.pt").read_text() == "yesterday's" and not (project / "runs/new.pt").exists()
    assert space.written() == []


@pytest.mark.parametrize(
    ("path", "named"),
    [("data/big.bin", "data/big.bin"), ("store/big.bin", "../sets/big.bin"), ("store/new.bin", "../sets")],
)
def test_a_write_through_a_link_is_named(project, path, named):
    space = space_of(project)
    with open(space.inside(str(project / path)), "ab") as stream:
        stream.write(b"x")
    assert os.path.normpath(project / named) in space.written()
    assert space.written() == [], "it is told once"


def test_the_next_run_begins_with_the_users_files(project):
    base = space_of(project)
    first = base.copy(str(project.parents[1] / "first"))
    top = Path(first.inside(str(project)))
    (top / "latest").write_text("today's")
    (top / "src/checkpoint.pt").touch()
    second = Path(base.copy(str(project.parents[1] / "second")).inside(str(project)))
    assert (second / "latest").read_text() == "yesterday's" and not (second / "src/checkpoint.pt").exists()
    assert (second / "data/big.bin").resolve() == project / "data/big.bin"


def test_folders_of_too_many_files_are_linked_as_a_whole(project, monkeypatch):
    monkeypatch.setattr(workspace, "_MANY", 20)
    space = space_of(project)
    many = Path(space.inside(str(project / "data/many")))
    assert many.is_symlink() and not many.parent.is_symlink()
    (many / "3.txt").write_text("other")
    (many / "new.txt").touch()
    assert space.written() == [str(project / "data/many"), str(project / "data/many/3.txt")]


def test_small_files_are_links_when_there_are_too_many_bytes_of_them(project, monkeypatch):
    monkeypatch.setattr(workspace, "_TOTAL", 20)
    space = make(str(project.parents[1] / "space"), ["train.py"], (), Settings())
    links = [path.is_symlink() for path in Path(space.inside(str(project / "data/many"))).iterdir()]
    assert len(links) == 30 and 10 <= sum(links) < 30
    assert not Path(space.inside("train.py")).is_symlink(), "code is always copied"


def test_absolute_paths_of_the_project_lead_into_the_workspace(project):
    space = space_of(project)
    top = space.inside(str(project))
    assert space.told(f"--out={project}/runs") == f"--out={top}/runs"
    assert space.told(os.pathsep.join((str(project), "/usr/lib"))) == os.pathsep.join((top, "/usr/lib"))
    assert space.told("--lr=0.1") == "--lr=0.1"


def test_a_working_folder_outside_the_project_comes_along(project, monkeypatch):
    other = project.parent / "elsewhere"
    other.mkdir()
    (other / "config.yaml").write_text("lr: 1")
    monkeypatch.chdir(other)
    space = make(str(project.parents[1] / "space"), [str(project / "src/train.py")], (), Settings(root=str(other)))
    assert (Path(space.inside(str(other))) / "config.yaml").read_text() == "lr: 1"
    assert [theirs for theirs, _ in space.trees] == [str(project), str(other)]


def test_a_workspace_inside_the_project_does_not_hold_itself(project):
    folder = project / "runs" / "kept" / "base"
    folder.parent.mkdir()
    space = make(str(folder), ["train.py"], (), Settings())
    runs = Path(space.inside(str(project / "runs")))
    assert sorted(path.name for path in runs.iterdir()) == ["last.pt"]


def test_a_search_path_around_the_script_is_its_project(project, monkeypatch):
    (project / ".git").rmdir()
    monkeypatch.setenv("PYTHONPATH", str(project))
    space = make(str(project.parents[1] / "space"), ["train.py"], (), Settings(root=str(project / "src")))
    assert [theirs for theirs, _ in space.trees] == [str(project)]
