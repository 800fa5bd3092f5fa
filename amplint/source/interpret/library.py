"""What library calls return and do, looked up in rules/apis/*.toml and the user's own entries."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from amplint.source.values import Const, Value


@dataclass(frozen=True)
class Api:
    """One entry: which argument plays which role, what comes back, what it does."""

    returns: str
    does: str
    signature: tuple[str, ...]
    roles: dict[str, str]
    fixed: dict[str, Any]

    def bind(self, args: tuple[Value, ...], kwargs: dict[str, Value]) -> dict[str, Value]:
        """Arguments by the names of the signature."""
        return {**dict(zip(self.signature, args, strict=False)), **kwargs}

    def argument(self, role: str, bound: dict[str, Value]) -> Value | None:
        """The argument that plays a role, or the value that the API fixes for it."""
        if role in self.fixed:
            return Const(self.fixed[role])
        found = bound.get(self.roles.get(role, role))
        return bound.get(role) if found is None else found  # an argument that was renamed to its role's name


_RESERVED = {"names", "signature", "returns", "does", "fixed", "note"}


@dataclass(frozen=True)
class Library:
    """All entries; the user's come first."""

    entries: tuple[dict[str, Any], ...]
    _found: dict[str, Api | None] = field(default_factory=dict, compare=False)

    @cached_property
    def _exact(self) -> dict[str, dict[str, Any]]:
        return {name: entry for entry in reversed(self.entries) for name in entry["names"] if "*" not in name}

    @cached_property
    def _globs(self) -> list[tuple[str, dict[str, Any]]]:
        return [(name, entry) for entry in self.entries for name in entry["names"] if "*" in name]

    def find(self, name: str) -> Api | None:
        """The entry of a dotted name."""
        if name not in self._found:
            entry = self._exact.get(name)
            if entry is None:
                matches = (found for pattern, found in self._globs if fnmatch.fnmatchcase(name, pattern))
                entry = next(matches, None)
            self._found[name] = None if entry is None else _read(entry)
        return self._found[name]

    def method(self, name: str) -> Api | None:
        """The entry of a method that makes something part of a checkpoint, whatever object it is called on: such names
        are telling enough."""
        return self._registering.get(name)

    @cached_property
    def _registering(self) -> dict[str, Api]:
        named = [(full.rpartition(".")[2], entry) for full, entry in self._exact.items()]
        return {
            name: _read(entry) for name, entry in reversed(named) if entry.get("does") == "register" and "_" in name
        }

    def find_first(self, names: Iterable[str]) -> Api | None:
        return next((api for api in map(self.find, names) if api is not None), None)


def _read(entry: dict[str, Any]) -> Api:
    parameters = [part.strip() for part in entry.get("signature", "").split(",")]
    names = [part.partition("=")[0].lstrip("*").strip() for part in parameters if part.strip() not in ("", "*", "/")]
    roles = {role: name for role, name in entry.items() if role not in _RESERVED}
    return Api(entry.get("returns", ""), entry.get("does", ""), tuple(names), roles, entry.get("fixed", {}))
