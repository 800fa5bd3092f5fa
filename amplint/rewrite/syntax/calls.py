"""Edits of calls and signatures, made on the LibCST nodes of the one call or signature: comments and layout stay."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amplint.findings import Edit
from amplint.rewrite.syntax import commas
from amplint.rewrite.syntax.expressions import frame_of, replace
from amplint.rewrite.syntax.layout import end, start
from amplint.rewrite.syntax.text import CannotEdit, changed, plain
from amplint.source.module import Module, Unreadable, parse
from amplint.source.tree import parameters

if TYPE_CHECKING:
    import libcst as cst

# -- calls and signatures ---------------------------------------------------------------------------------------------


def change_call(
    module: Module,
    call: ast.Call,
    *,
    func: str | None = None,
    keywords_for_positional: Mapping[int, str] | None = None,
    add_positional_first: Sequence[str] = (),
    add_keywords: Mapping[str, str] | None = None,
    remove: Collection[int | str] = (),
) -> list[Edit]:
    """Change a call's function and arguments; what is not named keeps its text, its comments and its place.

    Arguments are known by their index in the call as it is, or by their name. `keywords_for_positional` gives names
    to arguments that have none; `add_keywords` go last, but before `**`.
    """
    names, added = keywords_for_positional or {}, add_keywords or {}
    tree, old = _parsed_call(module, call)
    keys = _argument_keys(tree)
    _check_arguments(keys, {*names, *remove}, [*names.values(), *added], remove)

    slots = commas.split(tree.whitespace_before_args, tree.args)
    gone = [slots[index].node for index, key in enumerate(keys, 1) if key in remove]
    for index, key in enumerate(keys, 1):
        new = slots[index].node
        if key in remove or key is None:
            continue
        if isinstance(key, int) and key in names:
            new = _argument(f"{names[key]}=_").with_changes(value=new.value)
        slots[index] = slots[index]._replace(node=new)
    for text in reversed(add_positional_first):
        slots = commas.insert(slots, 1, _argument(text))
    for name, text in added.items():
        slots = commas.insert(slots, _keyword_place(slots), _argument(f"{name}={text}"))
    for node in gone:
        slots = commas.remove(slots, next(index for index, slot in enumerate(slots) if slot.node is node))
    edits = replace(module, call.func, func) if func is not None else []
    return edits + _rewritten_call(module, call, tree, old, slots)


def add_argument(module: Module, call: ast.Call, text: str) -> list[Edit]:
    """Add an argument: a positional one ("scaler") behind the last of its kind, a named one ("scaler=scaler") last but
    before `**`."""
    tree, old = _parsed_call(module, call)
    slots = commas.split(tree.whitespace_before_args, tree.args)
    argument = _argument(text)
    if argument.keyword is not None:
        _check_arguments(_argument_keys(tree), set(), [argument.keyword.value], ())
        place = _keyword_place(slots)
    elif any(slot.node.star == "*" for slot in slots[1:]):
        raise CannotEdit("a `*` argument hides how many positional arguments the call has")
    else:
        place = next((i for i, slot in enumerate(slots) if i and (slot.node.keyword or slot.node.star)), len(slots))
    return _rewritten_call(module, call, tree, old, commas.insert(slots, place, argument))


def takes_keyword_only(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True if a parameter that add_parameter adds is keyword-only: behind defaults, `*` or before `**`, where a
    positional one could not stand or would be overlooked."""
    arguments = function.args
    return bool(arguments.defaults or arguments.vararg or arguments.kwonlyargs or arguments.kwarg)


def add_parameter(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> list[Edit]:
    """Add a last parameter: positional, or keyword-only where takes_keyword_only says so. `text` is its name, and may
    carry an annotation and a default."""
    import libcst as cst

    begin = module.offset(module.range(function).start)
    old = plain(module, begin, start(module, function.body[0]))
    tree = commas.parsed(lambda: cst.parse_module(old + "pass\n"))
    if commas.code(tree) != old + "pass\n":
        raise CannotEdit("LibCST does not give the signature back as it is")
    sample = commas.parsed(lambda: cst.parse_module(f"def f({text}): pass\n")).body[0].params
    if len(sample.params) != 1 or sample.star_arg != cst.MaybeSentinel.DEFAULT or sample.star_kwarg:
        raise CannotEdit(f"{text!r} is not a parameter")
    new = sample.params[0]
    if new.name.value in parameters(function):
        raise CannotEdit(f"the function has a parameter {new.name.value} already")

    definition = tree.body[0]
    every = [
        part for part in _parameters(definition.params) if isinstance(part, (cst.Param, cst.ParamStar, cst.ParamSlash))
    ]
    slots = commas.split(definition.whitespace_before_params, every)
    place = len(slots) - bool(function.args.kwarg)
    if takes_keyword_only(function) and not (function.args.vararg or function.args.kwonlyargs):
        slots = commas.insert(slots, place, cst.ParamStar())
        place += 1
    slots = commas.insert(slots, place, new)
    changes = {"params": _signature(commas.join(slots)), "whitespace_before_params": slots[0].gap}
    code = commas.code(tree.with_changes(body=[definition.with_changes(**changes)]))
    return _checked(module, begin, old, code.removesuffix("pass\n"), "pass")


def _parameters(params: cst.Parameters) -> list[Any]:
    """The parameters in the order of the text, with what stands in where there is no `/`, `*` or `**`."""
    before = [*params.posonly_params, params.posonly_ind, *params.params, params.star_arg]
    return [*before, *params.kwonly_params, params.star_kwarg]


def _signature(nodes: Iterable[Any]) -> cst.Parameters:
    """The parameters that `nodes`, in the order of the text, make."""
    import libcst as cst

    parts: dict[str, Any] = {"params": []}
    target = parts["params"]
    for node in nodes:
        if isinstance(node, cst.ParamSlash):
            parts.update(posonly_params=target, posonly_ind=node, params=[])
            target = parts["params"]
        elif isinstance(node, cst.ParamStar) or node.star == "*":
            target = []
            parts.update(star_arg=node, kwonly_params=target)
        elif node.star == "**":
            parts["star_kwarg"] = node
        else:
            target.append(node)
    return cst.Parameters(**parts)


# -- arguments on LibCST nodes ----------------------------------------------------------------------------------------


def _parsed_call(module: Module, call: ast.Call) -> tuple[Any, str]:
    """The call as a LibCST node, in parentheses that allow line breaks anywhere, and its text."""
    import libcst as cst

    frame_of(module, call)  # refuses f-strings
    old = plain(module, start(module, call), end(module, call))
    tree = commas.parsed(lambda: cst.parse_expression(f"({old})"))
    if not isinstance(tree, cst.Call) or commas.code(tree) != f"({old})":
        raise CannotEdit("LibCST does not give the call back as it is")
    return tree, old


def _argument(text: str) -> Any:
    """One argument of a call: "x", "k=x", "*x"."""
    import libcst as cst

    call = commas.parsed(lambda: cst.parse_expression(f"f({text})"))
    if not isinstance(call, cst.Call) or len(call.args) != 1:
        raise CannotEdit(f"{text!r} is not an argument")
    return call.args[0]


def _argument_keys(tree: Any) -> list[int | str | None]:
    """What each argument is known by: a positional one by its index, a named one by its name; `*`, `**` and the
    positional ones behind a `*` by None."""
    keys: list[int | str | None] = []
    for index, arg in enumerate(tree.args):
        if arg.keyword is not None:
            keys.append(arg.keyword.value)
        else:
            keys.append(None if any(before.star for before in tree.args[: index + 1]) else index)
    return keys


def _check_arguments(
    keys: Sequence[int | str | None], named: set[int | str], added: Sequence[str], removed: Collection[int | str]
) -> None:
    """Raise CannotEdit if an argument to change is not there, or one to add is there already."""
    if missing := named - {*keys}:
        raise CannotEdit(f"the call has no argument {min(map(str, missing))} that can be told apart")
    taken = [key for key in keys if key not in removed] + list(added)
    if twice := {name for name in added if taken.count(name) > 1}:
        raise CannotEdit(f"the call has an argument {min(twice)} already")


def _keyword_place(slots: Sequence[commas.Slot]) -> int:
    return next((index for index, slot in enumerate(slots) if index and slot.node.star == "**"), len(slots))


def _rewritten_call(module: Module, call: ast.Call, tree: Any, old: str, slots: list[commas.Slot]) -> list[Edit]:
    """The edits that give the call the arguments in `slots`."""
    alone = len(slots) == 2
    slots = [slots[0], *(slot._replace(node=_protected(slot.node, alone)) for slot in slots[1:])]
    changes = {"args": commas.join(slots), "whitespace_before_args": slots[0].gap}
    new = commas.code(commas.parsed(lambda: tree.with_changes(**changes)))
    return _checked(module, start(module, call), old, new[1:-1], "")


def _protected(arg: Any, alone: bool) -> Any:
    """The argument, in parentheses where it can do without them only as the only one, or only without a name."""
    import libcst as cst

    needy: tuple[type, ...] = () if alone and not arg.keyword else (cst.GeneratorExp,)
    needy += (cst.NamedExpr,) if arg.keyword else ()
    value = arg.value
    if type(value) not in needy or value.lpar:
        return arg
    return arg.with_changes(value=value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]))


def _checked(module: Module, begin: int, old: str, new: str, tail: str) -> list[Edit]:
    """The edits from `old` at offset `begin` to `new`, which must parse."""
    try:
        parse(new + tail if tail else f"({new}\n)")
    except Unreadable as error:
        raise CannotEdit(f"the arguments do not go together: {error.reason}") from None
    return changed(module, begin, old, new)
