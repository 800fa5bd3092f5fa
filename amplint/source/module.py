"""A source file as amplint reads it: decoded text, syntax tree, exact places, and what each imported name stands for.

amplint reads on the standard library's `ast`: it is eight times cheaper than a lossless tree and carries exact
positions. What a fix changes is edited on LibCST nodes (rewrite/edits.py), and only the statement that changes.
"""

from __future__ import annotations

import ast
import codecs
import io
import os
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from amplint.findings import Location, Range
from amplint.source import newer, notebook
from amplint.source.walk import children, walk

N = TypeVar("N", bound=ast.AST)
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_FOREIGN = frozenset(("paddle", "megengine", "mindspore", "jittor", "oneflow"))
LINE_END = re.compile(r"\r\n|\r|\n")
_KEYWORD = re.compile(r"[(,\s]async\s*=[^=]")
_PYTHON_2 = re.compile(  # in a line that Python 3 does not take
    r"^\s*(print|exec)\s+[^(=]|^\s*except\s.*,|^\s*raise\s+[\w.]+\s*,|<>|`|\b0[0-7]+\b|\bur['\"]"
)
_TEST_FILE = re.compile(r"test_.*\.py|.*_test\.py|conftest\.py")
_BENCHMARK = re.compile(r"bench(mark(s|ing)?)?(?![a-z])", re.IGNORECASE)
_TESTS = re.compile(r"def test_|unittest|pytest")
_RE_EXPORTS = re.compile(r"compat|import|optional|lazy|depend")  # a file that imports what may be missing
MAX_BYTES = 5_000_000  # a larger file is generated, not written
MAX_NOTEBOOK = 50_000_000  # most of which are pictures


class Unreadable(Exception):
    """The file cannot be read as Python source; the message says why in one line."""

    def __init__(self, reason: str, location: Location | None = None):
        super().__init__(reason)
        self.reason = reason
        self.location = location or Location(1, 1)


def decode(data: bytes) -> tuple[str, str]:
    """Decode source bytes as Python does (BOM, coding cookie, UTF-8); returns the text and the encoding's name.

    Raises Unreadable where the bytes are not text in that encoding.
    """
    if len(data) > MAX_BYTES:
        raise Unreadable(f"file of {len(data) / 1e6:.0f} MB; amplint reads up to {MAX_BYTES / 1e6:.0f} MB")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeError, LookupError) as error:
        raise _not_text(data, error) from None
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise Unreadable("contains a NUL byte", Location(row, 1))
    return text, encoding


def text_of(path: str, data: bytes) -> tuple[str, str]:
    """The Python source in a file's bytes and encoding: a file's text, or a notebook's code. Raises Unreadable."""
    if not path.endswith(notebook.SUFFIX):
        return decode(data)
    try:
        text = notebook.text_of(data)
    except notebook.NotANotebook as error:
        raise Unreadable(str(error)) from None
    if len(text) > MAX_BYTES:
        raise Unreadable(f"{len(text) / 1e6:.0f} MB of code; amplint reads up to {MAX_BYTES / 1e6:.0f} MB")
    return text, "utf-8"


def bytes_of(path: str, text: str, encoding: str, data: bytes) -> bytes:
    """What a file that held `data` holds with its source changed to `text`. Raises UnicodeEncodeError."""
    return notebook.with_text(data, text) if path.endswith(notebook.SUFFIX) else text.encode(encoding)


def _not_text(data: bytes, error: Exception) -> Unreadable:
    """What is wrong with bytes that are not text, and where."""
    what, row = str(error).splitlines()[0], 1
    if data.startswith(codecs.BOM_UTF8) and isinstance(error, SyntaxError):
        what = "starts with a UTF-8 mark but declares another encoding"
    elif isinstance(error, UnicodeDecodeError) or "missing encoding" in what:
        try:
            data.decode(error.encoding if isinstance(error, UnicodeDecodeError) else "utf-8")
        except UnicodeDecodeError as wrong:
            what = f"byte 0x{data[wrong.start]:02x} is not {wrong.encoding}"
            what += ", and no other encoding is declared" if wrong.encoding == "utf-8" else ""
            row = len(data[: wrong.start + 1].splitlines())
    return Unreadable(f"not text in its encoding: {what}", Location(row, 1))


def parse(text: str) -> ast.Module:
    """Parse; raises Unreadable for what is not Python 3 or nested too deeply for the parser."""
    try:
        return ast.parse(text)
    except SyntaxError as error:
        older = newer.as_older(text)
        if older is not None:
            with suppress(SyntaxError):
                return ast.parse(older)
        reason = f"syntax error: {error.msg}"
        if _PYTHON_2.search(error.text or ""):
            reason += " (Python 2?)"
        elif _KEYWORD.search(error.text or ""):  # x.cuda(async=True), of before Python 3.7
            reason += " (async is a keyword: say non_blocking=)"
        elif error.msg == "invalid syntax":  # all that the parser says of newer syntax
            reason += f" (read as Python {sys.version_info.major}.{sys.version_info.minor})"
        raise Unreadable(reason, Location(max(1, error.lineno or 1), max(1, error.offset or 1))) from None
    except (RecursionError, MemoryError):
        raise Unreadable("nested too deeply to parse") from None
    except ValueError as error:
        raise Unreadable(f"not Python source: {error}") from None


@dataclass(eq=False)
class Module:
    """One file: `path` as the user gave it, `text` as decoded, `tree` as parsed. Compared by identity."""

    path: str
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)
    encoding: str = "utf-8"
    memo: dict[str, Any] = field(default_factory=dict, repr=False)  # what others found out about it

    @classmethod
    def read(cls, path: str, data: bytes) -> Module:
        """Decode and parse; raises Unreadable."""
        text, encoding = text_of(path, data)
        return cls(path, text, parse(text), encoding)

    # -- places ---------------------------------------------------------------------------------------------------

    @cached_property
    def starts(self) -> list[int]:
        """Offset of the first character of each row. Rows end where Python's do: LF, CR LF or CR, nothing else."""
        return [0, *(match.end() for match in LINE_END.finditer(self.text))]

    def line(self, row: int) -> str:
        """The text of a row, without its line end."""
        end = self.starts[row] if row < len(self.starts) else len(self.text)
        return self.text[self.starts[row - 1] : end].rstrip("\r\n")

    def location(self, row: int, byte_column: int) -> Location:
        """From ast's row and UTF-8 byte column to row and code point column."""
        line = self.line(row)
        if not line.isascii():
            byte_column = len(line.encode()[:byte_column].decode(errors="replace"))
        return Location(row, byte_column + 1)

    def range(self, node: ast.AST) -> Range:
        """Where a node stands (a decorated function from its `def`)."""
        row, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
        end_row, end_column = node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
        return Range(self.location(row, column), self.location(end_row, end_column))

    def offset(self, location: Location) -> int:
        """Offset into `text` of a location."""
        return self.starts[location.row - 1] + location.column - 1

    def at(self, offset: int) -> Location:
        """Location of an offset into `text`."""
        row = bisect_right(self.starts, offset)
        return Location(row, offset - self.starts[row - 1] + 1)

    def source(self, node: ast.AST) -> str:
        """The text of a node, exactly."""
        place = self.range(node)
        return self.text[self.offset(place.start) : self.offset(place.end)]

    @cached_property
    def newline(self) -> str:
        """The line end that new lines get: the file's first one."""
        match = LINE_END.search(self.text)
        return match[0] if match else "\n"

    def rows(self, node: ast.AST) -> str:
        """The text of all rows that a node stands on."""
        first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        end = self.starts[last] if last < len(self.starts) else len(self.text)
        return self.text[self.starts[first - 1] : end]

    # -- structure ------------------------------------------------------------------------------------------------

    @cached_property
    def all_nodes(self) -> list[ast.AST]:
        """All nodes in the order of ast.walk, but for contexts and operators: the file is walked once, whoever asks."""
        return walk(self.tree)

    @cached_property
    def parents(self) -> dict[ast.AST, ast.AST]:
        """Each node's parent."""
        return {child: node for node in self.all_nodes for child in children(node)}

    @cached_property
    def _kinds(self) -> dict[type, list[Any]]:
        kinds: dict[type, list[Any]] = {}
        for node in self.all_nodes:
            kinds.setdefault(type(node), []).append(node)
        return kinds

    def nodes(self, *kinds: type[N]) -> list[N]:
        """All nodes of these kinds in the file, kind by kind, those of a kind in the order of ast.walk."""
        return [node for kind in kinds for node in self._kinds.get(kind, ())]

    @property
    def defs(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All functions but lambdas."""
        return [*self.nodes(ast.FunctionDef), *self.nodes(ast.AsyncFunctionDef)]

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The node's parents, innermost first."""
        while (above := self.parents.get(node)) is not None:
            yield above
            node = above

    def statement(self, node: ast.AST) -> ast.stmt:
        """The innermost statement that holds `node`, or `node` itself."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def function(self, node: ast.AST) -> FunctionNode | None:
        """The innermost function that holds `node`."""
        return next((above for above in self.ancestors(node) if isinstance(above, FunctionNode)), None)

    def scope(self, node: ast.AST) -> FunctionNode | ast.Module:
        """The innermost function that holds `node`, or the module."""
        return self.function(node) or self.tree

    def loop(self, node: ast.AST) -> ast.For | ast.While | None:
        """The innermost loop that holds `node`."""
        return next((above for above in self.ancestors(node) if isinstance(above, ast.For | ast.While)), None)

    def class_of(self, node: ast.AST) -> ast.ClassDef | None:
        """The innermost class that holds `node`."""
        return next((above for above in self.ancestors(node) if isinstance(above, ast.ClassDef)), None)

    # -- names ----------------------------------------------------------------------------------------------------

    def stores(self, name: str, scope: FunctionNode | ast.Module) -> list[ast.Name]:
        """Where a function (or the module) itself stores a name: not the functions and classes in it."""
        stored = [node for node in self.nodes(ast.Name) if node.id == name and isinstance(node.ctx, ast.Store)]
        scopes = FunctionNode | ast.ClassDef | ast.Module
        return [node for node in stored if next(n for n in self.ancestors(node) if isinstance(n, scopes)) is scope]

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """What each name is imported as, anywhere in the file: `amp` → {"torch.cuda.amp"}. A name that fallbacks import
        from two places has two. `torch` may come with all that another file has: nothing else is called that."""
        table: dict[str, set[str]] = {}
        for plain in self.nodes(ast.Import):
            for alias in plain.names:
                name = alias.asname or alias.name.partition(".")[0]
                table.setdefault(name, set()).add(alias.name if alias.asname else name)
        for node in self.nodes(ast.ImportFrom):
            for alias in node.names:
                table.setdefault(alias.asname or alias.name, set()).add(imported_from(node, alias))
        if "*" in table:
            table.setdefault("torch", {"torch"})
        return table

    @cached_property
    def is_foreign(self) -> bool:
        """Whether this is code for a library whose API is like torch's, and which has another policy: its backward()
        and step() are not torch's."""
        roots = {name.partition(".")[0] for names in self.imports.values() for name in names}
        return bool(roots & _FOREIGN) and "torch" not in roots

    @cached_property
    def is_test(self) -> bool:
        """Whether these are unit tests, by the names that pytest goes by."""
        return bool(_TEST_FILE.fullmatch(os.path.basename(self.path)) and _TESTS.search(self.text))

    @cached_property
    def is_benchmark(self) -> bool:
        """Whether this measures how fast something is, by its name."""
        return _BENCHMARK.match(os.path.basename(self.path)) is not None

    def says(self, word: str) -> bool:
        """Whether a word stands anywhere in the text: asked again and again, looked for once."""
        if (known := self.memo.get(f"says {word}")) is None:
            known = self.memo[f"says {word}"] = word in self.text
        return bool(known)

    def dotted(self, node: ast.AST) -> set[str]:
        """The full dotted names that a name or attribute chain may stand for: `amp.autocast` →
        {"torch.cuda.amp.autocast"}.

        By the import table alone: a name that the file also assigns may stand for something else."""
        if isinstance(node, ast.Name):
            return self.imports.get(node.id, set())
        if isinstance(node, ast.Attribute):
            return {f"{base}.{node.attr}" for base in self.dotted(node.value)}
        return set()


def imported_from(node: ast.ImportFrom, alias: ast.alias) -> str:
    """The full dotted name of what `from … import` binds. `from ..compat import torch` is torch."""
    source = "." * node.level + (node.module or "")
    if alias.name == "torch" and _RE_EXPORTS.search(source.rpartition(".")[2]):
        return "torch"
    return source + alias.name if source.endswith(".") else f"{source}.{alias.name}"
