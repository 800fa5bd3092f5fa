"""Where the scaler is at hand, and how it gets to where it is not."""

from __future__ import annotations

import ast

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.calls import Seen, argument_of, binds, calls_of
from amplint.rewrite.apex.group import Group
from amplint.rewrite.apex.setup import Setup
from amplint.rewrite.fixes.scaler import free_name
from amplint.rewrite.gates.device import visible
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import stored_names


class Scope:
    """The scaler's name, and the functions that it is handed to."""

    def __init__(self, group: Group, setup: Setup, seen: Seen):
        self.group = group
        self.setup = setup
        self.seen = seen
        self.home = group.of(setup.statement)
        self.owner = self.home.class_of(setup.statement) if setup.owner else None
        self.bare = max(map(free_name, group.uses), key=lambda name: name != "scaler")
        self.edits: list[Edit] = []
        self.handed: dict[ast.AST, None] = {}
        self.passing: dict[ast.AST, str] = {}  # the parameter of each function that is the switch, found once

    def name(self, place: ast.AST) -> str:
        """What the scaler is called at a place."""
        if self._handed(place):
            return self.bare
        if self._in_class(place):
            return f"self.{self.bare}"
        return self._through(place) or self.bare

    def early(self, place: ast.AST) -> bool:
        """Whether a place runs before amp.initialize, as it stands above it in the same block and in no loop."""
        home, setup = self.home, self.setup.statement
        if self.group.of(place) is not home or home.function(place) is not home.function(setup):
            return False
        looped = home.loop(setup) is not None
        return not looped and home.offset(home.range(place).start) < home.offset(home.range(setup).start)

    def _in_class(self, place: ast.AST) -> bool:
        return self.owner is not None and self.owner in self.group.of(place).ancestors(place)

    def _handed(self, place: ast.AST) -> bool:
        return any(above in self.handed for above in self.group.of(place).ancestors(place))

    def _through(self, place: ast.AST) -> str:
        """`self.gan.scaler` in another class that has the object with the scaler in a field, as its use of the
        optimizers shows: `self.gan.optimizer.step()`."""
        if self.owner is None:
            return ""
        module = self.group.of(place)
        fields = {name.removeprefix("self.") for name in self.setup.optimizers}
        around = module.class_of(place)
        owners = {
            module.source(node.value)
            for node in (ast.walk(around) if around is not None else ())
            if isinstance(node, ast.Attribute) and node.attr in fields and isinstance(node.value, ast.Attribute)
        }
        owner = owners.pop() if len(owners) == 1 else ""
        return f"{owner}.{self.bare}" if owner.startswith("self.") and owner.count(".") == 1 else ""

    def at_hand(self, place: ast.AST) -> bool:
        """Whether the name has its value at a place."""
        if self._handed(place):
            return True
        if self.owner is not None:
            return self._in_class(place) or bool(self._through(place))
        module, home = self.group.of(place), self.setup.function
        if module is not self.home:
            return False
        if module.function(place) is home:
            return module.statement(place).lineno >= self.setup.before.lineno
        return home is None or home in module.ancestors(place)

    def reach(self, place: ast.AST) -> str:
        """Make the scaler known at a place, and say what it is called there; raises Refused where it cannot be."""
        if self.at_hand(place):
            return self.name(place)
        module = self.group.of(place)
        function = module.function(place)
        if function is self.setup.function and module is self.home:
            raise Refused("amp.initialize runs after what needs the scaler", BY_HAND)
        if not isinstance(function, ast.FunctionDef):
            maker = getattr(self.setup.function, "name", "")
            made = f"in {maker}()" if maker else "elsewhere"
            raise Refused(f"it would be made {made}, and is not at hand here", "return it from there, by hand")
        try:
            self._hand_to(module, function)
        except Refused as refused:
            raise Refused(f"{function.name}() cannot be given the scaler: {refused.reason}", refused.advice) from None
        return self.bare

    def offer(self, place: ast.AST) -> bool:
        """As reach, but where it cannot be nothing changes."""
        before = dict(self.handed), list(self.edits)
        try:
            self.reach(place)
        except (Refused, edits.CannotEdit):
            self.handed, self.edits = before
            return False
        return True

    def _hand_to(self, module: Module, function: ast.FunctionDef) -> None:
        """Add the parameter, and the argument to every call; to all functions that the same calls may call."""
        outer = module.function(function)
        if outer is not None and isinstance(outer, ast.FunctionDef) and self._encloses_calls(module, function):
            self.reach(function)  # a closure sees what is handed to the function around it
            return
        found = calls_of(self.group, function, self.seen)
        keywords: set[bool] = set()
        for one in found.functions:
            where = self.group.of(one)
            if where not in self.group.uses and binds(where, one, self.bare):
                raise Refused(f"{one.name}() has a {self.bare} already", BY_HAND)
            self.handed[one] = None
            keywords.add(edits.takes_keyword_only(one))
            self.edits += edits.add_parameter(where, one, self.bare)
        for call in (*found.calls, *found.partials):
            text = self.reach(call)
            named = True in keywords or call in found.partials
            if len(keywords) > 1:
                raise Refused(f"{function.name}() is called like functions with other parameters", BY_HAND)
            self.edits += edits.add_argument(self.group.of(call), call, f"{self.bare}={text}" if named else text)

    def _encloses_calls(self, module: Module, function: ast.FunctionDef) -> bool:
        """Whether a function is made inside another one: it is a closure, and sees its variables."""
        return module.function(function) is not None and not isinstance(module.parents[function], ast.ClassDef)

    def switch(self, place: ast.stmt) -> str | None:
        """The condition under which AMP is on, as it reads at a place: "" for always, None where nothing is at hand and
        the scaler cannot be passed there."""
        switch = self.setup.switch
        if not switch:
            return switch
        module = self.group.of(place)
        if module.function(place) is self.setup.function and module is self.home:
            return switch
        passed = self._passed(module, place, 6)
        if not passed and _readable(self.home, module, switch, place, self.setup.function):
            return switch
        return passed or (f"{self.name(place)}.is_enabled()" if self.offer(place) else None)

    def _passed(self, module: Module, place: ast.AST, depth: int) -> str:
        """The parameter of a function around a place that every call gives the switch to."""
        for function in module.ancestors(place):
            if not isinstance(function, ast.FunctionDef) or depth == 0:
                continue
            if function is self.setup.function:
                break
            if function not in self.passing:
                self.passing[function] = ""
                self.passing[function] = self._passed_to(function, depth)
            if self.passing[function]:
                return self.passing[function]
        return ""

    def _passed_to(self, function: ast.FunctionDef, depth: int) -> str:
        try:
            found = calls_of(self.group, function, self.seen, outside=False)
        except Refused:
            return ""
        names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
        for name in names if len(found.functions) == 1 and not found.partials else ():
            stored = name in stored_names(function)
            if not stored and all(
                self._is_switch(argument_of(function, call, name), call, depth) for call in found.calls
            ):
                return name
        return ""

    def _is_switch(self, value: ast.expr | None, call: ast.Call, depth: int) -> bool:
        """Whether what a call passes is the switch."""
        if not isinstance(value, ast.Name | ast.Attribute):
            return False
        module = self.group.of(call)
        text = module.source(value)
        if module is self.home and module.function(call) is self.setup.function:
            return text == self.setup.switch or text in self.setup.same
        return text == self._passed(module, call, depth - 1)


def _readable(home: Module, module: Module, text: str, place: ast.stmt, made: FunctionNode | None) -> bool:
    """Whether a condition can be evaluated at a place, and means the same there. A bare name is a variable of its
    function; a field of `self` or of a namespace with the same name is the same elsewhere."""
    nodes = [node for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)]
    for node in nodes:
        if (made is not None or module is not home) and f"{node.id}." not in text:
            return False
        if node.id == "self":
            if module is not home:
                return False
            field = next(part for part in text.replace("(", " ").split() if part.startswith("self."))
            if not visible(module, ".".join(field.split(".")[:2]), place):
                return False
        elif not visible(module, node.id, place):
            return False
    return True
