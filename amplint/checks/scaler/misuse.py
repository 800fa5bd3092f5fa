"""Family 1, a scaler that is used in ways it is not made for."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, alternatives, found, found_at, own_condition, rule, text
from amplint.checks.scaler.protocol import without_gradients
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.interpret.roles import path_of
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, place_of, uses_of
from amplint.source.values import FALSE, TRUE, Scaler
from amplint.source.walk import walk

_LOOKS = frozenset(("item", "detach", "cpu", "tolist", "numpy"))
_LISTS = frozenset(("append", "print", "float", "add_scalar", "log", "update_loss"))


def scalers_of(script: Script) -> set[str]:
    """What the script calls its scalers: what it makes with a constructor, and what it uses as one."""
    module, machine = script.module, script.reading.machine
    names = {
        path
        for node in module.nodes(ast.Assign)
        if called_name(node.value).endswith("GradScaler")
        for target in node.targets
        if (path := path_of(target)) is not None
    }
    for code in (module.tree, *module.defs):
        names |= {path for path, role in machine.roles(module, code).items() if role.startswith("scaler")}
    for node in module.nodes(ast.Assign):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute() as field) if name in names:
                names |= {path for path in (path_of(field),) if path is not None}
    return names


def _calls(module: Module, scalers: set[str], method: str) -> Iterator[ast.Call]:
    """The calls of a scaler's method."""
    for node in module.nodes(ast.Call):
        match node.func:
            case ast.Attribute(value=receiver, attr=name) if name == method and path_of(receiver) in scalers:
                yield node


@rule("AMP124")
def scaler_without_autocast(script: Script) -> Iterator[Finding]:
    """A scaler is on, and the region that the model runs in is written as one that is off."""
    regions = {event.entered for event in script.events(events.Enter)}
    if not regions or any(one.autocast.enabled != FALSE for one in regions):
        return
    inside = [forward for forward in script.events(events.Forward) if forward.region in regions and forward.grad]
    for backward in script.events(events.Backward):
        scaler = backward.scaler
        if inside and isinstance(scaler, Scaler) and scaler.enabled == TRUE:
            create = script.created(scaler)
            yield found(
                "AMP124",
                create or backward,
                "the scaler is on, and autocast is always off: a float32 run is scaled for nothing, and skips steps "
                "with inf or nan instead of showing them",
                severity=Severity.NOTE,
                evidence=[(inside[0], "the model runs where autocast is off"), (backward, "its loss is scaled")],
                help="turn autocast on, or leave the scaler out",
            )


@rule("AMP130")
def scale_misused(script: Script) -> Iterator[Finding]:
    """What scale() is given or what becomes of its result, and what update() is given."""
    module = script.module
    if "scale(" not in module.text and ".update(" not in module.text:
        return
    scalers = scalers_of(script)
    for call in _calls(module, scalers, "scale"):
        if not call.args:
            continue
        argument, above = call.args[0], module.parents[call]
        name = text(module, call.func)
        if isinstance(argument, ast.Call) and called_name(argument) == "backward":
            yield found_at(
                "AMP130",
                module,
                call,
                f"{name} is given what backward() returns, None: this raises ValueError, after unscaled gradients were "
                "computed",
                help="scale the loss, and call backward() on the result",
                fix=fixes.backward_of_scaled(module, call, argument),
            )
        elif isinstance(argument, ast.Constant) and isinstance(argument.value, int | float):
            yield found_at(
                "AMP130",
                module,
                call,
                f"{name} is given a number: this raises ValueError",
                help="scale() takes tensors; get_scale() gives the scale as a number",
            )
        elif (called := _called(module, argument)) is not None:
            yield found_at(
                "AMP130",
                module,
                call,
                f"{name} is given {text(module, argument)}, which computes losses and is none: this raises ValueError",
                evidence=[(module, called, "called here, as no tensor can be")],
                help="scale the loss that it returned",
            )
        elif isinstance(above, ast.Attribute) and above.value is call:
            yield from _result(module, call, argument, above)
        elif isinstance(above, ast.Assign | ast.Return) and _is_for_nothing(module, call):
            yield _scaled_log(module, call, argument, call, None, "where nothing is differentiated")
        elif isinstance(above, ast.Assign) and len(above.targets) == 1 and isinstance(above.targets[0], ast.Name):
            yield from _looked_at(module, argument, above, above.targets[0].id)
            yield from _handed_back(module, argument, above, above.targets[0].id)
    for call in _calls(module, scalers, "update"):
        if len(call.args) == 1 and isinstance(call.args[0], ast.Constant) and type(call.args[0].value) is int:
            yield found_at(
                "AMP130",
                module,
                call,
                "update() takes a float or a tensor: an int raises AttributeError",
                help=f"write {call.args[0].value}.0",
                fix=fixes.as_float(module, call.args[0]),
            )


def _called(module: Module, argument: ast.expr) -> ast.Call | None:
    """Where a function calls what it passes for a loss: the criterion, under a name that it gives nothing else."""
    function = module.function(argument)
    if not isinstance(argument, ast.Name) or function is None:
        return None
    names = uses_of(function, argument.id)
    if any(not isinstance(one.ctx, ast.Load) for one in names):
        return None
    calls = (module.parents[one] for one in names)
    return next((one for one in calls if isinstance(one, ast.Call) and one.func in names), None)


def _is_for_nothing(module: Module, call: ast.Call) -> bool:
    """Whether a loss is scaled where no backward can follow, and nothing there asks for the scale."""
    return without_gradients(module, call) and "get_scale" not in text(module, module.scope(call), 100_000)


def _result(module: Module, call: ast.Call, argument: ast.expr, method: ast.Attribute) -> Iterator[Finding]:
    """What is done with a scaled loss at once."""
    statement = module.statement(call)
    outer = module.parents[method]
    if method.attr == "backward" and isinstance(outer, ast.Call) and isinstance(statement, ast.Assign):
        if statement.value is not outer or not isinstance(statement.targets[0], ast.Name):
            return
        name = statement.targets[0].id
        read = _reads_after(module, statement, name)
        if read is None:
            return
        yield found_at(
            "AMP130",
            module,
            statement,
            f"backward() returns None, and {name} is used as a tensor afterwards",
            evidence=[(module, statement, f"{name} becomes None"), (module, read, "and is used here")],
            help="call backward() without assigning its result",
            fix=fixes.only_call(module, statement),
        )
    elif method.attr in _LOOKS and isinstance(outer, ast.Call) and not _unscales(module, outer):
        yield _scaled_log(module, call, argument, call, fixes.look_at(module, call, argument))


def _looked_at(module: Module, argument: ast.expr, assign: ast.Assign, name: str) -> Iterator[Finding]:
    """A scaled loss under a name, which is read as a number."""
    for read in _reads(module, assign, name):
        above = module.parents[read]
        outer = module.parents[above]
        number = isinstance(above, ast.Attribute) and above.attr in _LOOKS and isinstance(outer, ast.Call)
        listed = isinstance(above, ast.Call) and read in above.args and called_name(above) in _LISTS
        shown = "scale" not in name and _is_formatted(module, read)
        if (number and not _unscales(module, outer)) or (listed and not _is_kept(module, above)) or shown:
            original = argument if isinstance(argument, ast.Name) and argument.id != name else None
            fix = fixes.look_at(module, read, original) if original is not None else None
            yield _scaled_log(module, read, argument, assign, fix)


def _is_formatted(module: Module, read: ast.Name) -> bool:
    """Whether a number becomes text: in an f-string, by % or by format()."""
    above = module.parents[read]
    if isinstance(above, ast.Tuple):
        above = module.parents[above]
    match above:
        case ast.FormattedValue(value=value):
            return value is read
        case ast.BinOp(op=ast.Mod(), left=ast.Constant(value=str())):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str()), attr="format")):
            return True
    return False


def _handed_back(module: Module, argument: ast.expr, assign: ast.Assign, name: str) -> Iterator[Finding]:
    """A scaled loss that a function returns after its backward: whoever gets it can only read it as a number."""
    function = module.function(assign)
    if function is None:
        return
    reads = [
        node
        for node in walk(function)
        if isinstance(node, ast.Name)
        and node.id == name
        and node.lineno > (assign.end_lineno or 0)
        and not alternatives(module, assign, node)
    ]
    if any(isinstance(node.ctx, ast.Store) for node in reads):
        return
    backward = next((node for node in reads if _is_backward(module, node)), None)
    for read in reads:
        outer = module.parents[read]
        if isinstance(outer, ast.Tuple):
            outer = module.parents[outer]
        if isinstance(outer, ast.Return) and backward is not None and backward.lineno < read.lineno:
            yield _scaled_log(module, read, argument, assign, None, "returned here, after its backward")


def _is_backward(module: Module, node: ast.Name) -> bool:
    """Whether a loss is differentiated: `loss.backward()`, `self.run_backward(loss)`."""
    above = module.parents[node]
    if isinstance(above, ast.Call):
        return node in above.args and "backward" in called_name(above).lower()
    return isinstance(above, ast.Attribute) and above.attr == "backward"


def _is_kept(module: Module, call: ast.AST) -> bool:
    """Whether a list of scaled losses is there to be differentiated."""
    return called_name(call) == "append" and isinstance(call, ast.Call) and "loss" in module.source(call.func) and (
        "backward" in (text(module, module.scope(call), 100_000)).partition(module.source(call))[2]
    )  # fmt: skip


def _scaled_log(
    module: Module, node: ast.expr, argument: ast.expr, made: ast.AST, fix: object, what: str = "read as a number here"
) -> Finding:
    shown = text(module, argument)
    return found_at(
        "AMP130",
        module,
        node,
        "this number is multiplied by the loss scale (65536 at first): a loss of 2.5 reads 163840",
        severity=Severity.WARNING,
        evidence=[(module, made, "scaled here"), (module, node, what)],
        help="give the scaled loss a name of its own" if text(module, node) == shown else f"read {shown} instead",
        fix=fix,  # type: ignore[arg-type]
    )


def _unscales(module: Module, node: ast.AST) -> bool:
    """Whether what is read is divided by the scale."""
    return any(
        isinstance(above, ast.BinOp) and isinstance(above.op, ast.Div | ast.Mult) and "scale" in module.source(above)
        for above in (node, *module.ancestors(node))
        if isinstance(above, ast.expr)
    )


def _reads(module: Module, assign: ast.stmt, name: str) -> list[ast.Name]:
    """Where a name is read with the value that a statement gave it: behind it, before it is assigned again."""
    scope = module.scope(assign)
    names = uses_of(scope, name)
    place = (assign.end_lineno or assign.lineno, assign.end_col_offset or 0)
    stores = [
        place_of(n)
        for n in names
        if isinstance(n.ctx, ast.Store) and not _is_its_mean(module, n) and not alternatives(module, assign, n)
    ]
    next_store = min((one for one in stores if one > place), default=(1 << 30, 0))
    return sorted(
        (n for n in names if isinstance(n.ctx, ast.Load) and place <= place_of(n) < next_store
         and (not other_arm(module, assign, n) or _in_any_case(module, assign, n))),
        key=place_of,
    )  # fmt: skip


def _is_its_mean(module: Module, store: ast.Name) -> bool:
    """`loss = loss.mean()`: what was scaled still is."""
    match module.parents[store]:
        case ast.Assign(targets=[_], value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="mean" | "sum"))):
            return name == store.id
    return False


def _in_any_case(module: Module, one: ast.AST, other: ast.AST) -> bool:
    """Whether the second node runs after the first wherever that ran: no condition is asked on the way."""
    return not alternatives(module, one, other) and not own_condition(module, other, one)


def other_arm(module: Module, one: ast.AST, other: ast.AST) -> bool:
    """Whether the first node stands under a condition that the second does not stand under: it may not have run."""
    around = set(module.ancestors(other))
    for above in module.ancestors(one):
        if isinstance(above, FunctionNode):
            return False
        if isinstance(above, ast.If | ast.Try) and above not in around:
            return True
        if isinstance(above, ast.If) and above in around:
            arms = [next((a for a in (above.body, above.orelse) for s in a if s is n or n in walk(s)), None)
                    for n in (one, other)]  # fmt: skip
            if arms[0] is not arms[1]:
                return True
    return False


def _reads_after(module: Module, assign: ast.stmt, name: str) -> ast.Name | None:
    """The first use of a name as a tensor, or as a number, after a statement."""
    for read in _reads(module, assign, name):
        above = module.parents[read]
        if isinstance(above, ast.Attribute | ast.BinOp | ast.AugAssign | ast.FormattedValue | ast.Call):
            return read
    return None
