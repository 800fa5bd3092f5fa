"""Where the scaler is at hand, and how it gets to where it is not."""

from __future__ import annotations

import ast

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.setup import Setup
from amplint.rewrite.device import visible
from amplint.rewrite.fixes.scaler import free_name
from amplint.rewrite.home import calls_of
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.source.module import FunctionNode, Module


class Scope:
    """The scaler's name, and the functions that it is handed to."""

    def __init__(self, module: Module, setup: Setup, seen: set[ast.AST]):
        self.module = module
        self.setup = setup
        self.seen = seen  # the calls that the reading followed
        self.owner = _class_of(module, setup.statement) if setup.owner else None
        self.bare = free_name(module)
        self.edits: list[Edit] = []
        self.handed: dict[ast.AST, None] = {}

    def name(self, place: ast.AST) -> str:
        """What the scaler is called at a place."""
        return f"self.{self.bare}" if self._in_class(place) else self.bare

    def _in_class(self, place: ast.AST) -> bool:
        return self.owner is not None and self.owner in self.module.ancestors(place)

    def at_hand(self, place: ast.AST) -> bool:
        """Whether the name has its value at a place."""
        around = [above for above in self.module.ancestors(place) if isinstance(above, FunctionNode)]
        if self.owner is not None:
            return self._in_class(place) or any(above in self.handed for above in around)
        home = self.setup.function
        return home is None or home in around or any(above in self.handed for above in around)

    def reach(self, place: ast.AST) -> str:
        """Make the scaler known at a place, and say what it is called there; raises Refused where it cannot be."""
        if self.at_hand(place):
            return self.name(place)
        function = self.module.function(place)
        if not isinstance(function, ast.FunctionDef):
            maker = getattr(self.setup.function, "name", "")
            made = f"in {maker}()" if maker else "elsewhere"
            raise Refused(f"it would be made {made}, and is not at hand here", "return it from there, by hand")
        try:
            return self._hand_to(function)
        except Refused as refused:
            raise Refused(f"{function.name}() cannot be given the scaler: {refused.reason}", refused.advice) from None

    def offer(self, place: ast.AST) -> bool:
        """As reach, but where it cannot be nothing changes."""
        before = dict(self.handed), list(self.edits)
        try:
            self.reach(place)
        except (Refused, edits.CannotEdit):
            self.handed, self.edits = before
            return False
        return True

    def _hand_to(self, function: ast.FunctionDef) -> str:
        """Add the parameter, and the argument to every call."""
        self.handed[function] = None
        keyword = edits.takes_keyword_only(function)
        calls, partials = self._calls(function)
        self.edits += edits.add_parameter(self.module, function, self.bare)
        for call in (*calls, *partials):
            text = self.reach(call)
            named = keyword or call in partials
            self.edits += edits.add_argument(self.module, call, f"{self.bare}={text}" if named else text)
        return self.bare

    def _calls(self, function: ast.FunctionDef) -> tuple[list[ast.Call], list[ast.Call]]:
        """The calls of a function, and the partial(…) that make it another one."""
        module = self.module
        loads = [n for n in ast.walk(module.tree) if isinstance(n, ast.Name) and n.id == function.name]
        partials = [
            call
            for node in loads
            if isinstance(call := module.parents[node], ast.Call) and call.args[:1] == [node]
            if "functools.partial" in module.dotted(call.func)
        ]
        if not partials or isinstance(module.parents[function], ast.ClassDef):
            return calls_of(module, function, self.seen), []
        calls = [call for node in loads if isinstance(call := module.parents[node], ast.Call) and call.func is node]
        if len(calls) + len(partials) < len(loads):
            raise Refused(f"{function.name} is passed around, not only called", BY_HAND)
        return calls, partials

    def switch(self, place: ast.stmt) -> str | None:
        """The condition under which AMP is on, as it reads at a place: "" for always, None where nothing is at hand and
        the scaler cannot be passed there."""
        switch = self.setup.switch
        if not switch or _readable(self.module, switch, place, self.setup.function):
            return switch
        return self._passed(place) or (f"{self.name(place)}.is_enabled()" if self.offer(place) else None)

    def _passed(self, place: ast.stmt) -> str:
        """The parameter of the function around a place that every call gives the switch to."""
        module, function = self.module, self.module.function(place)
        if not isinstance(function, ast.FunctionDef) or isinstance(module.parents[function], ast.ClassDef):
            return ""
        loads = [n for n in ast.walk(module.tree) if isinstance(n, ast.Name) and n.id == function.name]
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args)]
        found: set[str] = set(names)
        for node in loads:
            call = module.parents[node]
            if not isinstance(call, ast.Call) or call.func is not node:
                return ""
            given = dict(zip(names, call.args, strict=False)) | {str(one.arg): one.value for one in call.keywords}
            home = module.function(call) is self.setup.function
            found &= {name for name, value in given.items() if home and module.source(value) == self.setup.switch}
        return found.pop() if loads and len(found) == 1 else ""


def _class_of(module: Module, node: ast.AST) -> ast.AST | None:
    return next((above for above in module.ancestors(node) if isinstance(above, ast.ClassDef)), None)


def _readable(module: Module, text: str, place: ast.stmt, home: FunctionNode | None) -> bool:
    """Whether a condition can be evaluated at a place, and means the same there. A bare name is a variable of its
    function; a field of `self` or of a namespace with the same name is the same elsewhere."""
    nodes = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
    if module.function(place) is home:
        return True
    for node in nodes:
        if home is not None and f"{node.id}." not in text:
            return False
        if node.id == "self":
            field = next(part for part in text.replace("(", " ").split() if part.startswith("self."))
            if not visible(module, ".".join(field.split(".")[:2]), place):
                return False
        elif not visible(module, node.id, place):
            return False
    return True
