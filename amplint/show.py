"""What a run would do, without doing it: the files it would check, the settings; and what amplint knows: its rules."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict

import click

from amplint import knowledge
from amplint.cli import fail
from amplint.config import Settings
from amplint.files import File
from amplint.report.lines import path_text


def shown_files(found: Iterable[File]) -> Iterator[str]:
    """A path a line; with what is in the way of one that cannot be checked."""
    for file in found:
        yield path_text(file.path) + (f": {file.problem}" if file.problem else "")


def shown_settings(settings: Settings) -> Iterator[str]:
    """The settings as TOML that would bring them about, with where they come from."""
    rules = knowledge.rules()
    yield f"# project folder {path_text(settings.root)}"
    yield _list("select", [f"{code}  # {rules[code].name}" for code in sorted(settings.codes)])
    asked = f"  # {path_text(settings.torch_from)}" if settings.torch_from not in ("", "target-torch") else ""
    yield f'target-torch = "{settings.target_torch[0]}.{settings.target_torch[1]}"{asked}'
    yield f'target-device = "{settings.target_device}"'
    yield f'target-dtype = "{settings.target_dtype}"'
    yield _list("src", settings.roots)
    yield _list("exclude", [pattern.name for pattern in settings.exclude])
    if settings.per_file_ignores:
        yield "\n[per-file-ignores]"
        for glob, codes in settings.per_file_ignores:
            yield f"{json.dumps(glob.name)} = {json.dumps(sorted(codes))}"
    for entry in settings.apis:
        yield "\n[[api]]"
        yield from (f"{key} = {json.dumps(value)}" for key, value in entry.items() if not isinstance(value, dict))


def _list(key: str, values: Iterable[str]) -> str:
    """A TOML list, a value a line; what follows two blanks and a # is a comment."""
    lines = []
    for value in values:
        text, sign, comment = value.partition("  # ")
        lines.append(f"  {json.dumps(text)},{sign}{comment}\n")
    return f"{key} = [\n{''.join(lines)}]" if lines else f"{key} = []"


def rule(code: str | None, output_format: str) -> int:
    """`amplint rule`: one page, or all of them."""
    rules = knowledge.rules()
    if code is None:
        chosen = list(rules.values())
    else:
        wanted = code.upper()
        chosen = [rule for rule in rules.values() if rule.code == wanted or rule.name == code]
        if not chosen:
            from amplint.selection import nearest

            names = [rule.name for rule in rules.values()]
            fail(f'unknown rule "{code}"{nearest(wanted, rules) or nearest(code, names)}')
    if output_format == "json":
        entries = [{**asdict(rule), "severity": rule.severity.value} for rule in chosen]
        click.echo(json.dumps(entries if code is None else entries[0], indent=2))
        return 0
    for rule in chosen:
        if output_format == "markdown":
            click.echo(f"# {rule.name} ({rule.code})\n\n{rule.text}")
            continue
        title = click.style(f"{rule.code} {rule.name}", bold=True)
        state = "preview" if rule.preview else "on by default" if rule.default else "off by default"
        state += " in amplint trace" if rule.depth == "trace" else ""
        click.echo(f"{title}\n{rule.severity} · fix: {rule.fix} · {state} · since {rule.since}\n\n{rule.text}")
    return 0
