"""Styles: sources that mean the same and look otherwise."""

from __future__ import annotations

import ast
import re

from amplint.source.module import Module, Unreadable


def _lines(text: str) -> list[str]:
    return text.splitlines()


def _comments(text: str) -> str:
    """A comment behind every line that can take one, and one above each statement at the margin."""
    rows = _free_rows(text)
    made = []
    for number, line in enumerate(_lines(text), 1):
        if number in rows and line and not line[0].isspace() and line[0] not in "@)]}#" and not _continues(line):
            made.append("# why: schön")
        made.append(line + "  # é" if number in rows and line.strip() and "#" not in line else line)
    return "\n".join(made) + "\n"


def _continues(line: str) -> bool:
    return line.startswith(("else", "elif", "except", "finally"))


def _free_rows(text: str) -> set[int]:
    """Rows that are whole statements or headers: nothing on them is inside a string or a bracket that goes on."""
    rows = set(range(1, len(_lines(text)) + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            rows -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.expr) and node.end_lineno != node.lineno:
            rows -= set(range(node.lineno - 1, (node.end_lineno or node.lineno) + 2))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.body[0].lineno - node.lineno > 1:
            rows -= set(range(node.lineno, node.body[0].lineno))
    return {row for row in rows if not _lines(text)[row - 1].rstrip().endswith("\\")}


def _crlf(text: str) -> str:
    return text.replace("\n", "\r\n")


def _old_mac(text: str) -> str:
    return text.replace("\n", "\r")


def _bom(text: str) -> str:
    return "\ufeff" + text


def _no_last_newline(text: str) -> str:
    return text.rstrip("\r\n")


def _tabs(text: str) -> str:
    return _indented(text, "\t")


def _two_spaces(text: str) -> str:
    return _indented(text, "  ")


def _indented(text: str, unit: str) -> str:
    inside = {
        row
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for row in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }
    made = []
    for number, line in enumerate(_lines(text), 1):
        depth = (len(line) - len(line.lstrip(" "))) // 4
        made.append(unit * depth + line[4 * depth :] if number not in inside else line)
    return "\n".join(made) + "\n"


def _wrapped(header: str) -> object:
    """The whole script one level deeper."""

    def style(text: str) -> str:
        body = [f"    {line}" if line else "" for line in _lines(text)]
        if any(line.startswith(("from __future__", '"""')) for line in _lines(text)):
            return text
        return header + "\n" + "\n".join(body) + "\n" + ("except OSError:\n    raise\n" if header == "try:" else "")

    return style


def _nested(*headers: str) -> object:
    """The whole script below several headers, each a level deeper."""

    def style(text: str) -> str:
        for header in reversed(headers):
            text = _wrapped(header)(text)  # type: ignore[operator]
        return text

    return style


def _async_loops(text: str) -> str:
    """Everything in an `async def`, with loops of the outer level that are asynchronous."""
    rows = _free_rows(text)
    lines = [
        re.sub(r"^for (?=\w+(, \w+)* in \w+:)", "async for ", line) if number in rows else line
        for number, line in enumerate(_lines(text), 1)
    ]
    return _wrapped("async def everything():")("\n".join(lines) + "\n")  # type: ignore[operator,no-any-return]


def _decorated(text: str) -> str:
    """A decorator on each function at the margin or in a class."""
    made: list[str] = []
    for line in _lines(text):
        if re.match(r"(    )?def ", line):
            made.append(line[: _margin(line)] + "@torch.enable_grad()")
        made.append(line)
    return "\n".join(made) + "\n" if re.search(r"^import torch$", text, re.MULTILINE) else text


def _walrus(text: str) -> str:
    """`if f(x):` → `if (asked := f(x)):`."""
    rows = _free_rows(text)
    made = [
        re.sub(r"^(\s*if )([^:]+):$", r"\1(asked := \2):", line) if number in rows else line
        for number, line in enumerate(_lines(text), 1)
    ]
    return "\n".join(made) + "\n"


def _inner_class(text: str) -> str:
    """In a class in a function in an if, which the function uses."""
    inner = _nested("class Inner:", "def run(self):")(text)  # type: ignore[operator]
    return text if inner == text else _nested("if True:", "def everything():")(inner + "Inner().run()\n")  # type: ignore[operator,no-any-return]


def _match(text: str) -> str:
    return _nested("match 1:", "case int() as number if number:")(text)  # type: ignore[operator,no-any-return]


def _lambdas(text: str) -> str:
    """`x = f(y)` → `x = (lambda: f(y))()`."""
    rows = _free_rows(text)
    made = []
    for number, line in enumerate(_lines(text), 1):
        found = re.fullmatch(r"(\s*\w*loss = )([\w.]+\(.*\))", line)
        made.append(f"{found[1]}(lambda: {found[2]})()" if number in rows and found else line)
    return "\n".join(made) + "\n"


def _semicolons(text: str) -> str:
    """Neighbours on one row where both are short simple statements of one block."""
    made: list[str] = []
    rows = _free_rows(text)
    for number, line in enumerate(_lines(text), 1):
        before = made[-1] if made else ""
        if (
            number in rows
            and number - 1 in rows
            and _simple(line)
            and _simple(before)
            and _margin(line) == _margin(before)
        ):
            made[-1] = f"{before}; {line.strip()}"
        else:
            made.append(line)
    return "\n".join(made) + "\n"


def _one_line(text: str) -> str:
    """`if x:` with one short statement below on one row."""
    made: list[str] = []
    lines, rows = _lines(text), _free_rows(text)
    skip = False
    for number, line in enumerate(lines, 1):
        if skip:
            skip = False
            continue
        below = lines[number] if number < len(lines) else ""
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if (
            line.lstrip().startswith(("if ", "for ", "with "))
            and line.endswith(":")
            and {number, number + 1} <= rows
            and _simple(below)
            and _margin(after) <= _margin(line)
            and after.strip()
        ):
            made.append(f"{line} {below.strip()}")
            skip = True
        else:
            made.append(line)
    return "\n".join(made) + "\n"


def _simple(line: str) -> bool:
    word = line.strip().partition(" ")[0]
    compound = "if for while with def class try else: elif except finally: import from async match @".split()
    return bool(line.strip()) and word not in compound and line.strip()[-1] not in ":,([{\\" and "#" not in line


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def _parentheses(text: str) -> str:
    """`x = f(y)` → `x = (f(y))`, and calls that stand alone over several rows."""
    rows = _free_rows(text)
    made = []
    for number, line in enumerate(_lines(text), 1):
        found = re.fullmatch(r"(\s*[\w.]+ = )([\w.]+\(.*\))", line)
        made.append(f"{found[1]}({found[2]})" if number in rows and found else line)
    return "\n".join(made) + "\n"


def _continued(text: str) -> str:
    """`x = y` → `x = \\` and `y` below."""
    rows = _free_rows(text)
    made = []
    for number, line in enumerate(_lines(text), 1):
        found = re.fullmatch(r"(\s*)([\w.]+ =) ([\w.]+\(.*\))", line)
        made.append(f"{found[1]}{found[2]} \\\n{found[1]}        {found[3]}" if number in rows and found else line)
    return "\n".join(made) + "\n"


def _foreign_names(text: str) -> str:
    """Names that are not ASCII, before the edits on their rows and outside the BMP."""
    return re.sub(r"\bloss\b(?!_)", "größe", re.sub(r"\boptimizer\b", "𝐨ptimierer", text))


def _aliases(text: str) -> str:
    return re.sub(r"\btorch\.", "T.", text.replace("import torch\n", "import torch as T\n", 1))


STYLES = {
    "plain": lambda text: text,
    "comments": _comments,
    "crlf": _crlf,
    "cr": _old_mac,
    "bom": _bom,
    "no last newline": _no_last_newline,
    "tabs": _tabs,
    "two spaces": _two_spaces,
    "in a function": _wrapped("def everything():"),
    "in an if": _wrapped("if True:"),
    "in a try": _wrapped("try:"),
    "async": _async_loops,
    "decorated": _decorated,
    "match": _match,
    "walrus": _walrus,
    "lambdas": _lambdas,
    "in a method of a class in an if": _nested("if True:", "class Everything:", "@staticmethod\ndef run():"),
    "in a class in a function in an if": _inner_class,
    "semicolons": _semicolons,
    "one line": _one_line,
    "parentheses": _parentheses,
    "continued": _continued,
    "foreign names": _foreign_names,
    "aliases": _aliases,
}
OTHERS = [style for style in STYLES if style != "plain"]
LAST = ("crlf", "cr", "bom", "no last newline")  # what only works on the finished text


def styled(text: str, *styles: str) -> Module | None:
    """The source in some styles; None where it is no program any more."""
    for name in sorted(styles, key=lambda name: name in LAST):
        try:
            text = STYLES[name](text)  # type: ignore[operator]
        except SyntaxError:
            return None
    try:
        return Module.read("train.py", text.encode())
    except Unreadable:
        return None
