"""The language server, spoken to as an editor does."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_lsp
from lsprotocol import types as lsp
from pytest_lsp import ClientServerConfig, LanguageClient, client_capabilities

TRAIN = """\
import torch
scaler = torch.amp.GradScaler("cuda")
model = torch.nn.Linear(4, 2).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for x in data:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = model(x).float().sum()
    scaler.scale(loss).backward()
    print("𝛼é"); torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
"""
START = TRAIN.splitlines()[9].index("torch")


@pytest_lsp.fixture(config=ClientServerConfig(server_command=[sys.executable, "-m", "amplint", "server"]))
async def client(lsp_client: LanguageClient) -> AsyncIterator[None]:
    await lsp_client.initialize_session(
        lsp.InitializeParams(capabilities=client_capabilities("visual-studio-code"), root_uri=None)
    )
    yield
    await lsp_client.shutdown_session()


async def told(client: LanguageClient, uri: str) -> list[lsp.Diagnostic]:
    await asyncio.wait_for(client.wait_for_notification(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS), 20)
    return list(client.diagnostics[uri])


@pytest.mark.asyncio
async def test_a_session(client: LanguageClient, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.amplint]\n")
    file = tmp_path / "train.py"
    uri = file.as_uri()
    client.text_document_did_open(
        lsp.DidOpenTextDocumentParams(lsp.TextDocumentItem(uri=uri, language_id="python", version=1, text=TRAIN))
    )
    (shown,) = await told(client, uri)
    # 𝛼 is one code point, and two of UTF-16's units, which this client counts in
    assert shown.code == "AMP105" and shown.range.start == lsp.Position(line=9, character=START + 1)
    assert shown.severity == lsp.DiagnosticSeverity.Error and shown.related_information

    document = lsp.TextDocumentIdentifier(uri)
    asked = lsp.CodeActionParams(document, shown.range, lsp.CodeActionContext(diagnostics=[shown]))
    offered = await client.text_document_code_action_async(asked)
    fix, ignore, everything = (action for action in offered or () if isinstance(action, lsp.CodeAction))
    assert fix.is_preferred and fix.kind == "quickfix" and fix.title.startswith("AMP105: ")
    assert ignore.title == "AMP105: ignore on this line" and everything.kind == "source.fixAll.amplint"
    assert fix.edit and fix.edit.changes
    (edit,) = fix.edit.changes[uri]
    assert "scaler.unscale_(optimizer)" in edit.new_text
    asked.context.only = [lsp.CodeActionKind.SourceFixAll]
    (only,) = await client.text_document_code_action_async(asked) or ()
    assert isinstance(only, lsp.CodeAction) and only.kind == "source.fixAll.amplint"

    hover = await client.text_document_hover_async(lsp.HoverParams(document, shown.range.start))
    assert hover and isinstance(hover.contents, lsp.MarkupContent) and "clip-before-unscale" in hover.contents.value

    version = lsp.VersionedTextDocumentIdentifier(version=2, uri=uri)
    fixed = TRAIN.replace('    print("𝛼é"); ', "    scaler.unscale_(optimizer)\n    ")
    change = lsp.TextDocumentContentChangeWholeDocument(text=fixed)
    client.text_document_did_change(lsp.DidChangeTextDocumentParams(version, [change]))
    assert await told(client, uri) == []
    client.text_document_did_close(lsp.DidCloseTextDocumentParams(document))
    assert await told(client, uri) == []


def test_without_pygls_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from amplint.cli import cli

    monkeypatch.setitem(sys.modules, "pygls", None)
    monkeypatch.setitem(sys.modules, "pygls.lsp.server", None)
    monkeypatch.delitem(sys.modules, "amplint.editor.server", raising=False)
    result = CliRunner().invoke(cli, ["server"])
    assert result.exit_code == 2 and "pip install amplint[lsp]" in result.output
