"""`amplint review`: check the files that a change touches, say what is new, take back what is no more."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import click

from amplint import files, output
from amplint.cli import fail
from amplint.config import Settings
from amplint.engine import Job, check_file, source
from amplint.files import File
from amplint.findings import Finding, Severity
from amplint.report.lines import path_text
from amplint.report.markdown import code, escaped
from amplint.report.numbers import many
from amplint.report.places import repository
from amplint.report.text import name
from amplint.review import github, gitlab
from amplint.review.comments import MOST, Comment, comments
from amplint.review.forge import Change, Changed, Forge, NoContext, ReadOnly
from amplint.review.http import Refused
from amplint.source.fence import fenced
from amplint.source.module import MAX_BYTES

_TITLE = "**amplint** finds mixed-precision mistakes in the lines that this change touches."


def review(settings: Settings, options: dict[str, Any]) -> int:
    """0 nothing found on the changed rows, 1 something, 2 could not review."""
    top = repository(os.getcwd())
    attached = _attached(options["verify"])
    connect = gitlab.connect if options["gitlab"] else github.connect
    try:
        forge: Forge = connect(options["repository"], options["number"], options["api"])
        change = forge.change()
        mine, notes = _checked_out(change, top)
        found, failed = _found(mine, settings, top)
        place = output.around(source, files.text, settings)
        made = comments(found, {one.path: one.hunks for one in mine}, place)
        _say(forge, change, made, [*change.notes, *notes, *failed], attached)
    except NoContext as error:
        fail(str(error))
    except ReadOnly as error:
        click.echo(f"note: the token cannot comment, so the findings are annotations: {error}", err=True)
        _annotate([finding for one in made for finding in (one.finding, *one.others)], place)
    except Refused as error:
        fail(_told(error))
    return int(bool(made) and not options["exit_zero"])


def _told(error: Refused) -> str:
    hints = {
        401: "the token is wrong or has expired",
        403: "the token may not read this repository",
        404: "no such repository or request, or the token may not read it",
    }
    return f"{error}; {hints[error.status]}" if error.status in hints else str(error)


def _attached(file: str | None) -> str:
    """The verdict of a run of `amplint verify --output-format json`, for the review's body."""
    if not file:
        return ""
    from amplint.report.verify.markdown import markdown

    try:
        with open(file, encoding="utf-8") as stream:
            return markdown(json.load(stream))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        fail(f"--verify: {file} is no report of amplint verify --output-format json")


# -- what is checked ----------------------------------------------------------------------------------------------


def _checked_out(change: Change, top: str) -> tuple[list[Changed], list[str]]:
    """The changed Python files whose content here is the one under review; and why others are not."""
    mine, notes = [], []
    here = _head(top)
    for file in change.files:
        if not file.path.endswith(files.SUFFIXES) or not file.hunks:
            continue
        problem = _problem(file, top, here == change.head)
        if problem:
            notes.append(f"{file.path}: {problem}")
        else:
            mine.append(file)
    return mine, notes


def _problem(file: Changed, top: str, is_head: bool) -> str:
    """Why a file of the change is not checked; empty where it is."""
    path = os.path.join(top, *file.path.split("/"))
    if ".." in file.path.split("/") or os.path.isabs(file.path):
        return "lies outside the repository"
    if os.path.islink(path) or not _inside(path, top):
        return "is a link, which is not followed"
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError:
        return "is not checked out here"
    same = _blob(data) == file.blob if file.blob else is_head
    return "" if same else "differs from the commit under review: check out that commit (not the merge)"


def _inside(path: str, top: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(top), ""))


def _blob(data: bytes) -> str:
    """Git's name for a file's content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()


def _head(top: str) -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=top, capture_output=True, text=True, check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _found(mine: Sequence[Changed], settings: Settings, top: str) -> tuple[list[Finding], list[str]]:
    """The findings in these files. Their texts, and those of what they import, are data, and lie in the checkout."""
    found: list[Finding] = []
    failed: list[str] = []
    job = Job(settings)
    with fenced(top):
        for file in mine:
            path = os.path.relpath(os.path.join(top, *file.path.split("/")))
            if not files.discover([path], settings, force_exclude=True):
                continue
            outcome = check_file(File(path, named=True), job)
            for finding in outcome.findings:
                if finding.is_failure:
                    failed.append(f"{file.path}: {finding.message}")
                else:
                    found.append(finding)
    return found, failed


# -- what is said -------------------------------------------------------------------------------------------------


def _say(forge: Forge, change: Change, made: list[Comment], notes: list[str], attached: str) -> None:
    """Post what is new, remove what is no more and nobody answered."""
    before = forge.posted()
    known = {fingerprint for one in before for fingerprint in one.fingerprints}
    fresh = [one for one in made if not known.issuperset(one.fingerprints)]
    shown, rest = fresh[:MOST], fresh[MOST:]
    if shown:
        if forge.head() != change.head:
            fail("the change was pushed to while it was reviewed: nothing is posted; the next run reviews what is new")
        lost = forge.post(change, shown, _body(made, rest, notes, attached))
        for comment in lost:
            click.echo(f"warning: has no place in the diff any more: {_line(comment)}", err=True)
    current = {fingerprint for one in made for fingerprint in one.fingerprints}
    again = {fingerprint for one in shown for fingerprint in one.fingerprints}  # in a comment that holds more, now
    gone = [one for one in before if not one.replied and (not one.fingerprints & current or one.fingerprints <= again)]
    for one in gone:
        forge.remove(one)
    for note in notes:
        click.echo(f"note: {path_text(note)}", err=True)
    count = sum(1 + len(one.others) for one in made)
    said = f"{many(count, 'finding')} on changed lines: {many(len(shown), 'new comment')}"
    said += f", {len(made) - len(fresh)} said before" if len(made) > len(fresh) else ""
    said += f", {many(len(gone), 'outdated comment')} removed" if gone else ""
    click.echo(said)


def _body(made: list[Comment], rest: list[Comment], notes: list[str], attached: str) -> str:
    found = [finding.severity for one in made for finding in (one.finding, *one.others)]
    counts = [(severity, found.count(severity)) for severity in Severity]
    parts = [f"{_TITLE} {', '.join(many(count, severity.value) for severity, count in counts if count)}."]
    if rest:
        lines = "\n".join(f"- {code(f'{path_text(one.path)}:{one.first}')} {_summary(one)}" for one in rest[:300])
        more = f"\n- … and {len(rest) - 300} more" if len(rest) > 300 else ""
        parts.append(f"<details><summary>{many(len(rest), 'further finding')}</summary>\n\n{lines}{more}\n\n</details>")
    if notes:
        parts.append("Not reviewed:\n" + "\n".join(f"- {escaped(note)}" for note in notes[:20]))
    if attached:
        parts.append(attached)
    return "\n\n".join(parts)


def _summary(comment: Comment) -> str:
    return f"{comment.finding.code} {name(comment.finding.code)}: {escaped(comment.finding.message)}"


def _line(comment: Comment) -> str:
    return f"{path_text(comment.path)}:{comment.first}: {comment.finding.code} {comment.finding.message}"


def _annotate(found: list[Finding], place: Any) -> None:
    """Workflow commands, and the job's summary where there is one."""
    for piece in output.structured("github", found, place):
        click.echo(piece)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        output.write([output.Target("markdown", summary)], lambda how: output.structured(how, found, place))
