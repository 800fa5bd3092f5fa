"""What the user asks for: [tool.amplint], the command line, and what they target (torch version, device, dtype)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from amplint.floor import torch_floor
from amplint.globs import DEFAULT_EXCLUDE, Pattern, matches, pattern
from amplint.selection import ConfigError as ConfigError
from amplint.selection import Layer, expand_all, nearest, resolve, unfixable

DEVICES = ("cpu", "cuda", "hpu", "mps", "mtia", "npu", "xla", "xpu")
DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is found in a file. `codes` is what selection came to."""

    codes: frozenset[str] = frozenset()
    notes: frozenset[str] = frozenset()  # codes whose findings of severity note are wanted, too
    unfixable: frozenset[str] = frozenset()  # codes whose fixes are shown, and not applied
    target_torch: tuple[int, int] = (2, 4)
    torch_from: str = ""  # who says so: "target-torch", or the file of the project that asks for that version
    target_device: str = "cuda"
    target_dtype: str = "float16"
    apis: tuple[dict[str, Any], ...] = ()  # the user's own [[tool.amplint.api]] entries
    roots: tuple[str, ...] = ()  # folders in which imports of the same project are looked for
    root: str = ""  # the project: the config file's folder, or the working folder
    exclude: tuple[Pattern, ...] = ()
    per_file_ignores: tuple[tuple[Pattern, frozenset[str]], ...] = ()

    def of_file(self, path: str) -> Settings:
        """The settings for one file: without the codes that per-file-ignores takes away there."""
        ignored = frozenset[str]().union(
            *(codes for pattern, codes in self.per_file_ignores if matches(path, (pattern,), self.root))
        )
        return replace(self, codes=self.codes - ignored, notes=self.notes - ignored) if ignored else self


# -- keys ---------------------------------------------------------------------------------------------------------


def _strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# Each key with what it takes; a command-line flag has the name of its key.
_KEYS = {
    "select": "a list of codes",
    "ignore": "a list of codes",
    "extend-select": "a list of codes",
    "fixable": "a list of codes",
    "unfixable": "a list of codes",
    "per-file-ignores": "a table of globs, each with a list of codes",
    "exclude": "a list of globs",
    "extend-exclude": "a list of globs",
    "target-torch": 'a version as a string, such as "2.4"',
    "target-device": f"one of {', '.join(DEVICES)}",
    "target-dtype": f"one of {', '.join(DTYPES)}",
    "api": "a list of tables, each with `names`",
    "src": "a list of folders",
}


def _fits(key: str, value: Any) -> bool:
    match key:
        case "target-torch":
            return isinstance(value, str) and re.fullmatch(r"\d+\.\d+(\.\d+)*", value) is not None
        case "target-device":
            return value in DEVICES
        case "target-dtype":
            return value in DTYPES
        case "per-file-ignores":
            return isinstance(value, dict) and all(_strings(codes) for codes in value.values())
        case "api":
            return isinstance(value, list) and all(_is_api(entry) for entry in value)
        case _:
            return _strings(value)


def _is_api(entry: Any) -> bool:
    """`names` and `fixed` have their own types; every other key is a word, or the parameter that plays a role."""
    return (
        isinstance(entry, dict)
        and _strings(entry.get("names"))
        and isinstance(entry.get("fixed", {}), dict)
        and all(isinstance(value, str) for key, value in entry.items() if key not in ("names", "fixed"))
    )


# -- sources ------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """One table of settings: what to call it in a message, the folder its globs start from, and what it says."""

    where: str
    folder: str
    table: Mapping[str, Any]


def load(
    paths: Sequence[str], flags: Mapping[str, Any], configs: Iterable[str] = (), isolated: bool = False
) -> Settings:
    """The settings for a run over `paths`: the nearest config file, then `--config`, then the flags.

    The later has the last word. `configs` are `--config` values: a file, read instead of the nearest one, or a TOML
    `key = value`. Where none of them says which torch is the oldest to run on, the project's own requirements do (not
    with `isolated`).
    """
    here = os.getcwd()
    files = [value for value in configs if os.path.isfile(value) or "=" not in value]
    inline = [
        Source(f"--config '{value}'", here, _toml(value, f"--config '{value}'"))
        for value in configs
        if value not in files
    ]
    found: Source | None = None
    if files:
        if isolated:
            raise ConfigError("--isolated reads no config file; leave out --config or --isolated")
        found = _read(files[-1], here)
        if found is None:
            raise ConfigError(f"{files[-1]}: has no table [tool.amplint]")
    elif not isolated:
        found = find(paths)
    cli = [Source(f"--{key}", here, {key: value}) for key, value in flags.items()]
    settings = build([*([found] if found else []), *inline, *cli], found.folder if found else here, paths)
    floor = None if isolated or settings.torch_from else torch_floor(_upwards(paths))
    return replace(settings, target_torch=floor.version, torch_from=floor.file) if floor else settings


def find(paths: Sequence[str]) -> Source | None:
    """The nearest amplint.toml, or pyproject.toml with [tool.amplint], from the folder that holds all paths upwards."""
    for folder in _upwards(paths):
        for name in ("amplint.toml", "pyproject.toml"):
            file = os.path.join(folder, name)
            if os.path.isfile(file) and (source := _read(file, folder)):
                return source
    return None


def _read(file: str, folder: str) -> Source | None:
    """The settings in a config file; None for a pyproject.toml that says nothing about amplint."""
    shown = os.path.relpath(file) if os.path.abspath(file).startswith(os.path.join(os.getcwd(), "")) else file
    try:
        with open(file, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise ConfigError(f"{shown}: cannot read the config file: {error.strerror}") from None
    is_project = os.path.basename(file) == "pyproject.toml"
    if is_project and b"amplint" not in data:
        return None  # most are not ours: no TOML parser for those
    try:
        table = _toml(data.decode("utf-8-sig"), shown)
    except UnicodeDecodeError:
        raise ConfigError(f"{shown}: not UTF-8") from None
    if is_project:
        tool = table.get("tool")
        ours = tool.get("amplint") if isinstance(tool, dict) else None
        if ours is None:
            return None
        if not isinstance(ours, dict):
            raise ConfigError(f"{shown}: tool.amplint is a table, not {ours!r}")
        table = ours
    return Source(shown, folder, table)


def _toml(text: str, where: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not TOML: {error}") from None


def _upwards(paths: Sequence[str]) -> Iterable[str]:
    """The folder that holds all paths, and those above it."""
    absolute = [os.path.abspath(path) for path in paths] or [os.getcwd()]
    folders = [path if os.path.isdir(path) else os.path.dirname(path) for path in absolute]
    try:
        folder = os.path.commonpath(folders)
    except ValueError:  # several Windows drives
        folder = os.getcwd()
    yield folder
    while (above := os.path.dirname(folder)) != folder:
        yield (folder := above)


def _check(source: Source) -> None:
    """Keys, types and selectors; a flag is named by itself, a key by its file."""
    for key, value in source.table.items():
        where = source.where if source.where == f"--{key}" else f"{source.where}: {key}"
        if key not in _KEYS:
            raise ConfigError(f'{source.where}: unknown key "{key}"{nearest(key, _KEYS)}')
        if not _fits(key, value):
            raise ConfigError(f"{where} takes {_KEYS[key]}, not {value!r}")
        if key in ("select", "extend-select", "ignore", "fixable", "unfixable"):
            expand_all(value, where)
        if key == "per-file-ignores":
            expand_all((code for codes in value.values() for code in codes), where)


# -- settings -----------------------------------------------------------------------------------------------------


def build(sources: list[Source], root: str, paths: Sequence[str] = ()) -> Settings:
    """Check every source and merge them; a later source has the last word, flags count as one."""
    for source in sources:
        _check(source)
    last = {key: (source, value) for source in sources for key, value in source.table.items()}

    def word(key: str, default: str) -> str:
        return str(last[key][1]) if key in last else default

    extended = [pattern(name, source.folder) for source in sources for name in source.table.get("extend-exclude", ())]
    excluder, excluded = last.get("exclude", (Source("", root, {}), DEFAULT_EXCLUDE.split()))
    ignorer, ignored = last.get("per-file-ignores", (Source("", root, {}), {}))
    codes, named = resolve(_layers(sources))
    torch = word("target-torch", "2.4").split(".")
    return Settings(
        codes=codes,
        notes=named,
        unfixable=unfixable(*(last[key][1] if key in last else None for key in ("fixable", "unfixable"))),
        target_torch=(int(torch[0]), int(torch[1])),
        torch_from="target-torch" if "target-torch" in last else "",
        target_device=word("target-device", "cuda"),
        target_dtype=word("target-dtype", "float16"),
        apis=tuple(entry for source in reversed(sources) for entry in source.table.get("api", ())),
        roots=_roots(last.get("src"), root, paths),
        root=root,
        exclude=(*(pattern(name, excluder.folder) for name in excluded), *extended),
        per_file_ignores=tuple((pattern(name, ignorer.folder), expand_all(codes)) for name, codes in ignored.items()),
    )


def _layers(sources: list[Source]) -> Iterable[Layer]:
    """The file is a layer; the command line is one more: `--select` and `--ignore` belong together."""
    for is_flag in (False, True):
        tables = [source.table for source in sources if source.where.startswith("--") is is_flag]
        select, extend, ignore = (
            tuple(selector for table in tables for selector in table.get(key, ()))
            for key in ("select", "extend-select", "ignore")
        )
        yield Layer(select if any("select" in table for table in tables) else None, extend, ignore)


def _roots(src: tuple[Source, list[str]] | None, root: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Where imports of the project are looked for: `src`, or the folder that looks like a project's, and its src/."""
    if src is not None:
        return tuple(os.path.normpath(os.path.join(src[0].folder, folder)) for folder in src[1])
    marks = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
    project = (f for f in _upwards(paths) if any(os.path.exists(os.path.join(f, mark)) for mark in marks))
    top = next(project, root)
    return (top, os.path.join(top, "src"))
