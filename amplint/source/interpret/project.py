"""The files of the same project: where an import is looked for, and what was looked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

from amplint.source.fence import outside
from amplint.source.module import Module, Unreadable

MOST_TOGETHER = 40  # files of one project in one reading, where they are changed together
MOST_FOLLOWED = 12  # … and where they are only followed: each costs time
MOST_PLACES = 800  # where they are looked for: most are not there
FEW_PLACES = 40  # … by a file that does not train
MOST_PASSED_ON = 20_000  # bytes of an __init__.py that only imports from the files around it
_TRAINS = (
    b"backward",
    b"GradScaler",
    b"autocast",
    b"zero_grad",
    b"torch.optim",
    b".half()",
    b"float16",
    b"apex",
    b"clip_grad",
    b"loss_scale",  # a scaler of one's own
)
_STEPS = ("caler", "backward(", "autocast", ".step(", "scale_loss")
_HANDLES = (b"optimizer", b"optim.")  # what else a file must say to matter where several are changed together
_MARKERS = ("pyproject.toml", "setup.py", "setup.cfg", ".git")


_together: dict[Path, Module] | None = None
_above_together: list[Path] = []  # the folders of those files, and those above them


@contextmanager
def together(modules: Sequence[Module]) -> Iterator[None]:
    """Read these where the project's files are read: what fixes made of them, before it is written. Packages that only
    pass on what other files define are followed, too, and files that only handle the optimizer."""
    global _together, _above_together
    before = _together, _above_together
    _together = {Path(one.path).resolve(): one for one in modules}
    folders = dict.fromkeys(path.parent for path in _together)
    _above_together = list(dict.fromkeys(above for one in folders for above in (one, *one.parents)))
    try:
        yield
    finally:
        _together, _above_together = before


def now_together() -> object:
    """What stands for the files that are read together now: another one as soon as others are."""
    return _together


@dataclass(eq=False)
class Project:
    """Finds and reads the local modules that a file imports.

    Roots are the file's own folder, the folders given, the one that its package lies in, the project's root, its `src/`
    and its `lib/`. `sought` lists every path that was read or looked for, so that a cache knows what a result depends
    on.
    """

    main: Module
    roots: tuple[Path, ...] = ()
    modules: dict[Path, Module | None] = field(default_factory=dict)
    sought: set[Path] = field(default_factory=set)
    _read: int = 0
    _tops: dict[str, bool] = field(default_factory=dict)
    _found: dict[tuple[str, int, str, bool], Module | None] = field(default_factory=dict)

    @classmethod
    def around(cls, main: Module, roots: tuple[str, ...] = (), others: Sequence[Module] = ()) -> Project:
        """The project of a file on disk; a file that is not there (standard input) has none. `others` stand for the
        files at their paths, as they are or as they are to become."""
        path = Path(main.path)
        if not path.is_file():
            return cls(main)
        folder = path.resolve().parent
        top = project_root(folder)
        projects = [top, top / "src", top / "lib"] if top else []
        found = [folder, *map(Path, roots), *_above(folder, top), _package_home(folder), *projects]
        known = {Path(one.path).resolve(): one for one in others}
        return cls(main, tuple(dict.fromkeys(found)), {**known, path.resolve(): main})

    def find(self, name: str, level: int, importer: Module, whole: bool = False) -> Module | None:
        """The module `name` as `importer` would import it (level: leading dots), or None if it is not in the
        project. `whole` asks for files that have no word of training, too, where files are changed together."""
        whole = whole and _together is not None
        key = (name, level, importer.path if level else "", whole)
        if key not in self._found:  # asked for every attribute of every object whose class has an imported base
            self._found[key] = self._find(name, level, importer, whole)
        return self._found[key]

    def _find(self, name: str, level: int, importer: Module, whole: bool) -> Module | None:
        parts = name.split(".") if name else []
        if level:
            base = Path(importer.path).resolve().parent
            for _ in range(level - 1):
                base = base.parent
            return self._at(base, parts, whole)
        if not parts:
            return None
        for root in self.roots:
            module = self._at(root, parts, whole)
            if module is not None:
                return module
        return None

    def has(self, top: str) -> bool:
        """Whether a top-level package or module of this name lies in the project."""
        if top not in self._tops:
            places = [root / top for root in self.roots]
            self.sought.update(place.with_name(top + ".py") for place in places)
            self._tops[top] = any(place.is_dir() or place.with_name(top + ".py").is_file() for place in places)
        return self._tops[top]

    def _room(self) -> bool:
        """Whether one more file may be read. Those count that are there and say something of training. Every import is
        looked for in several places: where a script trains, or files are changed together, there are many, or it would
        not reach its own loop."""
        most = MOST_TOGETHER if _together is not None else MOST_FOLLOWED
        return self._read < most and len(self.modules) < self._places

    @cached_property
    def _places(self) -> int:
        far = _together is not None or any(word in self.main.text for word in _STEPS)
        return MOST_PLACES if far else FEW_PLACES

    def _at(self, base: Path, parts: list[str], whole: bool = False) -> Module | None:
        place = base.joinpath(*parts)
        candidates = [place / "__init__.py"] if not parts else [place.with_suffix(".py"), place / "__init__.py"]
        for path in candidates:
            self.sought.add(path)
            if path not in self.modules or (whole and self.modules[path] is None):
                self.modules[path] = _read(path, whole) if self._room() or _is_named(path) else None
                self._read += self.modules[path] is not None
            if self.modules[path] is not None:
                return self.modules[path]
        return None


def _is_named(path: Path) -> bool:
    return _together is not None and (path in _together or path.resolve() in _together)


def _above(folder: Path, top: Path | None) -> list[Path]:
    """Where files that are changed together may import from: the folders above, up to the project's or the working
    folder, and those above the other files."""
    if _together is None:
        return []
    end = top or Path.cwd()
    found = [one for one in (folder, *folder.parents, *_above_together) if one.is_relative_to(end)]
    inner = [place for one in found for place in (one / "lib", one / "src") if place.is_dir()]
    return list(dict.fromkeys((*found, *inner)))


def _package_home(folder: Path) -> Path:
    """The folder that the package of this folder lies in: where its own name can be imported from."""
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def project_root(folder: Path) -> Path | None:
    """The nearest folder above that says it is a project."""
    for place in (folder, *folder.parents[:6]):
        if any((place / marker).exists() for marker in _MARKERS):
            return place
    return None


def _read(path: Path, whole: bool = False) -> Module | None:
    """The module at a path, if it is one that trains: others are to a script what a library is."""
    try:
        stamp = path.stat()
    except OSError:
        return None
    if _together is None:
        return _parse(path, stamp.st_mtime_ns, stamp.st_size)
    known = _together.get(path) or _together.get(path.resolve())
    return known or _parse(path, stamp.st_mtime_ns, stamp.st_size, wider=True, whole=whole)


def trains(data: bytes) -> bool:
    """Whether a file has a word of training in it."""
    return any(word in data for word in _TRAINS)


@lru_cache(maxsize=64)
def _parse(path: Path, changed: int, size: int, wider: bool = False, whole: bool = False) -> Module | None:
    """Kept while the file stays as it is: the files of a project import the same ones again and again."""
    words = (*_TRAINS, *_HANDLES) if wider else _TRAINS
    if outside(path):
        return None
    try:
        data = path.read_bytes()
        passes_on = whole or (wider and path.name == "__init__.py" and size <= MOST_PASSED_ON)
        return Module.read(_shown(path), data) if passes_on or any(word in data for word in words) else None
    except (OSError, Unreadable):
        return None


def _shown(path: Path) -> str:
    """The path as a person would give it: relative to where they are, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
