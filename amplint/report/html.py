"""The frame of a page: self-contained, no script, no network; light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css")


def document(title: str, body: str, style: Path | None = None) -> str:
    """A whole page. `body` is HTML; `style` is a file of rules beyond those of all pages."""
    rules = "\n".join(path.read_text(encoding="utf-8") for path in (_STYLE, style) if path is not None)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>\n{rules}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )
