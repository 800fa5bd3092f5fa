"""How long a region lasts: objects entered twice, generators, coroutines, and regions entered by hand."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import entered, enters_autocast, is_autocast
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, last_name, named_argument
from amplint.source.values import Region
from amplint.source.walk import walk

_PAIRS = ("contextmanager", "fixture", "hook")  # decorators for generators that are made to yield in a region


@rule("AMP204")
def entered_again(script: Script) -> Iterator[Finding]:
    """One autocast object is entered while it is entered: leaving it restores what the inner entry saw."""
    for enter in script.events(events.Enter):
        made = enter.entered.autocast
        if made.node is None or not isinstance(enter.node, ast.Name | ast.Attribute):
            continue
        outer = next(
            (one for one in enter.contexts if isinstance(one, Region) and one.autocast.node is made.node), None
        )
        if outer is None or outer.node is enter.entered.node or outer.autocast != made:
            continue
        yield found(
            "AMP204",
            enter,
            f"{text(enter.module, enter.node)} is entered already: when the outer region ends, autocast stays on",
            evidence=[(entered(script, outer), "entered here first"), (enter, "and again")],
            help="make an autocast object for each region",
            fix=fixes.construct_again(enter.module, enter.node, made.node),
        )
    for function, decorator in _decorated(script.module):
        call = next((node for node in _own(function) if _calls_itself(script.module, function, node)), None)
        if call is not None:
            yield found_at(
                "AMP204",
                script.module,
                decorator,
                f"{function.name} calls itself: every call enters this one autocast object again, and in the end "
                "autocast stays on",
                evidence=[(script.module, call, "it calls itself")],
                help="enter autocast in a function around it",
                fix=fixes.region_of_body(script.module, function, decorator),
            )


def _decorated(module: Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.expr]]:
    """Functions under @torch.autocast(…) that is not switched off."""
    if "autocast" not in module.text:
        return
    for node in module.defs:
        for decorator in node.decorator_list:
            made = isinstance(decorator, ast.Call) and is_autocast(module, decorator.func)
            if made and enters_autocast(module, decorator):
                yield node, decorator


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body, without those of functions inside."""
    pending = list(getattr(function, "body", []))
    while pending:
        node = pending.pop(0)
        yield node
        if not isinstance(node, FunctionNode | ast.ClassDef):
            pending += ast.iter_child_nodes(node)


def _calls_itself(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, node: ast.AST) -> bool:
    method = isinstance(module.parents[function], ast.ClassDef)
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return not method and name == function.name
        case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id="self" | "cls"))):
            return method and name == function.name
    return False


@rule("AMP205")
def decorated_generator(script: Script) -> Iterator[Finding]:
    """autocast as the decorator of a generator or coroutine: its body runs later, outside."""
    for function, decorator in _decorated(script.module):
        yields = next((node for node in _own(function) if isinstance(node, ast.Yield | ast.YieldFrom)), None)
        if yields is None and not isinstance(function, ast.AsyncFunctionDef):
            continue
        kind = "a generator" if yields is not None else "a coroutine"
        waits = any(isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for node in _own(function))
        yield found_at(
            "AMP205",
            script.module,
            decorator,
            f"{function.name} is {kind}: calling it in autocast only makes it, its body runs later, without autocast",
            help="enter autocast in its body" + (", and leave it before each yield" if yields is not None else ""),
            fix=None if yields is not None or waits else fixes.region_of_body(script.module, function, decorator),
        )


@rule("AMP206")
def yield_in_region(script: Script) -> Iterator[Finding]:
    """A generator yields inside an autocast region: whoever asked for the value runs in it."""
    module = script.module
    if "autocast" not in module.text:
        return
    for node in (*module.nodes(ast.Yield), *module.nodes(ast.YieldFrom)):
        around: ast.With | ast.AsyncWith | None = None
        function: ast.AST | None = None
        for above in module.ancestors(node):
            if isinstance(above, FunctionNode):
                function = above
                break
            if around is None and isinstance(above, ast.With):
                entered = any(enters_autocast(module, item.context_expr) for item in above.items)
                around = above if entered else None
        if around is None or not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) or _is_pair(function):
            continue
        yield found_at(
            "AMP206",
            module,
            node,
            "the region stays open while the generator waits: whoever asked for this value runs in autocast",
            severity=Severity.NOTE if _is_numpy(function, node) else None,
            evidence=[(module, around.items[0].context_expr, "in this region")],
            help="leave the region before the yield",
        )


def _is_numpy(function: ast.AST, node: ast.AST) -> bool:
    """Whether all that is handed out are NumPy arrays: who takes them computes nothing that autocast would cast."""
    value = getattr(node, "value", None)
    values = value.elts if isinstance(value, ast.Tuple) else [value]
    arrays = {
        last_name(one.targets[0])
        for one in walk(function)
        if isinstance(one, ast.Assign) and isinstance(one.value, ast.Call) and called_name(one.value) == "numpy"
    }
    return all(
        any((isinstance(one, ast.Name) and one.id in arrays) or _calls_numpy(one) for one in walk(value))
        for value in values
        if value is not None
    )


def _calls_numpy(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and called_name(node) == "numpy"


def _is_pair(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a generator is half of a context manager, a fixture, a hook: made to yield where something is open."""
    return any(word in ast.unparse(decorator).lower() for decorator in function.decorator_list for word in _PAIRS)


# -- tracing ----------------------------------------------------------------------------------------------------------

_TRACES = {
    "torch.jit.trace": "RuntimeError: Cannot insert a Tensor that requires grad as a constant",
    "torch.jit.trace_module": "RuntimeError: Cannot insert a Tensor that requires grad as a constant",
    "torch.cuda.make_graphed_callables": "RuntimeError: it does not support autocast's cache",
}


# Signs that weights are half already, or need no gradient: those are not cached.
_UNCACHED = (".half()", ".bfloat16()", "ipex", "torch_dtype", "requires_grad_(False)", "requires_grad = False")


@rule("AMP218")
def traced_in_region(script: Script) -> Iterator[Finding]:
    """A model is traced in a region that keeps cast copies of its weights."""
    module = script.module
    if "autocast" not in module.text or any(word in module.text for word in _UNCACHED):
        return
    for node in module.all_nodes:
        if not isinstance(node, ast.Call):
            continue
        raised = next((_TRACES[name] for name in module.dotted(node.func) if name in _TRACES), None)
        if raised is None:
            continue
        region = next((one for one in _contexts(module, node) if enters_autocast(module, one)), None)
        if not isinstance(region, ast.Call) or not is_autocast(module, region.func):
            continue
        if any(keyword.arg in ("cache_enabled", None) for keyword in region.keywords):
            continue
        if _for_cuda(module, region) and any(_made_on_the_cpu(module, one) for one in node.args[1:2]):
            continue
        yield found_at(
            "AMP218",
            module,
            node,
            f"tracing in a region that caches cast weights fails ({raised})",
            evidence=[(module, region, "in this region")],
            help="cache_enabled=False",
            fix=fixes.without_cache(module, region),
        )


def _for_cuda(module: Module, region: ast.Call) -> bool:
    """Whether a region is CUDA's, which leaves alone what is computed on the CPU."""
    first = region.args[0] if region.args else named_argument(region, "device_type")
    named = isinstance(first, ast.Constant) and str(first.value).startswith("cuda")
    return named or any(name.startswith("torch.cuda.") for name in module.dotted(region.func))


def _made_on_the_cpu(module: Module, example: ast.expr) -> bool:
    """Whether an example input is made here, without a device: so the model is on the CPU, too."""
    if not isinstance(example, ast.Call) or not module.dotted(example.func) & _MAKERS:
        return False
    return named_argument(example, "device") is None and "set_default" not in module.text


_MAKERS = frozenset(f"torch.{name}" for name in ("rand", "randn", "zeros", "ones", "empty", "randint", "tensor"))


def _contexts(module: Module, node: ast.AST) -> list[ast.expr]:
    """What is entered around a node in its function, innermost first."""
    found: list[ast.expr] = []
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            break
        if isinstance(above, ast.With):
            found += [item.context_expr for item in reversed(above.items)]
    return found


# -- by hand ----------------------------------------------------------------------------------------------------------


@rule("AMP220")
def entered_by_hand(script: Script) -> Iterator[Finding]:
    """__enter__ and __exit__ are called without try/finally: an exception in between leaves autocast on."""
    module = script.module
    if "__enter__" not in module.text:
        return
    for node in module.all_nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="__enter__", value=entered)) if _is_region(module, entered):
                pass
            case _:
                continue
        function = module.function(node)
        if function is not None and getattr(function, "name", "") in ("__enter__", "__aenter__"):
            continue
        left = [exit for exit in _exits(module, entered) if module.function(exit) is function]
        if any(_in_finally(module, one) for one in left):
            continue
        if not left and function is not None and list(_exits(module, entered)):
            continue  # another function leaves it
        yield found_at(
            "AMP220",
            module,
            node,
            "autocast is entered by hand: an exception before __exit__ leaves it on"
            if left
            else "autocast is entered by hand and never left: all that follows in this thread runs in it",
            severity=None if left or getattr(function, "name", "main") != "main" else Severity.NOTE,  # a script's all
            evidence=[(module, one, "left here, if nothing is raised before") for one in left[:1]],
            help="use `with`, or try/finally",
        )


def _is_region(module: Module, node: ast.expr) -> bool:
    """Whether what is entered is an autocast: made here, or by the name of its variable."""
    match node:
        case ast.Call():
            return enters_autocast(module, node)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            if "autocast" in name.lower():
                return True
            return any(
                isinstance(one, ast.Assign)
                and any(ast.unparse(target) == ast.unparse(node) for target in one.targets)
                and enters_autocast(module, one.value)
                for one in module.all_nodes
            )
    return False


def _exits(module: Module, entered: ast.expr) -> Iterator[ast.Call]:
    name = ast.unparse(entered)
    for node in module.all_nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="__exit__", value=left)) if ast.unparse(left) == name:
                yield node


def _in_finally(module: Module, node: ast.AST) -> bool:
    inside = node
    for above in module.ancestors(node):
        if isinstance(above, ast.Try) and inside in above.finalbody:
            return True
        inside = above
    return False
