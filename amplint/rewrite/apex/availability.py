"""The imports go, and with them the question whether apex is installed: `try … except ImportError`, APEX_AVAILABLE."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Collection, Sequence

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.calls import binds
from amplint.rewrite.apex.uses import ONLY_APEX, Import, Uses, guard
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.layout import end, start
from amplint.rewrite.syntax.text import edit
from amplint.source.module import FunctionNode, Module

_ASKS = "it asks whether apex is installed in a way that amplint does not follow"
_REGISTERS = ("register_half_function", "register_float_function", "register_promote_function")
_ADVICE = "drop that question, then run amplint again"


class Leaving:
    """What goes with the imports: statements, parts of statements, and the flags that say whether apex is there."""

    def __init__(self, module: Module, uses: Uses):
        self.module = module
        self.uses = uses
        self.statements: list[ast.stmt] = []
        self.names: set[str] = set()  # imported beside others: only the name goes
        self.flags: set[str] = set()
        self.shared: set[str] = set()  # flags that say as much of other parts of apex
        self.questions: list[ast.expr] = []
        self.denials: list[ast.expr] = []  # `amp is None`: false from now on
        self._refuse_variables()
        self._asked()
        whole: dict[Import, int] = {}
        for statement, _ in uses.imports:
            whole[statement] = whole.get(statement, 0) + 1
        stays = {alias for _, alias in uses.imports if alias.name == "apex" and self._used_otherwise()}
        for statement, alias in uses.imports:
            if alias in stays:
                continue
            if whole[statement] < len(statement.names):
                self.names.add(alias.asname or alias.name.partition(".")[0])
            elif statement not in self.statements:
                self._whole(statement)

    def _refuse_variables(self) -> None:
        """Refuse a variable or parameter that holds apex's amp: it is more than the import's name."""
        names = {alias.asname or alias.name for _, alias in self.uses.imports if alias.name == "amp"}
        known = {use.node for use in self.uses.uses}
        for node in ast.walk(self.module.tree):
            match node:
                case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in names and attr in ONLY_APEX:
                    if node not in known:
                        raise Refused(f"{name} is also a variable or a parameter", BY_HAND)

    def _used_otherwise(self) -> bool:
        roots = {node for use in self.uses.uses for node in ast.walk(use.node)}
        return any(
            isinstance(node, ast.Name) and node.id == "apex" and node not in roots
            for node in ast.walk(self.module.tree)
        )

    def _asked(self) -> None:
        """Find the questions that are no flags: `find_spec("apex")`, `"apex" in sys.modules`."""
        for node in ast.walk(self.module.tree):
            match node:
                case ast.Compare(left=ast.Constant(value="apex"), ops=[ast.In()]):
                    self.questions.append(node)
                case ast.Compare(ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]) if self._is_amp(node.left):
                    self.questions.append(node)
                case ast.Compare(ops=[ast.Is()], comparators=[ast.Constant(value=None)]) if self._is_amp(node.left):
                    self.denials.append(node)
                case ast.Compare(ops=[ast.In()], comparators=[ast.Attribute(attr="__dict__") as inner]) if any(
                    use.node is inner for use in self.uses.uses
                ):
                    self.questions.append(node)  # "state_dict" in amp.__dict__
                case ast.Call(args=[ast.Constant(value="apex" | "apex.amp")], func=ast.Attribute(attr="find_spec")):
                    self.questions.append(node)
                case ast.Call(args=[ast.Constant(value=str() as name), *_], func=ast.Attribute(attr="import_module")):
                    if name.partition(".")[0] == "apex":
                        raise Refused(_ASKS, _ADVICE)

    def _is_amp(self, node: ast.expr) -> bool:
        return any(use.node is node and not use.name for use in self.uses.uses)

    def asks(self, node: ast.AST) -> bool:
        """Whether a node is part of such a question."""
        return any(node in ast.walk(one) for one in (*self.questions, *self.denials))

    def _whole(self, statement: Import) -> None:
        attempt = guard(self.module, statement)
        if attempt is None:
            self.statements.append(_alone_in(self.module, statement) or statement)
            return
        flags = {name for one in attempt.body if (name := _flag(one, True))}
        calls = {self.module.statement(use.node) for use in self.uses.named("initialize")}
        registers = {self.module.statement(use.node) for name in _REGISTERS for use in self.uses.named(name)}
        leaves = {statement, *calls, *registers}
        rest = [one for one in attempt.body if one not in leaves and not _flag(one, True)]
        if rest:
            if calls & set(attempt.body):
                raise Refused("amp.initialize stands in the `try` around the import, beside other things", _ADVICE)
            self.shared |= flags
            self.statements.append(statement)
            return
        if (
            attempt.orelse
            or attempt.finalbody
            or not all(map(_only_says, (o for h in attempt.handlers for o in h.body)))
        ):
            raise Refused("the `try` around the import does more than to say that apex is missing", _ADVICE)
        self.flags |= flags
        only = registers & set(attempt.body) and not calls & set(attempt.body) and not flags
        around = _alone_in(self.module, attempt) if only else None
        self.statements.append(around or attempt)
        inside = set(ast.walk(attempt))
        bound = {name for one in attempt.handlers for part in one.body if (name := _flag(part, False))}
        for name in bound - flags:
            if self._loads(name) and not any(
                isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
                for node in set(ast.walk(self.module.tree)) - inside
            ):
                raise Refused(f"{name} is set only where apex is missing", _ADVICE)

    def _loads(self, flag: str, context: type[ast.expr_context] = ast.Load) -> list[ast.Name]:
        """The places that name a flag, and not a variable of a function that is called so."""
        module = self.module
        home = {module.function(one) for one in self.statements}
        return [
            node
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Name) and node.id == flag and isinstance(node.ctx, context)
            if not any(
                isinstance(above, FunctionNode) and above not in home and binds(module, above, flag)
                for above in module.ancestors(node)
            )
        ]

    def simplified(self, test: ast.expr) -> str:
        """The text of a condition without the flags, which are true from now on."""
        match test:
            case ast.BoolOp(op=ast.And(), values=values):
                kept = [value for value in values if not self._is_flag(value)]
                if len(kept) < len(values):
                    return " and ".join(self.module.source(value) for value in kept)
            case _ if self._is_flag(test):
                return ""
        if any(isinstance(n, ast.expr) and (n in self.denials or self._is_flag(n)) for n in ast.walk(test)):
            raise Refused(_ASKS, _ADVICE)
        return self.module.source(test)

    def _is_flag(self, node: ast.expr) -> bool:
        return node in self.questions or (isinstance(node, ast.Name) and node.id in self.flags | self.shared)

    def edits(self, also: Sequence[ast.stmt], gone: Collection[ast.AST]) -> list[Edit]:
        """Delete the imports and the statements in `also`, and answer what asks for a flag. `gone` is what other edits
        take away."""
        module, made = self.module, []
        wanted = [one for one in (*self.statements, *also) if one not in gone]
        delete = [one for one in wanted if not any(above in wanted for above in module.ancestors(one))]
        dropped = {part for one in delete for part in ast.walk(one)} | set(gone)
        loads: list[ast.expr] = [load for flag in sorted(self.flags) for load in self._loads(flag)]
        loads += [load for flag in sorted(self.shared) for load in self._loads(flag) if self._guards(load)]
        kept: dict[str, None] = {}
        for load in (*loads, *self.questions, *self.denials):
            if load in dropped:
                continue
            statement = module.statement(load)
            if self.answered(statement):
                delete.append(statement)
                dropped |= set(ast.walk(statement))
            elif isinstance(statement, ast.If) and isinstance(statement.test, ast.BoolOp):
                dropped |= set(ast.walk(statement.test))
                made += edits.replace(module, statement.test, self.simplified(statement.test))
            elif isinstance(load, ast.Name) and "apex" not in load.id.lower() and load.id in self.flags:
                kept[load.id] = None
                dropped.add(load)
            else:
                raise Refused(f"{module.source(load)} is used for more than apex.amp", _ADVICE)
        for flag in self.flags:
            if any(node not in dropped for node in self._loads(flag, ast.Store)):
                raise Refused(f"{flag} is set in several places", _ADVICE)
        for flag in kept:
            attempt = next(o for o in delete if any(getattr(n, "id", "") == flag for n in ast.walk(o)))
            made.append(edit(module, start(module, attempt), end(module, attempt), f"{flag} = True"))
            delete.remove(attempt)
        gone_now = [*delete, *gone, *(use.node for use in self.uses.uses), *self.questions, *self.denials]
        uses = {node for use in self.uses.uses for node in ast.walk(use.node)}
        asked = (node for one in self.questions for node in ast.walk(one) if node not in uses)
        roots = {node.id for node in asked if isinstance(node, ast.Name)}
        if self.names or roots:
            made += edits.remove_import_name(module, *self.names, *roots, gone=gone_now)
        return made + edits.delete(module, *dict.fromkeys(delete))

    def _guards(self, load: ast.Name) -> bool:
        """Whether a flag is asked for where apex.amp is used."""
        statement = self.module.statement(load)
        inside = set(ast.walk(statement)) if isinstance(statement, ast.If) else set()
        return any(use.node in inside for use in self.uses.uses)

    def _always(self, test: ast.expr) -> bool:
        """Whether a condition holds whatever its other parts are, now that the flags are true."""
        leaves = [leaf for leaf in _leaves(test) if leaf not in self.denials]
        open_ones = sorted({ast.unparse(leaf) for leaf in leaves if not self._is_flag(leaf)})
        answered = {ast.unparse(leaf): True for leaf in leaves if self._is_flag(leaf)}
        answered |= {ast.unparse(leaf): False for leaf in self.denials}
        if len(open_ones) > 6:
            return False
        return all(
            _value(test, answered | dict(zip(open_ones, values, strict=True)))
            for values in itertools.product((True, False), repeat=len(open_ones))
        )

    def answered(self, statement: ast.stmt) -> bool:
        """Whether an assertion always holds now, or a branch that marks or reports that apex is missing is not taken
        any more."""
        match statement:
            case ast.Assert(test=test):
                return self._always(test)
            case ast.If(test=test, body=body, orelse=[]) if all(map(_only_says, body)):
                return self._always(ast.UnaryOp(ast.Not(), test))
        return False


def _alone_in(module: Module, statement: ast.stmt) -> ast.stmt | None:
    """The `if` that holds nothing but a statement, where asking its condition changes nothing."""
    match module.parents[statement]:
        case ast.If(test=test, body=[_], orelse=[]) as around if statement in around.body:
            above = module.parents[around]
            elif_ = isinstance(above, ast.If) and around in above.orelse
            asks = any(isinstance(one, ast.Call | ast.NamedExpr | ast.Await) for one in ast.walk(test))
            return None if elif_ or asks else around
    return None


def _flag(statement: ast.stmt, value: bool) -> str:
    """The name that a statement sets to True (or False)."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=bool() as given)) if given is value:
            return name
    return ""


def _only_says(statement: ast.stmt) -> bool:
    """A statement of a handler that can go: it reports, gives up, or marks apex as missing."""
    match statement:
        case ast.Pass() | ast.Raise():
            return True
        case ast.Expr(value=ast.Call(func=ast.Name() | ast.Attribute())):
            return True
        case ast.Assign(targets=[ast.Name() | ast.Attribute()], value=ast.Constant(value=None | False)):
            return True
    return False


def _leaves(test: ast.expr) -> list[ast.expr]:
    match test:
        case ast.BoolOp(values=values):
            return [leaf for value in values for leaf in _leaves(value)]
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return _leaves(operand)
    return [test]


def _value(test: ast.expr, known: dict[str, bool]) -> bool:
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, known) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, known) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, known)
    return known[ast.unparse(test)]
