"""AMP222: an option for mixed precision that a script defines and then forgets to hand on."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.options import Option, names_amp, options_of
from amplint.checks.autocast.switches import switches
from amplint.checks.registry import Script, found_at, rule
from amplint.findings import Finding, Severity
from amplint.source.module import Module
from amplint.source.tree import defaults, positional
from amplint.source.walk import walk

_SHOWS = frozenset("print pprint str repr info debug warning format".split())  # what only shows the options it is given


@rule("AMP222")
def option_that_reaches_nothing(script: Script) -> Iterator[Finding]:
    """`--amp` is read nowhere, and the function that would heed it is called without: its own `amp=False` decides."""
    module = script.module
    if "add_argument" not in module.text or "parse_args" not in module.text:
        return
    unread = [(name, option) for name, option in options_of(module).items() if _is_unread(module, name, option)]
    if len(unread) != 1:
        return
    field, option = unread[0]
    for function, parameter in _switched(module):
        for call in module.nodes(ast.Call):
            if isinstance(call.func, ast.Name) and call.func.id == function.name and _leaves(call, function, parameter):
                yield found_at(
                    "AMP222",
                    module,
                    call,
                    f"{option.flag} does not get here: {parameter} of {function.name} stays False",
                    severity=Severity.WARNING,
                    evidence=[(module, option.node, f"nothing reads {option.flag}")],
                    help=f"pass {parameter}=args.{field}",
                )


def _is_unread(module: Module, field: str, option: Option) -> bool:
    """Whether an option is about mixed precision and nothing reads it, nor takes all options out of sight."""
    if not names_amp(option.flag) or option.kind == "other":
        return False
    own = {function.name for function in module.defs}
    everything = _namespaces(module)
    told = {option.node, *option.node.keywords}
    for node in module.all_nodes:
        match node:
            case ast.Attribute(attr=name) if name == field and not module.dotted(node):
                return False
            case ast.Constant(value=str() as name) if name == field and not told & {node, module.parents[node]}:
                return False
            case ast.Name(id=name, ctx=ast.Load()) if name in everything and not _stays(module, node, own):
                return False
    return True


def _namespaces(module: Module) -> set[str]:
    """What the parsed options are called here, and in the functions that are handed them."""
    found = {"args"}
    for node in module.nodes(ast.Assign):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Attribute(attr="parse_args"))):
                found.add(name)
    return found


def _stays(module: Module, name: ast.Name, own: set[str]) -> bool:
    """Whether a use of all options hands on none of them unseen: `args.lr`, `main(args)`, `print(args)`."""
    match module.parents[name]:
        case ast.Attribute() | ast.Return() | ast.FormattedValue():
            return True
        case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)):
            return called in own or called in _SHOWS
    return False


def _switched(module: Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions with a parameter that switches mixed precision and is False unless it is given."""
    found = set()
    for test in switches(module, branches=True):
        function = module.function(test)
        if not isinstance(function, ast.FunctionDef):
            continue
        off = {name for name, value in defaults(function.args) if getattr(value, "value", None) is False}
        found |= {(function, one.id) for one in walk(test) if isinstance(one, ast.Name) and one.id in off}
    yield from sorted(found, key=lambda one: (one[0].lineno, one[1]))


def _leaves(call: ast.Call, function: ast.FunctionDef, parameter: str) -> bool:
    """Whether a call gives a parameter nothing."""
    places = positional(function)
    given = {*places[: len(call.args)], *(keyword.arg for keyword in call.keywords)}
    return parameter not in given and None not in given and not any(isinstance(one, ast.Starred) for one in call.args)
