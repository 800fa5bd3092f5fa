"""The review bot against forges that behave as documented, with a real repository behind them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from amplint.cli import cli
from tests.review.forges import TOKEN, GitHubHandler, GitLabHandler, State, commit, git, serving

HEAD = """\
import torch

def train(model, loader, optimizer):
    scaler = torch.amp.GradScaler("cuda")
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = torch.nn.functional.mse_loss(model(x), y)
        scaler.scale(loss).backward()
"""
GOOD = (
    HEAD
    + """\
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
"""
)
BAD = GOOD.replace("        scaler.unscale_(optimizer)\n", "")
OLD = """\
import torch
from torch.cuda.amp import GradScaler, autocast

scaler = GradScaler()

with autocast():
    pass
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, {"pyproject.toml": "[tool.amplint]\n", "train.py": GOOD, "model.py": "import torch\n"})
    monkeypatch.chdir(folder)
    for name in ("GITHUB_TOKEN", "GITLAB_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_EVENT_PATH", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return folder


def change(folder: Path, files: dict[str, str | bytes | None]) -> State:
    """A request that makes these changes, checked out."""
    base = git(folder, "rev-parse", "HEAD").strip()
    return State(folder, base, commit(folder, files))


Ask = Callable[..., Result]


@pytest.fixture
def ask() -> Ask:
    """Run the bot against a forge that has this state."""

    def run(state: State, *more: str, gitlab: bool = False) -> Result:
        with serving(state, GitLabHandler if gitlab else GitHubHandler) as url:
            forge = ["--gitlab", "--repository", "g/p"] if gitlab else ["--github", "--repository", "o/r"]
            result = CliRunner().invoke(cli, ["review", *forge, "--number", "7", "--api", url, *more])
        assert TOKEN not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def accepted(text: str, comments: list[dict[str, Any]]) -> str:
    """The text after all suggestions are taken."""
    rows = text.split("\n")
    for one in sorted(comments, key=lambda one: -one["line"]):
        block = re.search(r"^(`{3,})suggestion\n(.*?)^\1$", one["body"], re.MULTILINE | re.DOTALL)
        if block:
            rows[one.get("start_line", one["line"]) - 1 : one["line"]] = block[2].split("\n")[:-1]
    return "\n".join(rows)


def check_fixed(folder: Path, name: str) -> str:
    done = CliRunner().invoke(cli, ["check", "--fix", "--quiet", "--no-cache", name])
    assert done.exit_code in (0, 1)
    text = (folder / name).read_text()
    git(folder, "checkout", "-q", name)
    return text


@pytest.mark.parametrize("gitlab", [False, True], ids=["github", "gitlab"])
def test_a_request_from_first_to_last(repository: Path, ask: Ask, gitlab: bool) -> None:
    state = change(repository, {"train.py": BAD, "old.py": OLD, "notes.md": "x", "data.bin": b"\0\1"})
    result = ask(state, gitlab=gitlab)
    assert result.exit_code == 1, result.output
    bodies = [one["body"] for one in state.comments if "<!-- amplint:" in one["body"]]
    assert sum("AMP105" in body for body in bodies) == 1 and len(bodies) == 2
    assert "5 findings on changed lines: 2 new comments" in result.output
    if not gitlab:
        (review,) = state.reviews
        assert review["event"] == "COMMENT" and review["commit_id"] == state.head
        for name in ("train.py", "old.py"):
            own = [one for one in state.comments if one["path"] == name]
            assert accepted((repository / name).read_text(), own) == check_fixed(repository, name)

    again = ask(state, gitlab=gitlab)
    assert again.exit_code == 1 and "0 new comments, 2 said before" in again.output
    assert len([one for one in state.comments if "<!-- amplint:" in one["body"]]) == 2

    # the next push mends all; one comment was talked about
    talked = next(one for one in state.comments if "AMP105" in one["body"])
    if gitlab:
        talked["replies"] = [{"id": 9, "body": "why?", "author": {"id": 6}, "system": False}]
    else:
        state.comments.append({"id": 9, "in_reply_to_id": talked["id"], "body": "why?", "user": {"login": "ann"}})
    state.head = commit(repository, {"train.py": GOOD, "old.py": None})
    last = ask(state, gitlab=gitlab)
    assert last.exit_code == 0 and "1 outdated comment removed" in last.output
    assert [one["body"] for one in state.comments if "<!-- amplint:" in one["body"]] == [talked["body"]]


def test_only_what_the_change_touches(repository: Path, ask: Ask) -> None:
    commit(repository, {"train.py": BAD})
    state = change(repository, {"train.py": BAD + "\n\nprint(1)\n"})
    assert ask(state).exit_code == 0 and not state.comments
    state = change(repository, {"moved.py": BAD + "\n\nprint(1)\n", "train.py": None})
    assert ask(state).exit_code == 0 and not state.comments, "a renamed file is not a new one"


def test_a_row_that_is_gone_is_a_change_of_its_neighbours(repository: Path, ask: Ask) -> None:
    state = change(repository, {"train.py": BAD})
    ask(state)
    (comment,) = state.comments
    assert "AMP105" in comment["body"] and comment["path"] == "train.py"


def test_what_anybody_could_write_is_not_the_bots(repository: Path, ask: Ask) -> None:
    """A fingerprint in a stranger's comment neither hides a finding nor gets the comment removed."""
    state = change(repository, {"train.py": BAD})
    ask(state)
    mark = re.search("<!-- amplint:.* -->", state.comments[0]["body"])
    assert mark
    theirs = [{"id": i, "body": body, "user": {"login": "eve"}} for i, body in ((1, mark[0]), (2, mark[0][::1]))]
    theirs[1]["body"] = "<!-- amplint:0123456789abcdef -->"
    state.comments[:] = theirs
    assert "1 new comment" in ask(state).output
    assert len(state.comments) == 3


def test_more_than_a_review_holds(repository: Path, ask: Ask) -> None:
    state = change(repository, {f"m{number}.py": OLD for number in range(40)})
    assert ask(state).exit_code == 1
    (review,) = state.reviews
    assert len(review["comments"]) == 30 and "10 further findings" in review["body"]
    assert ask(state).exit_code == 1 and len(state.reviews[1]["comments"]) == 10


def test_a_token_that_may_only_read(
    repository: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    state = change(repository, {"train.py": BAD})
    state.read_only = True
    result = ask(state)
    assert result.exit_code == 1 and "::error title=amplint (AMP105),file=train.py,line=10" in result.output
    assert "AMP105" in (tmp_path / "summary.md").read_text() and not state.comments


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("gitlab", [False, True], ids=["github", "gitlab"])
def test_a_server_that_fails_while_it_is_told(repository: Path, ask: Ask, gitlab: bool, done: bool) -> None:
    """Whether it did what it was told or not: in the end each thing is said once."""
    state = change(repository, {"train.py": BAD, "old.py": OLD})
    state.failing = [("GET", 502, False), ("GET", 429, False), ("POST", 502, done)]
    assert ask(state, gitlab=gitlab).exit_code == 1
    marks = [mark for one in state.comments for mark in re.findall("amplint:[0-9a-f]{16}", one["body"])]
    assert len(marks) == len(set(marks)) == 5


@pytest.mark.parametrize(
    ("status", "said"), [(401, "wrong or has expired"), (404, "no such repository"), (500, "500 Server Error")]
)
def test_a_server_that_says_no(repository: Path, ask: Ask, status: int, said: str) -> None:
    state = change(repository, {"train.py": BAD})
    state.failing = [("GET", status, False)] * 4
    result = ask(state)
    assert result.exit_code == 2 and said in result.output and len(result.output.splitlines()) == 1


def test_a_push_while_it_is_reviewed(repository: Path, ask: Ask) -> None:
    state = change(repository, {"train.py": BAD})
    state.heads = [state.head, "f" * 40]
    result = ask(state)
    assert result.exit_code == 2 and "pushed to while it was reviewed" in result.output and not state.comments


def test_a_checkout_of_something_else(repository: Path, ask: Ask) -> None:
    state = change(repository, {"train.py": BAD})
    commit(repository, {"train.py": "x = 1\n" + BAD})
    result = ask(state)
    assert "train.py: differs from the commit under review" in result.output and not state.comments


def test_a_comment_without_a_place_does_not_take_the_others_with_it(
    repository: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = change(repository, {"train.py": BAD, "old.py": OLD})
    monkeypatch.setattr(GitHubHandler, "_fits", lambda self, comment: "AMP105" not in comment["body"])
    result = ask(state)
    assert "has no place in the diff any more: train.py:10: AMP105" in result.output
    assert len(state.comments) == 1


def test_a_malicious_repository(repository: Path, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text(OLD.replace("scaler", "password"))
    (repository / "link.py").symlink_to(tmp_path / "secret.py")
    (repository / "imported.py").symlink_to(tmp_path / "secret.py")
    hostile = "a`b <img src=x> @all\n# ::error::x.py"
    state = change(repository, {hostile: OLD, "-rf.py": OLD, "uses.py": "from imported import password\n" + OLD})
    state.extra = [
        {
            "filename": "../secret.py",
            "status": "added",
            "sha": "",
            "changes": 7,
            "patch": "@@ -0,0 +1,7 @@\n" + "+x\n" * 7,
        },
        {"filename": "huge.py", "status": "modified", "sha": "", "changes": 9999},
    ]
    result = ask(state)
    assert result.exit_code == 1
    posted = "\n".join(one["body"] for one in (*state.comments, *state.reviews))
    assert "password" not in posted and "password" not in result.output
    outside = re.sub(r"(`+).*?\1", "", posted)  # of code
    assert "<img" not in outside and " @all" not in outside and "\n::error" not in result.output
    assert "link.py: is a link, which is not followed" in result.output
    assert "../secret.py: lies outside the repository" in result.output
    assert "huge.py: its diff is too large" in result.output
    assert {one["path"] for one in state.comments} == {hostile, "-rf.py", "uses.py"}


@pytest.mark.parametrize("files", [{}, {"data.bin": b"\0\1"}, {"train.py": None}], ids=["empty", "binary", "removed"])
def test_nothing_to_review(repository: Path, ask: Ask, files: dict[str, str | bytes | None]) -> None:
    state = change(repository, files)
    result = ask(state)
    assert (result.exit_code, result.output) == (0, "0 findings on changed lines: 0 new comments\n")


def test_the_verdict_of_a_run_is_attached(repository: Path, ask: Ask, tmp_path: Path) -> None:
    import json

    from tests.verify.test_verify_report import REPORT

    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    state = change(repository, {"train.py": BAD})
    ask(state, "--verify", str(tmp_path / "report.json"))
    assert "not the same, over 50 steps" in state.reviews[0]["body"]
    (tmp_path / "report.json").write_text("[]")
    result = ask(state, "--verify", str(tmp_path / "report.json"))
    assert result.exit_code == 2 and "is no report of amplint verify" in result.output


def test_it_says_what_it_needs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["review", *arguments])
        assert result.exit_code == 2
        return result.output

    assert "name it with --repository" in said("--github")
    assert "name it with --number" in said("--github", "--repository", "o/r")
    assert "name one: --github or --gitlab" in said()
    monkeypatch.delenv("GITHUB_TOKEN")
    assert "set GITHUB_TOKEN" in said("--github")


def test_the_workflows_own_request(repository: Path, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = change(repository, {"train.py": BAD})
    (tmp_path / "event.json").write_text('{"pull_request": {"number": 7}}')
    monkeypatch.setenv("GITHUB_EVENT_PATH", str(tmp_path / "event.json"))
    monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
    with serving(state, GitHubHandler) as url:
        monkeypatch.setenv("GITHUB_API_URL", url)
        assert CliRunner().invoke(cli, ["review", "--github"]).exit_code == 1
    assert len(state.comments) == 1
