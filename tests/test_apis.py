"""rules/apis/*.toml: the schema, and torch's entries against the installed torch."""

from __future__ import annotations

import importlib
import inspect
import re
import tomllib
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from amplint.knowledge import apis, rules_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FILES = sorted((rules_folder() / "apis").glob("*.toml"))
RETURNS = {
    *("optimizer", "scaler", "callable-scaler", "autocast", "null-context", "no-grad", "enable-grad", "model", "same"),
    *("copy", "parameters", "tensor", "constant", "scheduler", "managed", "device", "checkpoint", "scaled-loss"),
}
DOES = {
    *("clip", "save", "load", "register", "launch", "backward", "step", "unscale", "update", "zero-grad", "exit"),
    "cast",
}
ROLES = {
    *("parameters", "optimizer", "loss", "model", "scaler", "device", "dtype", "enabled", "cache", "target", "args"),
    *("kwargs", "object", "path", "how", "delay"),
}
FIXED = {
    **dict.fromkeys(("device", "dtype", "how"), str),
    **dict.fromkeys(("enabled", "closure", "decorator", "unscales", "managed"), bool),
    "leading": int,
}


def entries() -> list[Any]:
    return [
        pytest.param(entry, id=f"{path.stem}-{entry['names'][0]}")
        for path in FILES
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["api"]
    ]


def parameters(entry: dict[str, Any]) -> list[str]:
    """The names in the signature, as a caller would give them."""
    parts = (part.strip() for part in entry.get("signature", "").split(","))
    return [part.lstrip("*") for part in parts if part not in ("", "*")]


@pytest.mark.parametrize("entry", entries())
def test_schema(entry: dict[str, Any]) -> None:
    assert set(entry) <= {"names", "signature", "returns", "does", "fixed", "note"} | ROLES
    assert entry["names"]
    assert all(re.fullmatch(r"[\w.*\[\]-]+", name) and name == name.strip(".") for name in entry["names"])
    assert "returns" in entry or "does" in entry
    assert entry.get("returns", "model") in RETURNS
    assert entry.get("does", "clip") in DOES
    names = parameters(entry)
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    for role in ROLES & set(entry):
        assert entry[role] == "self" or entry[role] in names, f"{role} names no parameter"
    for key, value in entry.get("fixed", {}).items():
        assert type(value) is FIXED[key]
        assert key not in entry, f"{key} is both fixed and a parameter"


@pytest.mark.parametrize(
    ("does", "needs"),
    [
        ("clip", {"parameters", "optimizer", "model"}),
        ("save", {"object", "optimizer"}),
        ("load", {"object", "optimizer"}),
        ("register", {"object"}),
        ("backward", {"loss"}),
        ("cast", {"model"}),
    ],
)
def test_what_acts_names_what_it_acts_on(does: str, needs: set[str]) -> None:
    acting = [entry for entry in apis() if entry.get("does") == does]
    assert acting
    assert [entry["names"] for entry in acting if not needs & set(entry)] == []


@pytest.mark.parametrize(
    ("returns", "needs"), [("optimizer", {"parameters"}), ("same", {"model", "object", "optimizer", "args"})]
)
def test_what_returns_something_names_where_it_comes_from(returns: str, needs: set[str]) -> None:
    returning = [entry for entry in apis() if entry.get("returns") == returns]
    assert returning
    assert [entry["names"] for entry in returning if not needs & set(entry)] == []


def test_names_are_unique() -> None:
    counts = Counter(name for entry in apis() for name in entry["names"])
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_pattern_is_hidden_by_an_earlier_one() -> None:
    patterns = [name for entry in apis() for name in entry["names"] if "*" in name]
    for place, pattern in enumerate(patterns):
        hiding = [earlier for earlier in patterns[:place] if fnmatchcase(pattern, earlier)]
        assert hiding == [], pattern


def test_the_bold_names_are_there() -> None:
    """What the rules lean on; a pattern does not count."""
    known = {name for entry in apis() for name in entry["names"]}
    for name in ("torch.autocast", "torch.amp.GradScaler", "torch.cuda.amp.autocast", "torch.nn.utils.clip_grad_norm_"):
        assert name in known
    for name in ("torch.optim.SGD", "torch.optim.AdamW", "torch.save", "torch.load", "torch.multiprocessing.spawn"):
        assert name in known
    for name in ("contextlib.nullcontext", "timm.utils.NativeScaler", "accelerate.Accelerator", "copy.deepcopy"):
        assert name in known


# -- torch's entries against torch ------------------------------------------------------------------------------------


def torch_names() -> list[tuple[str, dict[str, Any]]]:
    text = (rules_folder() / "apis" / "torch.toml").read_text(encoding="utf-8")
    found = [(name, entry) for entry in tomllib.loads(text)["api"] for name in entry["names"]]
    return [(name, entry) for name, entry in found if name.startswith("torch.") and "*" not in name]


def find(name: str) -> Any:
    """The object of a dotted name: from the longest part of it that is a module."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            target = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            target = getattr(target, part, None)
        return target
    return None


@pytest.mark.parametrize(("name", "entry"), torch_names(), ids=lambda value: value if isinstance(value, str) else "")
def test_torch_has_it_with_this_signature(name: str, entry: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    target = find(name)
    if name.startswith(("torch.npu.", "torch.mlu.", "torch.musa.")):
        pytest.skip("a backend of its own")
    assert target is not None, "no such name in torch"
    if "signature" not in entry:
        return
    try:
        actual = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        pytest.skip("not inspectable")
    if actual and actual[0].name == "self":
        actual = actual[1:]
    positional = [parameter.name for parameter in actual if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    keyword = {parameter.name for parameter in actual if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    ours, _, ours_keyword = entry["signature"].partition("*,")
    ours_positional = [part.strip() for part in ours.split(",") if part.strip()]
    assert ours_positional == positional[: len(ours_positional)]
    assert {part.strip() for part in ours_keyword.split(",") if part.strip()} <= keyword


def test_every_optimizer_and_scheduler_of_torch_is_known() -> None:
    torch = pytest.importorskip("torch")
    known = {name: entry for entry in apis() for name in entry["names"]}
    for name, cls in vars(torch.optim).items():
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer):
            assert known[f"torch.optim.{name}"]["returns"] == "optimizer"
            if not cls.__module__.endswith(f"_{name.lower()}") and cls.__module__ != "torch.optim":
                assert known[f"{cls.__module__}.{name}"]["returns"] == "optimizer"
    schedulers = known["torch.optim.lr_scheduler.*"]
    assert schedulers["returns"] == "scheduler"
    for cls in vars(torch.optim.lr_scheduler).values():
        if inspect.isclass(cls) and issubclass(cls, torch.optim.lr_scheduler.LRScheduler):
            assert next(iter(inspect.signature(cls).parameters)) in ("optimizer", "schedulers")


def test_every_file_is_read() -> None:
    assert {path.name for path in FILES} >= {Path(name).name for name in ("torch.toml", "python.toml", "timm.toml")}
    assert len(apis()) == sum(len(tomllib.loads(path.read_text(encoding="utf-8"))["api"]) for path in FILES)
