"""The files that migrate together: a script, and what it imports that uses apex.amp, too."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from amplint import files
from amplint.rewrite.apex.uses import Uses, uses_of
from amplint.rewrite.around import files_around
from amplint.rewrite.models.used import paths_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused, command
from amplint.source.interpret.project import Project, trains
from amplint.source.module import Module, Unreadable

MOST = 120  # files that a script imports
_NEEDS_SCALER = ("scale_loss", "state_dict", "load_state_dict", "master_params")


@dataclass(eq=False)
class Group:
    """`main` makes the scaler, or is all there is; `uses` are the files that change because they use apex.amp; `files`
    those that the script imports, which may have to hand the scaler on. `named` are those that may be written."""

    main: Module
    uses: dict[Module, Uses]
    files: dict[Path, Module] = field(default_factory=dict)
    named: frozenset[Path] = frozenset()
    roots: tuple[Path, ...] = ()
    imports: dict[Module, list[ast.Import | ast.ImportFrom]] = field(default_factory=dict)  # found once
    names: dict[tuple[Module, str], ast.AST | None] = field(default_factory=dict)  # looked up once
    _around: dict[Module, list[tuple[Path, bytes]]] = field(default_factory=dict)

    def neighbours(self, module: Module) -> list[tuple[Path, bytes]]:
        """The files of the project around a file."""
        if module not in self._around:
            self._around[module] = list(project_files(module))
        return self._around[module]

    @cached_property
    def others(self) -> list[Module]:
        """The files that train, or may, and the packages that pass them on: what is read with the script."""
        return [
            one
            for path, one in self.files.items()
            if one in self.uses or path.name == "__init__.py" or trains(one.text.encode())
        ]

    def of(self, node: ast.AST) -> Module:
        """The file that a node is in."""
        for module in (self.main, *self.uses, *self.files.values()):
            if node is module.tree or node in module.parents:
                return module
        raise Refused("it is used in a file that amplint did not read", BY_HAND)

    def __contains__(self, module: object) -> bool:
        return module is self.main or module in self.uses or module in self.files.values()

    def source(self, module: Module, name: str, level: int) -> Module | None:
        """The file that an import in one of the files names."""
        parts = name.split(".") if name else []
        folder = Path(module.path).resolve().parent
        for base in [folder, *folder.parents][level - 1 : level] if level else self.roots:
            place = base.joinpath(*parts)
            for path in (place.with_name(place.name + ".py"), place / "__init__.py"):
                if (found := self.files.get(path)) is not None:
                    return found
        return None

    def check(self) -> None:
        """Raise Refused where not all files that change were named."""
        if any(Path(one.path).resolve() not in self.named for one in self.uses):
            raise Refused("its use of apex.amp is spread over several files", f"`{self.command()}` changes all of them")

    def command(self, also: Sequence[Module] = ()) -> str:
        """The command line that names all files that change."""
        shown = {_shown(one.path) for one in (*self.uses, *also)}
        return command(shown)


def group_of(module: Module, roots: tuple[str, ...], together: Sequence[Module]) -> Group:
    """The group of a file that uses apex.amp; raises Refused where its script is not found."""
    given = {Path(one.path).resolve(): one for one in (*together, module)}
    if not Path(module.path).is_file():
        return Group(module, {module: uses_of(module)}, {Path(module.path).resolve(): module}, frozenset(given))
    project = Project.around(module, roots)
    mine = uses_of(module)
    main = module
    if not mine.named("initialize") and mine.uses:
        main = _script_of(module, roots, given, bool(mine.named(*_NEEDS_SCALER)))
        project = Project.around(main, roots)
    files_ = {Path(one.path).resolve(): one for one in _closure(main, project.roots, given)}
    uses = {main: uses_of(main)}
    for one in files_.values():
        found = uses_of(one)
        if one is not main and found.uses and not found.native and not found.named("initialize"):
            uses[one] = found
    return Group(main, uses, files_, frozenset(given), project.roots)


def _closure(module: Module, roots: Sequence[Path], given: dict[Path, Module]) -> Iterator[Module]:
    """A file, and those of the project that it imports, and what these import."""
    pending, known = [module], {Path(module.path).resolve()}
    while pending and len(known) <= MOST:
        importer = pending.pop(0)
        yield importer
        for path in paths_of(importer, roots):
            if path not in known:
                known.add(path)
                if (used := given.get(path) or _read(path)) is not None:
                    pending.append(used)


def _read(path: Path) -> Module | None:
    try:
        return Module.read(_shown(str(path)), files.read(str(path)))
    except (Unreadable, ValueError):
        return None


def _script_of(helper: Module, roots: tuple[str, ...], given: dict[Path, Module], needed: bool) -> Module:
    """The script that calls amp.initialize and imports a helper: one that was named, or one of the project."""
    place = Path(helper.path).resolve()

    def imports_it(script: Module) -> bool:
        folders = Project.around(script, roots).roots
        return any(Path(one.path).resolve() == place for one in _closure(script, folders, given))

    def initializes(script: Module) -> bool:
        return "initialize" in script.text and bool(uses_of(script).named("initialize"))

    scripts = [one for one in given.values() if one is not helper and initializes(one) and imports_it(one)]
    if not scripts:
        for path, text in project_files(helper):
            if b"initialize" in text and b"apex" in text and path != place:
                script = _read(path)
                if script is not None and initializes(script) and imports_it(script):
                    scripts.append(script)
    if not scripts and not needed:
        return helper
    if not scripts:
        raise Refused(
            "amp.initialize is not in this file, nor in one of the project that imports it",
            "pass a torch.amp.GradScaler in from where it is called, and change both by hand",
        )
    if len(scripts) > 1:
        shown = ", ".join(_shown(one.path) for one in scripts[:3])
        raise Refused(f"several scripts call amp.initialize and use this file ({shown})", BY_HAND)
    return scripts[0]


def project_files(module: Module) -> Iterator[tuple[Path, bytes]]:
    """The Python files around a file, and what is in them."""
    for path in files_around(module, near=True):
        with suppress(OSError):
            yield path.resolve(), path.read_bytes()


def _shown(path: str) -> str:
    """A path as a person would type it: relative to where they are, if it lies below."""
    near = os.path.relpath(path)
    return os.path.abspath(path) if near.startswith("..") else near
