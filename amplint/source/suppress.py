"""Comments that tell amplint to be silent: `# amplint: ignore[AMP105] why`, `# amplint: file-ignore[AMP105] why`,
`# noqa: AMP105`; and the one that keeps a loop in full precision: `# amplint: fp32 why`."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from amplint.findings import Finding, Location, Range
from amplint.source.module import LINE_END

_MARK = re.compile(r"amplint:|noqa", re.IGNORECASE)
_OURS = re.compile(r"amplint:|[Aa][Mm][Pp]\d")
_DIRECTIVE = re.compile(r"#\s*amplint:\s*([\w-]*)(?:\s*\[([^\]]*)\])?")
_NOQA = re.compile(r"#\s*noqa\b(\s*:\s*([a-z]+\d+(?:[\s,]+[a-z]+\d+)*)?)?", re.IGNORECASE)
_CODE = re.compile(r"AMP\d{1,3}")
_EXAMPLE = "write # amplint: ignore[AMP105] why"


class Directive(NamedTuple):
    """A comment, or a part of one, that hides findings. Codes are prefixes, so that `""` stands for every code."""

    codes: tuple[str, ...]
    rows: range | None  # None: the whole file
    place: Range  # from its # to where the next # or the line ends

    def hides(self, finding: Finding) -> bool:
        return self.speaks_of(finding) and finding.code.startswith(self.codes)

    def speaks_of(self, finding: Finding) -> bool:
        """Whether the finding starts in its rows."""
        return self.rows is None or finding.range.start.row in self.rows


@dataclass(frozen=True)
class Suppressions:
    """What the comments of one file say."""

    directives: tuple[Directive, ...] = ()
    fp32: frozenset[int] = frozenset()  # rows of the statements that stay in full precision
    warnings: tuple[tuple[int, str], ...] = ()  # comments that do nothing, by row

    def hide(self, finding: Finding) -> bool:
        """Whether a comment hides the finding: one on, or alone above, the logical line that the finding starts in."""
        return any(directive.hides(finding) for directive in self.directives)


class _Line(NamedTuple):
    """A logical line, decorators joined to what they decorate: first and last row."""

    first: int
    last: int


class _Comment(NamedTuple):
    row: int
    text: str
    alone: bool
    column: int  # from 0

    def place(self, start: int) -> Range:
        """From a place in the comment to its end, or up to the next #, without the blanks before it."""
        end = self.text.find("#", start + 1)
        end = len((self.text if end < 0 else self.text[:end]).rstrip())
        return Range(Location(self.row, self.column + start + 1), Location(self.row, self.column + end + 1))


def read(text: str, found: bool = True) -> Suppressions:
    """All suppressions of a source text that parses; where nothing was `found`, those that are ours alone will do."""
    if not (_MARK if found else _OURS).search(text):
        return Suppressions()
    lines, comments, _ = _scan(text)
    directives: list[Directive] = []
    fp32: set[int] = set()
    warnings: list[tuple[int, str]] = []
    for comment in comments:
        for match in _DIRECTIVE.finditer(comment.text):
            word, listed = match[1], match[2]
            codes = tuple(code.strip().upper() for code in (listed or "").split(",") if code.strip())
            wrong = [code for code in codes if not _CODE.fullmatch(code)]
            if word == "fp32":
                fp32.update(_covered(comment, lines))
            elif word not in ("ignore", "file-ignore"):
                warnings.append((comment.row, f'"# amplint: {word}" means nothing; {_EXAMPLE}'))
            elif not codes or wrong:
                what = f'"{wrong[0]}" is no code' if wrong else f'"# amplint: {word}" names no codes'
                warnings.append((comment.row, f"{what}, so it hides nothing; {_EXAMPLE}"))
            else:
                rows = None if word == "file-ignore" else _covered(comment, lines)
                directives.append(Directive(codes, rows, comment.place(match.start())))
        for match in _NOQA.finditer(comment.text):
            if comment.alone or (match[1] and not match[2]):
                continue  # as elsewhere: alone it means nothing, nor with a colon and no code
            codes = tuple(re.split(r"[\s,]+", match[2].upper())) if match[1] else ("",)
            directives.append(Directive(codes, _covered(comment, lines), comment.place(match.start())))
    return Suppressions(tuple(directives), frozenset(fp32), tuple(warnings))


def fp32_lines(text: str) -> frozenset[int]:
    """The rows of the statements' first logical lines that `# amplint: fp32 why` keeps in full precision."""
    return read(text).fp32


def comment_row(text: str, row: int) -> int:
    """The first row from `row` on that can take a comment: none fits into a string or behind a backslash."""
    return next((end for end in _scan(text)[2] if end >= row), row)


def _covered(comment: _Comment, lines: list[_Line]) -> range:
    """The rows that a comment speaks of: its own logical line or, where it stands alone between lines, the next one."""
    return next((range(line.first, line.last + 1) for line in lines if line.last >= comment.row), range(0))


def _scan(text: str) -> tuple[list[_Line], list[_Comment], list[int]]:
    """The logical lines, the comments, and the rows at whose end a comment can stand."""
    lines: list[_Line] = []
    comments: list[_Comment] = []
    ends: list[int] = []
    rows = LINE_END.split(text)
    first, fresh, decorator = 0, True, False
    for token in _tokens(rows):
        row, column = token.start
        if token.type == tokenize.COMMENT:
            comments.append(_Comment(row, token.string, not rows[row - 1][:column].strip(), column))
        elif token.type == tokenize.NL:
            ends.append(row)
        elif token.type == tokenize.NEWLINE:
            ends.append(row)
            fresh = True
            if not decorator:
                lines.append(_Line(first, row))
                first = 0
        elif fresh and token.type not in (tokenize.INDENT, tokenize.DEDENT):
            first, fresh, decorator = first or row, False, token.string == "@"
    return lines, comments, ends


def _tokens(rows: list[str]) -> Iterator[tokenize.TokenInfo]:
    """Tokens up to where the tokenizer, which is stricter than the parser, gives up. Rows end as Python's do."""
    try:
        yield from tokenize.generate_tokens(io.StringIO("\n".join(rows) + "\n").readline)
    except (tokenize.TokenError, SyntaxError):
        return
