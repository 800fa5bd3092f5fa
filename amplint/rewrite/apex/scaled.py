"""`with amp.scale_loss(loss, optimizer) as scaled: scaled.backward()` → `scaler.scale(loss).backward()`."""

from __future__ import annotations

import ast

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.scope import Scope
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.layout import end, margin_of, start
from amplint.rewrite.syntax.text import edit, row_end
from amplint.source.module import Module

_USES_GRADIENTS = frozenset("grad step master_params clip_grad_norm_ clip_grad_value_ dispatch_clip_grad".split())


class ScaledLoss:
    """One `with amp.scale_loss(…)`: the statement, the loss, and the optimizers as they are written."""

    def __init__(self, module: Module, name: ast.AST):
        call = module.parents[name]
        item = module.parents.get(call)
        above = module.parents.get(item) if item is not None else None
        match call, item, above:
            case ast.Call(), ast.withitem(optional_vars=ast.Name(id=scaled)), ast.With(items=[_]) if call.func is name:
                pass
            case _:
                raise Refused("amp.scale_loss is used in an unusual form", BY_HAND)
        assert isinstance(call, ast.Call) and isinstance(above, ast.With)
        given = dict(zip(("loss", "optimizers"), call.args, strict=False))
        given |= {str(keyword.arg): keyword.value for keyword in call.keywords}
        if "loss" not in given or "optimizers" not in given or any(isinstance(a, ast.Starred) for a in call.args):
            raise Refused("the arguments of amp.scale_loss cannot be seen", BY_HAND)
        self.module = module
        self.statement = above
        self.loss = given["loss"]
        optimizers = given["optimizers"]
        parts = optimizers.elts if isinstance(optimizers, ast.List | ast.Tuple) else [optimizers]
        self.optimizers = {module.source(part) for part in parts}
        self.scaled = scaled
        self.backwards = self._backwards()

    def _backwards(self) -> list[ast.Call]:
        """The backward calls in the body; refuses a body that goes on to use gradients."""
        found = []
        for node in (n for one in self.statement.body for n in ast.walk(one)):
            match node:
                case ast.Call(func=ast.Attribute(attr="backward", value=ast.Name(id=name))) if name == self.scaled:
                    found.append(node)
                case ast.Attribute(attr=name) | ast.Name(id=name) if name in _USES_GRADIENTS:
                    raise Refused("gradients are used inside `with amp.scale_loss`", "move that behind the block first")
        if not found:
            raise Refused("amp.scale_loss is used without backward()", BY_HAND)
        return found

    def text(self, scaler: str) -> str:
        """What a body of one backward becomes."""
        call = self.backwards[0]
        open_bracket = end(self.module, call.func)
        arguments = self.module.text[open_bracket : end(self.module, call)]
        return f"{scaler}.scale({self._loss_text()}).backward{arguments}"

    def _loss_text(self) -> str:
        text = self.module.source(self.loss)
        return f"({text})" if isinstance(self.loss, ast.GeneratorExp) else text

    def is_plain(self) -> bool:
        """Whether the body is a single backward."""
        match self.statement.body:
            case [ast.Expr(value=value)]:
                return value is self.backwards[0]
        return False

    def edits(self, scaler: str) -> list[Edit]:
        module, block = self.module, self.statement
        uses = [
            node
            for one in block.body
            for node in ast.walk(one)
            if isinstance(node, ast.Name) and node.id == self.scaled
        ]
        around = {block, *module.ancestors(block)}
        other_arms = {
            part
            for above in around
            if isinstance(above, ast.If) and not around.intersection(above.orelse)
            for one in above.orelse
            for part in ast.walk(one)
        }
        after = [
            node
            for node in ast.walk(module.scope(block))
            if isinstance(node, ast.Name)
            and node.id == self.scaled
            and isinstance(node.ctx, ast.Load)
            and node.lineno > (block.end_lineno or 0)
            and node not in other_arms
            and not any(isinstance(a, ast.With) and _names(a, self.scaled) for a in module.ancestors(node))
        ]
        made = edits.dedent_tail(module, block, 0)
        if len(uses) == 1 and not after:
            receiver = self.backwards[0].func
            assert isinstance(receiver, ast.Attribute)
            return made + edits.replace(module, receiver.value, f"{scaler}.scale({self._loss_text()})")
        header, *rest = made
        if header.text or header.range.start.column != 1:
            raise Refused("`with amp.scale_loss` has its body on its line", "give it lines of its own")
        line = f"{margin_of(module, block)}{self.scaled} = {scaler}.scale({self._loss_text()}){module.newline}"
        return [Edit(header.path, header.range, line), *rest]


def _names(block: ast.With, name: str) -> bool:
    return any(isinstance(item.optional_vars, ast.Name) and item.optional_vars.id == name for item in block.items)


def collapsed(losses: list[ScaledLoss], scope: Scope) -> tuple[list[Edit], set[ast.stmt]]:
    """An `if … else` of the same loss with and without delay_unscale becomes one line; and the blocks that it was."""
    by_block = {loss.statement: loss for loss in losses}
    made: list[Edit] = []
    done: set[ast.stmt] = set()
    modules = dict.fromkeys(loss.module for loss in losses)
    for module, node in ((one, node) for one in modules for node in ast.walk(one.tree)):
        match node:
            case ast.If(body=[ast.With() as one], orelse=[ast.With() as other]) if {one, other} <= by_block.keys():
                first, second = by_block[one], by_block[other]
                scaler = scope.reach(one)
                text = first.text(scaler)
                stop = row_end(module, module.at(end(module, node)).row)
                quiet = "#" not in module.text[start(module, node) : stop]
                if first.is_plain() and second.is_plain() and text == second.text(scaler) and quiet:
                    made.append(edit(module, start(module, node), end(module, node), text))
                    done |= {one, other}
    return made, done
