"""The files of the project that a script uses: what its model and losses do there must run in low precision, too."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from amplint import files, knowledge
from amplint.findings import Applicability, Finding
from amplint.rewrite.models.functions import custom_functions
from amplint.rewrite.refusals.refused import Refused, command
from amplint.source.interpret.project import Project
from amplint.source.module import Module, Unreadable

CRASHES = frozenset(("AMP216", "AMP401"))  # what raises in half precision, and lies in models and losses
MOST = 40
MOST_FAR = 200
FEW = 8
_STEPS = re.compile(r"\.(?:\w+_)?step(?:_\w+)?\(")  # of an optimizer, or of what wraps it: `schedule.step_and_update()`
_LOADS = re.compile(r"\b(?:importlib|import_module|instantiate|__import__|globals|locate)\b")
_ASIDE = frozenset(("tests", "test", "docs", "build", "dist", "node_modules"))
Find = Callable[[Module, frozenset[str]], Sequence[Finding]]


def check_used(module: Module, project: Project, together: Sequence[Module], find: Find) -> list[Module]:
    """The files that the script uses, and those named that use it; raises Refused if one of the former has what half
    precision cannot run, unless it is named, too, and gets its own fix."""
    named = {os.path.abspath(one.path) for one in together}
    seen, users = used_by(module, project), list[Module]()
    if len(together) <= FEW:  # a script that is named, too, and imports this one may bring the model
        for other in together:
            brought = list(_imported(other, Project.around(other, tuple(map(str, project.roots)))))
            if any(os.path.realpath(one.path) == os.path.realpath(module.path) for one in brought):
                seen += brought
                users.append(other)
    words = [word for code in CRASHES & knowledge.rules().keys() for word in knowledge.rules()[code].triggers]
    for used in seen:
        bare = next((cls for cls, _ in custom_functions(used)), None)
        if bare is not None and os.path.abspath(used.path) not in named:
            raise Refused(
                f"{used.path}:{bare.lineno} may meet half and float32 tensors together: {bare.name} has no custom_fwd",
                f"{command((module.path, used.path))} changes both",
                (module.path, used.path),
            )
        if not any(word in used.text for word in words) or os.path.realpath(used.path) == os.path.realpath(module.path):
            continue
        for finding in find(used, CRASHES):
            place = f"{used.path}:{finding.range.start.row}"
            fixed = finding.fix is not None and finding.fix.applicability is Applicability.SAFE
            if not fixed:
                raise Refused(f"{place} cannot run in half precision: {finding.message}", finding.help or "mend it")
            if os.path.abspath(used.path) not in named:
                raise Refused(
                    f"{place} cannot run in half precision: {finding.message}",
                    f"{command((module.path, used.path))} changes both",
                    (module.path, used.path),
                )
    return [*seen, *users]


_used: WeakKeyDictionary[Module, tuple[tuple[Path, ...], list[Module]]] = WeakKeyDictionary()


def used_by(module: Module, project: Project) -> list[Module]:
    """The project's files that a module uses, read once."""
    known = _used.get(module)
    if known is None or known[0] != project.roots:
        known = _used[module] = project.roots, list(_imported(module, project))
    return list(known[1])


def training(modules: Sequence[Module], roots: tuple[str, ...]) -> list[str]:
    """The files that train of those that others import, though nothing shows from where they are called: a trainer out
    of a table, one that a library makes."""
    named = {os.path.realpath(one.path) for one in modules}
    used = (one for module in modules for one in _imported(module, Project.around(module, roots), MOST_FAR))
    found = (one.path for one in used if ".backward(" in one.text and _STEPS.search(one.text))
    return list(dict.fromkeys(path for path in found if os.path.realpath(path) not in named))


def by_name(modules: Sequence[Module], roots: tuple[str, ...]) -> list[str]:
    """The files that train of those that a script may load by their names, which stand in its settings: as
    importlib, Hydra's instantiate() and the like do."""
    reached = [*modules]
    for module in modules:
        reached += _imported(module, Project.around(module, roots), MOST_FAR)
    if not any(_LOADS.search(one.text) for one in reached):
        return []
    known = {os.path.realpath(one.path) for one in reached}
    found = []
    for module in modules:
        for folder, folders, names in os.walk(os.path.dirname(module.path) or "."):
            folders[:] = sorted(one for one in folders if one[:1] not in "._" and one not in _ASIDE)
            for path in (os.path.normpath(os.path.join(folder, one)) for one in sorted(names) if one.endswith(".py")):
                if len(known) > MOST_FAR:
                    return []
                if os.path.realpath(path) not in known:
                    known.add(os.path.realpath(path))
                    found += [path] if _steps(path) else []
    return found


def _steps(path: str) -> bool:
    """Whether a file trains, and is no script of its own."""
    try:
        text = files.read(path).decode("utf-8", "replace")
    except (OSError, ValueError):
        return False
    return ".backward(" in text and _STEPS.search(text) is not None and "__main__" not in text


def _imported(module: Module, project: Project, most: int = MOST) -> Iterator[Module]:
    """The project's files that a module imports, and what these import."""
    pending, known = [module], {Path(module.path).resolve()}
    while pending and len(known) <= most:
        importer = pending.pop(0)
        for path in paths_of(importer, project.roots):
            if path in known:
                continue
            known.add(path)
            try:
                used = Module.read(os.path.relpath(path), files.read(str(path)))
            except (Unreadable, ValueError):
                continue
            pending.append(used)
            yield used


def paths_of(importer: Module, roots: Sequence[Path]) -> Iterator[Path]:
    """The files that a module's imports name: `a.b` is a/b.py or a/b/__init__.py, `from a import b` may be a/b.py."""
    folder = Path(importer.path).resolve().parent
    for node in ast.walk(importer.tree):
        if isinstance(node, ast.Import):
            names, bases = [alias.name for alias in node.names], places_from(importer, roots)
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.module else []
            names += [".".join(filter(None, (node.module, alias.name))) for alias in node.names]
            bases = (
                [folder, *folder.parents][node.level - 1 : node.level] if node.level else places_from(importer, roots)
            )
        else:
            continue
        for name in names:
            for base in bases:
                place = base.joinpath(*name.split("."))
                path = place.with_name(place.name + ".py")
                path = path if path.is_file() else place / "__init__.py"
                if path.is_file():
                    yield path.resolve()
                    break


def places_from(importer: Module, roots: Sequence[Path]) -> list[Path]:
    """Where a file may import from: the roots, and the folders between them and the file, one of which the script may
    have put on its path."""
    folder = Path(importer.path).resolve().parent
    between = [one for one in (folder, *folder.parents) if any(one != r and one.is_relative_to(r) for r in roots)]
    inner = [place for one in between for place in (one / "lib", one / "src")]
    return list(dict.fromkeys((*roots, *between, *inner)))
