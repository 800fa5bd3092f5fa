"""amp.initialize: what it was given, when it runs, and what it becomes."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from amplint.rewrite.apex.availability import Leaving
from amplint.rewrite.apex.uses import Use
from amplint.rewrite.fixes import bound_before, suite_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.layout import is_elif
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, names_in, uses_of

_ORDER = tuple(
    "models optimizers enabled opt_level cast_model_type patch_torch_functions keep_batchnorm_fp32 master_weights "
    "loss_scale cast_model_outputs num_losses verbosity min_loss_scale max_loss_scale".split()
)
_DROPPED = frozenset(("patch_torch_functions", "verbosity", "keep_batchnorm_fp32"))
# What changes where an option goes; the fix is then not safe.
_CHANGES = {
    "cast_model_type": "weights are float32 now, and autocast chooses the precision of each operation",
    "master_weights": "weights are float32 now, and autocast chooses the precision of each operation",
    "cast_model_outputs": "outputs have the dtype that autocast gives them",
    "num_losses": "all losses share one loss scale now",
    "min_loss_scale": "the loss scale has no lower limit now",
    "max_loss_scale": "the loss scale has no upper limit now",
}
_LEVELS = {
    "O2": "weights, which O2 kept in float16, are float32 now, and autocast chooses the precision of each operation",
    "O3": "weights, which O3 trained in float16, are float32 now, and autocast chooses the precision of each operation",
}


@dataclass
class Setup:
    """The place of amp.initialize: `before` is the statement before which the scaler is made, `switch` the condition
    under which AMP is on ("" always). `replaced` is what `statement` becomes, if not nothing."""

    statement: ast.stmt
    before: ast.stmt
    function: FunctionNode | None
    models: list[str]
    optimizers: list[str]
    switch: str = ""
    changes: list[str] = field(default_factory=list)
    replaced: str = ""
    emptied: ast.If | None = None  # the `if` that holds nothing else
    off: bool = False  # opt_level O0
    scale: str = ""  # init_scale, where apex was given a number
    same: set[str] = field(default_factory=set)  # variables that are true where AMP is on
    dropped: list[ast.stmt] = field(default_factory=list)  # what made the opt_level, which nothing needs any more

    @property
    def owner(self) -> str:
        """What the optimizer belongs to: "self." for a field of a class."""
        return "self." if any(name.startswith("self.") for name in (*self.optimizers, *self.models)) else ""


def setup_of(module: Module, uses: list[Use], leaving: Leaving, others: list[ast.AST]) -> Setup:
    """Read the file's amp.initialize; `others` are the places of its other uses. Raises Refused."""
    if not uses:
        raise Refused(
            "amp.initialize is not in this file, and amplint does not see which one calls it",
            "pass a torch.amp.GradScaler in from where it is called, and change both by hand",
        )
    calls = [module.parents[use.node] for use in uses]
    statements = [module.statement(use.node) for use in uses]
    if not all(isinstance(call, ast.Call) and call.func is use.node for call, use in zip(calls, uses, strict=True)):
        raise Refused("amp.initialize is passed around, not called", BY_HAND)
    statement = statements[0]
    if len(calls) > 1:
        statement = _either(module, statements)
    setups = [_read(module, call) for call in calls if isinstance(call, ast.Call)]
    first = setups[0]
    if any(one.models != first.models or one.replaced != first.replaced for one in setups[1:]):
        raise Refused("amp.initialize is called for different models", BY_HAND)
    first.changes = list(dict.fromkeys(change for one in setups for change in one.changes))
    first.statement = first.before = statement
    above = module.parents[statement]
    if isinstance(above, ast.Try) and above in leaving.statements:
        first.statement = first.before = above
    elif isinstance(above, ast.Try | ast.ExceptHandler):
        raise Refused("amp.initialize stands in a `try`", BY_HAND)
    if any(one.switch != first.switch for one in setups):
        raise Refused("amp.initialize is called with different settings", BY_HAND)
    _conditions(module, first, leaving, others)
    first.same = _same(module, first, statement)
    return first


def _either(module: Module, statements: list[ast.stmt]) -> ast.stmt:
    """The `if … else` whose arms hold one amp.initialize each, and nothing else."""
    branch = module.parents[statements[0]]
    if isinstance(branch, ast.If) and len(statements) == 2 and [*branch.body, *branch.orelse] == statements:
        return branch
    raise Refused("amp.initialize is called in several places", BY_HAND)


def _read(module: Module, call: ast.Call) -> Setup:
    """What one call is given, and how its result is bound."""
    if any(isinstance(one, ast.Starred) for one in call.args) or any(one.arg is None for one in call.keywords):
        raise Refused("the arguments of amp.initialize cannot be seen", BY_HAND)
    given = dict(zip(_ORDER, call.args, strict=False)) | {str(one.arg): one.value for one in call.keywords}
    models, optimizers = _items(given.get("models")), _items(given.get("optimizers"))
    statement = module.statement(call)
    names = [module.source(one) for one in (*models, *optimizers)]
    if not models or not all(isinstance(one, ast.Name | ast.Attribute) for one in optimizers):
        raise Refused("the arguments of amp.initialize have no plain names", "give the optimizer a name first")
    made = Setup(statement, statement, module.function(call), names[: len(models)], names[len(models) :])
    match statement:
        case ast.Expr(value=value) if value is call:
            pass
        case ast.Assign(targets=[target], value=value) if value is call:
            bound = [module.source(one) for one in _items(target)]
            if bound[-1] == "_" and not optimizers:
                bound.pop()
            if bound != names:
                if len(bound) != len(names):
                    raise Refused("what amp.initialize returns is kept in one name", "unpack it first")
                pairs = [pair for pair in zip(bound, names, strict=True) if pair[0] != pair[1]]
                made.replaced = " = ".join(", ".join(side) for side in zip(*pairs, strict=True))
        case _:
            raise Refused("the result of amp.initialize is used at once", "bind it to names of its own first")
    _options(module, given, made)
    return made


def _items(node: ast.expr | None) -> list[ast.expr]:
    """The models or optimizers, out of their tuples and lists; None is nothing."""
    match node:
        case None | ast.Constant(value=None):
            return []
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return [item for element in elements for item in _items(element)]
    return [node]


def _options(module: Module, given: dict[str, ast.expr], made: Setup) -> None:
    """The options: the switch they make, and what changes without them."""
    switches = []
    match given.get("enabled"):
        case None | ast.Constant(value=True):
            pass
        case enabled:
            switches.append(_operand(module, enabled))
    _level(module, given.get("opt_level"), made, switches)
    match given.get("loss_scale"):
        case None | ast.Constant(value=None | "dynamic"):
            pass
        case ast.Constant(value=int() | float() as number) if number > 1:
            made.scale = str(float(number))
            made.changes.append(f"the loss scale, which was {number} throughout, starts there and adapts")
        case scale:
            said = " ".join(module.source(scale).split())
            made.changes.append(f"the loss scale is dynamic now, from 65536, whatever {said} says")
    for name, words in _CHANGES.items():
        if name in given and not (isinstance(given[name], ast.Constant) and given[name].value in (None, 1)):  # type: ignore[attr-defined]
            made.changes.append(words)
    if unknown := given.keys() - _CHANGES.keys() - _DROPPED - {*_ORDER[:4], "loss_scale"}:
        raise Refused(f"amp.initialize has no option {min(unknown)}", BY_HAND)
    made.switch = " and ".join(switches)


def _level(module: Module, level: ast.expr | None, made: Setup, switches: list[str]) -> None:
    """The opt_level: O0 is off, O1 is what autocast does, and O2 and O3 become that."""
    match level:
        case None | ast.Constant(value="O1"):
            return
        case ast.Constant(value="O0"):
            made.off = True
            return
        case ast.Constant(value="O2" | "O3" as name):
            made.changes.append(_LEVELS[name])
            return
        case ast.Name(id=name) if (choice := _chosen(module, level)) is not None:
            test, on, statement = choice
            switches.append(_operand(module, test))
            if on in _LEVELS:
                made.changes.append(_LEVELS[on])
            made.dropped.append(statement)
            return
        case ast.Constant():
            raise Refused("the opt_level of amp.initialize is none that apex has", BY_HAND)
    if level is None or any(isinstance(node, ast.Call | ast.NamedExpr) for node in ast.walk(level)):
        raise Refused("the opt_level of amp.initialize is computed by a call", "give it a name first")
    text = " ".join(module.source(level).split())
    constants = {node.value for node in ast.walk(level) if isinstance(node, ast.Constant)}
    if not (isinstance(level, ast.IfExp) and constants <= {"O1", "O2", "O3"} and _constant_arms(level)):
        switches.append(
            f'{text if isinstance(level, ast.Name | ast.Attribute | ast.Subscript) else f"({text})"} != "O0"'
        )
    made.changes.append(f"where {text} is O2 or O3, weights are float32 now, and O1 is what runs")


def _constant_arms(level: ast.IfExp) -> bool:
    return isinstance(level.body, ast.Constant) and isinstance(level.orelse, ast.Constant)


def _chosen(module: Module, level: ast.Name) -> tuple[ast.expr, str, ast.stmt] | None:
    """The condition behind `level = "O1" if half else "O0"`, what it chooses, and the statement, if that is for nothing
    else."""
    scope = module.scope(level)
    uses = uses_of(scope, level.id)
    if len(uses) != 2:
        return None
    for node in ast.walk(scope):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.IfExp(
                    test=ast.Name() | ast.Attribute() as test,
                    body=ast.Constant(value="O1" | "O2" | "O3" as on),
                    orelse=ast.Constant(value="O0"),
                ),
            ) if name == level.id:
                return test, on, node
    return None


def _same(module: Module, made: Setup, statement: ast.stmt) -> set[str]:
    """The variables of the function that are true exactly where AMP is on: set to True beside amp.initialize and to
    False or None elsewhere, or assigned the switch."""
    stores: dict[str, list[ast.Assign]] = {}
    for node in ast.walk(made.function or module.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) if module.function(node) is made.function:
                stores.setdefault(name, []).append(node)
    found = set()
    for name, assigned in stores.items():
        values = [one.value.value if isinstance(one.value, ast.Constant) else one.value for one in assigned]
        beside = [one for one in assigned if one in suite_of(module, statement)]
        marks = len(beside) == 1 and isinstance(beside[0].value, ast.Constant) and beside[0].value.value is True
        if (
            marks
            and all(
                value is False or value is None
                for one, value in zip(assigned, values, strict=True)
                if one not in beside
            )
        ) or (len(assigned) == 1 and made.switch and module.source(assigned[0].value) == made.switch):
            found.add(name)
    return found


def _operand(module: Module, node: ast.expr) -> str:
    """An expression as an operand of `and`."""
    text = " ".join(module.source(node).split())
    return f"({text})" if isinstance(node, ast.BoolOp | ast.IfExp | ast.Lambda | ast.NamedExpr) else text


def _conditions(module: Module, made: Setup, leaving: Leaving, others: list[ast.AST]) -> None:
    """The condition under which amp.initialize runs becomes the switch, unless every other use stands under it, too."""
    shared: set[tuple[str, str]] | None = None
    for other in others:
        if module.function(other) is made.function:
            around = {(module.source(one.test), arm) for one, arm in _ifs(module, other)}
            shared = around if shared is None else shared & around
    inner = [
        (branch, arm)
        for branch, arm in _ifs(module, made.statement)
        if (module.source(branch.test), arm) not in (shared or set()) and "__name__" not in module.source(branch.test)
    ]
    if not inner:
        return
    parts: list[str] = []
    for branch, arm in inner:
        if is_elif(module, branch) or arm != "body":
            raise Refused("amp.initialize stands in one of several alternatives", BY_HAND)
        if any(isinstance(node, ast.NamedExpr | ast.Await) or _acts(node) for node in ast.walk(branch.test)):
            raise Refused("the condition of amp.initialize calls something", "give it a name first")
        if tested := leaving.simplified(branch.test):
            parts.insert(0, _on_one_line(tested))
    parts += [made.switch] if made.switch else []
    made.switch = _all_of(parts)
    outermost = next((branch for branch, _ in reversed(inner) if leaving.simplified(branch.test)), None)
    if outermost is None:  # only apex itself was asked for
        branch = inner[0][0]
        if suite_of(module, made.statement) == [made.statement] and not branch.orelse:
            made.emptied = made.before = branch
        return
    if not bound_before(module, made.switch, outermost) or _bound_in(outermost, made.switch):
        raise Refused("the switch of amp.initialize is computed in the branch that it stands in", BY_HAND)
    made.before = outermost
    branch = inner[0][0]
    goes = [made.statement, *leaving.statements]
    stays = [one for one in suite_of(module, made.statement) if one not in goes and not leaving.answered(one)]
    if not stays and not made.replaced:
        if len(inner) > 1:
            if branch.orelse or module.parents[branch] is not inner[1][0]:
                raise Refused("amp.initialize stands under several conditions", "make it depend on one switch first")
            if any(one.orelse or len(one.body) > 1 for one, _ in inner[1:]):
                raise Refused("amp.initialize stands under several conditions", "make it depend on one switch first")
            branch = inner[-1][0]
        if branch.orelse and is_elif(module, branch.orelse[0]) and branch.orelse[0].orelse:  # type: ignore[attr-defined]
            raise Refused(
                "what runs without AMP stands in an `elif` behind amp.initialize", "turn the conditions round"
            )
        made.emptied = branch


_ASKS = frozenset("is_available device_count isinstance len hasattr getattr int bool get is_initialized".split())


def _acts(node: ast.AST) -> bool:
    """Whether a part of a condition calls something that may do more than to ask."""
    return isinstance(node, ast.Call) and called_name(node) not in _ASKS


def _on_one_line(condition: str) -> str:
    """A condition that may go on over lines, which needs the brackets that it stands in."""
    return ast.unparse(ast.parse(f"({condition})", mode="eval")) if "\n" in condition else condition


def _all_of(parts: list[str]) -> str:
    """The conjunction of conditions, each part once."""
    if len(parts) < 2:
        return "".join(parts)
    texts = (ast.get_source_segment(part, one) or "" for part in parts for one in _conjuncts(part))
    unique = {ast.dump(ast.parse(text, mode="eval")): text for text in reversed(list(texts))}
    words = list(reversed(unique.values()))
    several = len(words) > 1
    return " and ".join(
        f"({one})" if several and isinstance(ast.parse(one, mode="eval").body, ast.BoolOp | ast.IfExp) else one
        for one in words
    )


def _conjuncts(text: str) -> list[ast.expr]:
    tree = ast.parse(text, mode="eval").body
    return list(tree.values) if isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And) else [tree]


def _bound_in(branch: ast.If, switch: str) -> bool:
    """Whether a branch binds a name that a condition reads."""
    read = names_in(ast.parse(switch, mode="eval"))
    stores = (node for one in branch.body for node in ast.walk(one) if isinstance(node, ast.Name))
    return any(node.id in read and isinstance(node.ctx, ast.Store) for node in stores)


def _ifs(module: Module, node: ast.AST) -> list[tuple[ast.If, str]]:
    """The branches around a node in its function, each with its arm; a loop or `try` around amp.initialize is refused
    where it is met."""
    found, inside = [], node
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            break
        if isinstance(above, ast.If):
            found.append((above, "body" if inside in above.body else "orelse"))
        inside = above
    return found
