"""`amplint server`: the language server, over standard input and output. Thin: documents in, findings and edits out.

Positions are converted from amplint's (row and code point, from 1) to what was negotiated with the client (UTF-16 code
units by default), by pygls. Language Server Protocol 3.17.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path, to_fs_path
from pygls.workspace import TextDocument

from amplint import __version__, knowledge
from amplint.editor import document, hover
from amplint.findings import Edit, Finding, Location, Range, Severity
from amplint.selection import ConfigError

_PAUSE = 0.3  # seconds without a key before a document is checked
_FIX_ALL = f"{lsp.CodeActionKind.SourceFixAll.value}.amplint"
_SEVERITY = {
    Severity.ERROR: lsp.DiagnosticSeverity.Error,
    Severity.WARNING: lsp.DiagnosticSeverity.Warning,
    Severity.NOTE: lsp.DiagnosticSeverity.Information,
}


class _Server(LanguageServer):
    """With what was found in each document, and the checks that are still to come."""

    def __init__(self) -> None:
        super().__init__("amplint", __version__)
        self.found: dict[str, tuple[Finding, ...]] = {}
        self.waiting: dict[str, asyncio.TimerHandle] = {}


def serve() -> None:
    """Serve one client over standard input and output, until it says goodbye."""
    made().start_io()


def made() -> _Server:
    """The server, with all that it can do."""
    server = _Server()

    @server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    def opened(parameters: lsp.DidOpenTextDocumentParams) -> None:
        _check(server, parameters.text_document.uri)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    async def changed(parameters: lsp.DidChangeTextDocumentParams) -> None:
        _later(server, parameters.text_document.uri)

    @server.feature(lsp.TEXT_DOCUMENT_DID_SAVE)
    def saved(parameters: lsp.DidSaveTextDocumentParams) -> None:
        for uri in [*server.found]:  # what is imported changed for the others, too
            _check(server, uri)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def closed(parameters: lsp.DidCloseTextDocumentParams) -> None:
        uri = parameters.text_document.uri
        server.found.pop(uri, None)
        if uri in server.waiting:
            server.waiting.pop(uri).cancel()
        _publish(server, uri, [])

    kinds = [lsp.CodeActionKind.QuickFix, _FIX_ALL]

    @server.feature(lsp.TEXT_DOCUMENT_CODE_ACTION, lsp.CodeActionOptions(code_action_kinds=kinds))
    def actions(parameters: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        return _actions(server, parameters)

    @server.feature(lsp.TEXT_DOCUMENT_HOVER)
    def hovered(parameters: lsp.HoverParams) -> lsp.Hover | None:
        return _hover(server, parameters)

    return server


# -- documents ----------------------------------------------------------------------------------------------------


def _later(server: _Server, uri: str) -> None:
    """Check a document once its writer pauses."""
    if uri in server.waiting:
        server.waiting.pop(uri).cancel()
    server.waiting[uri] = asyncio.get_running_loop().call_later(_PAUSE, _check, server, uri)


def _check(server: _Server, uri: str) -> None:
    if uri in server.waiting:
        server.waiting.pop(uri).cancel()
    text = server.workspace.get_text_document(uri)
    server.found[uri] = document.findings(_path(text), text.source)
    _publish(server, uri, [_diagnostic(server, text, finding) for finding in server.found[uri]], text.version)


def _path(text: TextDocument) -> str:
    """The document's file, as a person in this folder writes it; a document that is in no file has a name only."""
    path = to_fs_path(text.uri) or text.uri
    inside = path.startswith(os.path.join(os.getcwd(), ""))
    return os.path.relpath(path) if inside else path


def _publish(server: _Server, uri: str, shown: list[lsp.Diagnostic], version: int | None = None) -> None:
    server.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri=uri, diagnostics=shown, version=version))


def _diagnostic(server: _Server, text: TextDocument, finding: Finding) -> lsp.Diagnostic:
    related = [
        lsp.DiagnosticRelatedInformation(
            location=lsp.Location(uri=_uri(one.path), range=_range(_document(server, one.path), one.range)),
            message=one.message,
        )
        for one in finding.related
    ]
    rule = knowledge.rules().get(finding.code)
    message = f"{finding.message}\n{finding.help}" if finding.help else finding.message
    return lsp.Diagnostic(
        range=_range(text, finding.range),
        message=message,
        severity=_SEVERITY[finding.severity],
        code=finding.code,
        source="amplint",
        related_information=related or None,
        data={"name": rule.name} if rule else None,
    )


# -- what can be done ---------------------------------------------------------------------------------------------


def _actions(server: _Server, parameters: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    uri = parameters.text_document.uri
    text = server.workspace.get_text_document(uri)
    path, only = _path(text), [str(getattr(kind, "value", kind)) for kind in parameters.context.only or ()]
    if uri in server.waiting or uri not in server.found:
        _check(server, uri)  # edits must fit the text that they are for
    offered = []
    if _wanted(lsp.CodeActionKind.QuickFix.value, only):
        at = _back(text, parameters.range)
        for action in document.actions(path, text.source, server.found[uri], at):
            offered.append(
                lsp.CodeAction(
                    title=action.title,
                    kind=lsp.CodeActionKind.QuickFix,
                    diagnostics=[_diagnostic(server, text, action.finding)],
                    edit=_edit(server, action.edits),
                    is_preferred=action.preferred or None,
                )
            )
    if _wanted(_FIX_ALL, only) and (edits := document.fix_all(path, text.source)):
        title = "amplint: apply all safe fixes"
        offered.append(lsp.CodeAction(title=title, kind=_FIX_ALL, edit=_edit(server, edits)))
    return offered


def _wanted(kind: str, only: list[str]) -> bool:
    """Whether the client asked for this kind: by its name, or by the front part of it."""
    return not only or any(kind == asked or kind.startswith(f"{asked}.") for asked in only)


def _edit(server: _Server, edits: tuple[Edit, ...]) -> lsp.WorkspaceEdit:
    changes: dict[str, list[lsp.TextEdit]] = {}
    for edit in edits:
        place = _range(_document(server, edit.path), edit.range)
        changes.setdefault(_uri(edit.path), []).append(lsp.TextEdit(range=place, new_text=edit.text))
    return lsp.WorkspaceEdit(changes=changes)


def _hover(server: _Server, parameters: lsp.HoverParams) -> lsp.Hover | None:
    text = server.workspace.get_text_document(parameters.text_document.uri)
    path = _path(text)
    try:
        settings = document.settings_of(path)
        device, dtype = settings.target_device, settings.target_dtype
    except ConfigError:
        device, dtype = "cuda", "float16"
    at = _back(text, lsp.Range(start=parameters.position, end=parameters.position)).start
    said = hover.hover(path, text.source, at, server.found.get(text.uri, ()), device, dtype)
    return lsp.Hover(lsp.MarkupContent(kind=lsp.MarkupKind.Markdown, value=said)) if said else None


# -- places -------------------------------------------------------------------------------------------------------


def _uri(path: str) -> str:
    return path if "://" in path else str(from_fs_path(os.path.abspath(path)))


def _document(server: _Server, path: str) -> TextDocument:
    return server.workspace.get_text_document(_uri(path))


def _range(text: TextDocument, place: Range) -> lsp.Range:
    plain = lsp.Range(start=_position(place.start), end=_position(place.end))
    return text.position_codec.range_to_client_units(text.lines, plain)


def _position(location: Location) -> lsp.Position:
    return lsp.Position(line=location.row - 1, character=location.column - 1)


def _back(text: TextDocument, place: lsp.Range) -> Range:
    """From the client's units to amplint's."""
    plain: Any = text.position_codec.range_from_client_units(text.lines, place)
    start, end = (Location(one.line + 1, one.character + 1) for one in (plain.start, plain.end))
    return Range(start, end)
