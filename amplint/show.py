"""What a run would do, without doing it: the files it would check, the settings it would check them with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from amplint import knowledge
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
