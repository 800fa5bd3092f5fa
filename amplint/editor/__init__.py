"""amplint in an editor: what a document's findings, fixes and hovers are (document.py, hover.py), and the language
server that hands them out (server.py; needs the extra `lsp`)."""
