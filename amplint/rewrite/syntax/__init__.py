"""Edits of text: computed on the `ast`, the tokens and, for lists, LibCST nodes. It knows no training step."""
