"""amp.initialize: what it was given, when it runs, and what it becomes."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from amplint.rewrite.apex.availability import Leaving
from amplint.rewrite.apex.uses import Use
from amplint.rewrite.fixes import suite_of
from amplint.rewrite.layout import is_elif
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.source.module import FunctionNode, Module

_ORDER = tuple(
    "models optimizers enabled opt_level cast_model_type patch_torch_functions keep_batchnorm_fp32 master_weights "
    "loss_scale cast_model_outputs num_losses verbosity min_loss_scale max_loss_scale".split()
)
_DROPPED = frozenset(("patch_torch_functions", "verbosity", "keep_batchnorm_fp32"))
# What changes where an option goes; the fix is then not safe.
_CHANGES = {
    "cast_model_type": "parameters stay in float32",
    "master_weights": "parameters stay in float32",
    "cast_model_outputs": "outputs have the dtype that autocast gives them",
    "num_losses": "all losses share one loss scale",
    "min_loss_scale": "the loss scale has no lower limit",
    "max_loss_scale": "the loss scale has no upper limit",
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

    @property
    def owner(self) -> str:
        """What the optimizer belongs to: "self." for a field of a class."""
        return "self." if any(name.startswith("self.") for name in (*self.optimizers, *self.models)) else ""


def setup_of(module: Module, uses: list[Use], leaving: Leaving, others: list[ast.AST]) -> Setup:
    """Read the file's amp.initialize; `others` are the places of its other uses. Raises Refused."""
    if not uses:
        raise Refused(
            "amp.initialize is not in this file: the scaler has to come from the file that has it",
            "make a GradScaler there, pass it on, and change both files together",
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
    match given.get("opt_level"):
        case None | ast.Constant(value="O1"):
            pass
        case ast.Constant(value="O0"):
            made.off = True
        case ast.Constant(value="O2"):
            made.changes.append("O2: parameters stay in float32, and autocast chooses the precision of each operation")
        case ast.Constant():
            raise Refused(
                "opt_level O3 trains float16 parameters, which torch.amp does not do",
                "train with O1, or cast the model to bfloat16 by hand",
            )
        case ast.Name() | ast.Attribute() as level:
            text = module.source(level)
            switches.append(f'{text} != "O0"')
            made.changes.append(f"{text} O2 and O3 run as O1: parameters stay in float32")
        case _:
            raise Refused("the opt_level of amp.initialize cannot be seen", BY_HAND)
    match given.get("loss_scale"):
        case None | ast.Constant(value=None | "dynamic"):
            pass
        case scale:
            made.changes.append(f"the loss scale is dynamic, not {' '.join(module.source(scale).split())}")
    for name, words in _CHANGES.items():
        if name in given and not (isinstance(given[name], ast.Constant) and given[name].value in (None, 1)):  # type: ignore[attr-defined]
            made.changes.append(words)
    if unknown := given.keys() - _CHANGES.keys() - _DROPPED - {*_ORDER[:4], "loss_scale"}:
        raise Refused(f"amp.initialize has no option {min(unknown)}", BY_HAND)
    made.switch = " and ".join(switches)


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
    if len(inner) > 1:
        raise Refused("amp.initialize stands under several conditions", "make it depend on one switch first")
    branch, arm = inner[0]
    if is_elif(module, branch) or arm != "body":
        raise Refused("amp.initialize stands in one of several alternatives", BY_HAND)
    if any(isinstance(node, ast.Call | ast.NamedExpr | ast.Await) for node in ast.walk(branch.test)):
        raise Refused("the condition of amp.initialize calls something", "give it a name first")
    tested = leaving.simplified(branch.test)
    if tested:
        simple = ast.parse(tested, mode="eval").body
        tested = f"({tested})" if made.switch and isinstance(simple, ast.BoolOp) else tested
        made.switch = " and ".join(filter(None, (tested, made.switch)))
    made.before = branch
    goes = [made.statement, *leaving.statements]
    stays = [one for one in suite_of(module, made.statement) if one not in goes and not leaving.answered(one)]
    if not stays and not made.replaced:
        if branch.orelse:
            raise Refused("what runs without AMP stands in the `else` of amp.initialize", "turn the condition round")
        made.emptied = branch


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
