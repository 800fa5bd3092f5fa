"""Family 6, migration: arguments that only the other API of the same name takes."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import bound_again
from amplint.checks.migration.renamed import is_flag
from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Fix
from amplint.rewrite.fixes import migration as fixes
from amplint.source.module import Module

_CAST = {"enabled", "dtype", "cache_enabled"}
_SCALE = {"init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled"}
# What each takes by name, in any version of PyTorch.
_TAKES = {
    **{f"torch.{name}": {"device_type", *_CAST} for name in ("autocast", "amp.autocast", "amp.autocast_mode.autocast")},
    **{f"torch.{name}": {"device", *_SCALE} for name in ("GradScaler", "amp.GradScaler", "amp.grad_scaler.GradScaler")},
    **{f"torch.{name}.autocast": _CAST for name in ("cuda.amp", "cuda.amp.autocast_mode", "cpu.amp")},
    **{f"torch.{name}.GradScaler": _SCALE for name in ("cuda.amp", "cuda.amp.grad_scaler", "cpu.amp")},
}


@rule("AMP602")
def argument_of_the_other_api(script: Script) -> Iterator[Finding]:
    """A keyword that this constructor does not have, or a device in the place of the old scaler's init_scale."""
    module = script.module
    for call in module.nodes(ast.Call):
        names = module.dotted(call.func)
        if not names or not names <= _TAKES.keys() or bound_again(module, call.func):
            continue
        takes: set[str] = set().union(*(_TAKES[name] for name in names))
        wrong = next((one.arg for one in call.keywords if one.arg and one.arg not in takes), None)
        if any(isinstance(above, ast.Try) and _for_any_torch(module, above) for above in module.ancestors(call)):
            continue
        name = min(names)
        if wrong == "device" and "device_type" in takes:
            continue  # AMP207: device_type is missing
        if wrong is not None:
            yield found_at(
                "AMP602",
                module,
                call,
                f"{name} takes no {wrong}: TypeError",
                help=_help(name, wrong),
                fix=fixes.device_of_the_new_scaler(module, call)
                if wrong == "device_type" and "device" in takes
                else None,
            )
        elif _named_device(call) and takes == _SCALE:
            yield found_at(
                "AMP602",
                module,
                call,
                f"the first argument of {name} is init_scale, not the device: {text(module, call.args[0])} raises "
                "TypeError when the first loss is scaled",
                help=_help(name, "device"),
            )
        elif _named_device(call) and takes == _CAST and any(one.arg == "enabled" for one in call.keywords):
            yield found_at(
                "AMP602",
                module,
                call,
                f"the first argument of {name} is enabled, not the device, and it is given twice: TypeError",
                help=_help(name, "device"),
            )


def _for_any_torch(module: Module, attempt: ast.Try) -> bool:
    """Whether a call is tried to see which torch it is."""
    caught = [module.source(handler.type) if handler.type else "" for handler in attempt.handlers]
    return any("TypeError" in one or (one in ("", "Exception") and len(attempt.body) == 1) for one in caught)


def _help(name: str, wrong: str) -> str:
    if wrong not in ("device", "device_type"):
        return f"it takes {', '.join(sorted(_TAKES[name]))}"
    return f'torch.amp.{name.rpartition(".")[2]}("cuda", …) takes the device'


def _named_device(call: ast.Call) -> bool:
    return bool(call.args) and isinstance(call.args[0], ast.Constant) and isinstance(call.args[0].value, str)


@rule("AMP602")
def flag_for_the_first_scale(script: Script) -> Iterator[Finding]:
    """A switch is passed where a GradScaler takes its first scale: the scale is then 1, or 0."""
    module = script.module
    for call in module.nodes(ast.Call):
        first = _first_scale(module, call)
        if first is None or not (_is_bool(first) or is_flag(module, first)):
            continue
        flag = text(module, first)
        yield found_at(
            "AMP602",
            module,
            call,
            f"{flag} is passed as init_scale here, not as enabled: the loss is multiplied by 1 where it is True, and "
            "by 0 where it is False, which makes the weights nan",
            help=f"write enabled={flag}",
            fix=_enabled_by(module, call, first),
        )


def _enabled_by(module: Module, call: ast.Call, first: ast.expr) -> Fix | None:
    """The switch as `enabled`, where nothing else is, and no argument follows it by its position."""
    if any(one.arg in (None, "enabled") for one in call.keywords):
        return None
    named = next((one for one in call.keywords if one.value is first), None)
    if named is not None:
        return fixes.rename_argument(module, call, "init_scale", "enabled")
    return fixes.name_arguments(module, call, {call.args.index(first): "enabled"}) if call.args[-1] is first else None


def _first_scale(module: Module, call: ast.Call) -> ast.expr | None:
    """What a GradScaler of torch is given for init_scale: by its name, or by its position, the first under the old
    names, which have no device, else the second."""
    names = module.dotted(call.func)
    if not names or not names <= _TAKES.keys() or any(not one.endswith("GradScaler") for one in names):
        return None
    if bound_again(module, call.func):
        return None
    named = next((one.value for one in call.keywords if one.arg == "init_scale"), None)
    if named is not None:
        return named
    place = 0 if all(one.startswith(("torch.cuda.", "torch.cpu.")) for one in names) else 1
    return call.args[place] if len(call.args) > place else None


def _is_bool(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)
