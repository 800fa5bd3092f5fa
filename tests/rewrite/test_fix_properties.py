"""What every fix keeps, on many sources in many styles.

A fixed file parses and is a fixed point, its bytes outside the edits are those it had, the finding that the fix was for
is gone, and no name in it is unused or undefined that was not so before.
"""

from __future__ import annotations

import ast
import io
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyflakes import api, reporter

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability, Finding, Severity
from amplint.knowledge import rules
from amplint.repair import repair
from amplint.report.json import render
from amplint.rewrite import instrument
from amplint.rewrite.mend import only_shown
from amplint.rewrite.syntax.apply import apply_changes, changes, compatible, fixable
from amplint.selection import default_codes
from amplint.source.module import Module
from tests.rewrite.styles import LAST, OTHERS, STYLES, styled

HERE = Path(__file__).parent
FIXTURES = HERE.parents[1] / "fixtures"
ALLOWED = (Applicability.SAFE, Applicability.UNSAFE)


def _examples() -> dict[str, str]:
    found = {}
    for code, rule in rules().items():
        if rule.depth == "trace":
            continue
        for number, (kind, text) in enumerate(rule.examples()):
            if kind in ("bad", "good"):
                found[f"{code}-{kind}-{number}"] = re.sub(r"  # !$", "", text, flags=re.MULTILINE)
    return found


def _scripts() -> dict[str, str]:
    """Scripts to convert: those of the case files, and the fixtures."""
    found = {}
    for path in sorted((HERE / "cases").glob("*.case")):
        text = path.read_text(encoding="utf-8").partition("# output\n")[0]
        found[path.stem] = re.sub(r"\A# options: .*\n", "", text)
    for path in sorted(FIXTURES.glob("train*.py")):
        found[path.stem] = path.read_text(encoding="utf-8")
    return found


EXAMPLES = {name: text for name, text in _examples().items() if not name.startswith("AMP902")}
SCRIPTS = _scripts()
BAD = {name: text for name, text in EXAMPLES.items() if "-bad-" in name}


# -- what is asserted -------------------------------------------------------------------------------------------------


def flakes(text: str) -> set[str]:
    out = io.StringIO()
    api.check(text.lstrip("\ufeff"), "train.py", reporter.Reporter(out, out))
    return {re.sub(r"^train.py:\d+:\d+:? ", "", line) for line in out.getvalue().splitlines()}


def no_new_names(before: str, after: str) -> None:
    new = flakes(after) - flakes(before)
    assert not [message for message in new if re.search("unused|undefined|redefin", message)]


def statements(text: str) -> Counter[str]:
    """The simple statements, without their places."""
    tree = ast.parse(text)
    return Counter(
        ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.stmt) and not hasattr(node, "body")
    )


def find(module: Module, codes: frozenset[str]) -> tuple[Finding, ...]:
    found = checks.check_module(module, Settings(codes=codes, notes=codes)).findings
    return tuple(sorted((one for one in found if one.code in codes), key=lambda one: one.range))


def outside(text: str, result: str, module: Module, findings: list[Finding]) -> None:
    """One round: what lies between the edits is untouched, and they do not overlap."""
    chosen, ordered = compatible(text, [one.fix for one in findings if one.fix])
    for fix in chosen:
        own = changes(text, fix.edits)
        assert own == sorted(own)
        assert all(one.end <= other.start for one, other in pairwise(own))
    position, done = 0, 0
    for start, end, new in ordered:
        kept = text[done:start]
        assert result[position : position + len(kept)] == kept
        position += len(kept)
        assert result[position : position + len(new)] == new
        position, done = position + len(new), end
    assert result[position:] == text[done:]


def check_fixes(module: Module, codes: frozenset[str]) -> None:
    """Fix what `codes` find, and assert what every fix keeps."""
    findings = find(module, codes)
    wanted = [one for one in findings if fixable(one, ALLOWED)]
    repaired = repair(module, findings, lambda after: find(after, codes), ALLOWED)
    text = repaired.module.text
    ast.parse(text)
    assert repair(repaired.module, repaired.findings, lambda after: find(after, codes), ALLOWED).module.text == text
    no_new_names(module.text, text)
    chosen, ordered = compatible(module.text, [one.fix for one in wanted if one.fix])
    if chosen:
        outside(module.text, apply_changes(module.text, ordered), module, wanted)
    if module.newline != "\n":
        assert re.sub(r"\r\n|\r", "\n", text).count("\n") == text.count(module.newline)
    left = Counter(one.code for one in repaired.findings)
    had = Counter(one.code for one in findings)
    for one in repaired.fixed:
        assert left[one.code] < max(had[one.code], 1), one.message


def check_conversion(module: Module, dtype: str = "float16") -> str:
    """Convert, and assert what every conversion keeps; returns the new text."""
    options = {"dtype": dtype, "select": None}
    wanted = Settings(codes=default_codes())
    result = instrument.fix(module, wanted, options)
    after = Module.read("train.py", result.text.encode(module.encoding))
    again = instrument.fix(after, wanted, options)
    assert again.text == result.text
    assert not any("converted" in line for line in again.lines)
    no_new_names(module.text, result.text)
    gone = statements(module.text) - statements(result.text)
    assert gone.total() <= 5 + 3 * max(1, len(re.findall(r"\.step\(\)", module.text)))  # loss, backward, step; sigmoids
    said = {f"({one.code})" for one in find(after, default_codes()) if f"({one.code})" in " ".join(result.lines)}
    loud = [one for one in find(after, default_codes()) if one.severity is not Severity.NOTE]
    left = Counter(one.code for one in loud if not only_shown(after, one) and f"({one.code})" not in said)
    assert not left - Counter(one.code for one in find(module, default_codes()))
    return result.text


# -- tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_fixed(name: str) -> None:
    module = styled(EXAMPLES[name], "plain")
    assert module is not None
    check_fixes(module, frozenset((name.partition("-")[0],)))


@pytest.mark.parametrize("style", OTHERS)
def test_examples_are_fixed_in_every_style(style: str) -> None:
    """A sample of the examples here; all of them, in two styles at once, in the slow test."""
    for number, (name, text) in enumerate(BAD.items()):
        if number % 4 == len(style) % 4:
            module = styled(text, style)
            if module is not None:
                check_fixes(module, frozenset((name.partition("-")[0],)))


@pytest.mark.parametrize("style", STYLES)
def test_scripts_are_converted_in_every_style(style: str) -> None:
    for name in ("functions", "checkpoints", "several_losses", "class_trainer"):
        module = styled(SCRIPTS[name], style)
        assert module is not None
        text = check_conversion(module)
        assert "GradScaler" in text, name


DTYPES = ("float16", "bfloat16", "auto")
SHAPES = [style for style in OTHERS if style not in LAST]
EACH = 4  # styles a script is tried in, of these


def _trials(number: int) -> list[tuple[str, tuple[str, ...]]]:
    """How the script of a number is tried: as it is with each dtype, and in some styles, each with another end of line
    and dtype. The neighbours of a script are tried in the styles that it is not."""
    made: list[tuple[str, tuple[str, ...]]] = [(dtype, ("plain",)) for dtype in DTYPES]
    for index in range(number * EACH, (number + 1) * EACH):
        turn = index // len(SHAPES)
        made.append((DTYPES[(index + turn) % 3], (SHAPES[index % len(SHAPES)], LAST[(index + turn) % len(LAST)])))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_all_scripts_are_converted_in_many_styles(name: str) -> None:
    for dtype, styles in _trials(list(SCRIPTS).index(name)):
        module = styled(SCRIPTS[name], *styles)
        if module is not None:
            check_conversion(module, dtype)


@pytest.mark.slow
def test_every_style_is_tried_with_every_dtype() -> None:
    tried = {(dtype, style) for number in range(len(SCRIPTS)) for dtype, styles in _trials(number) for style in styles}
    assert tried == {(dtype, style) for dtype in DTYPES for style in STYLES}


PROFILE = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
SEVERAL = st.lists(
    st.sampled_from([style for style in STYLES if style != "plain"]), min_size=2, max_size=4, unique=True
)


@given(name=st.sampled_from(sorted(BAD)), styles=SEVERAL)
@settings(PROFILE, max_examples=25)
def test_styles_together(name: str, styles: list[str]) -> None:
    module = styled(BAD[name], *styles)
    if module is not None:
        check_fixes(module, frozenset((name.partition("-")[0],)))


@pytest.mark.slow
@given(name=st.sampled_from(sorted(BAD)), styles=SEVERAL)
@settings(PROFILE, max_examples=200)
def test_many_styles_together(name: str, styles: list[str]) -> None:
    module = styled(BAD[name], *styles)
    if module is not None:
        check_fixes(module, frozenset((name.partition("-")[0],)))


@pytest.mark.slow
@given(name=st.sampled_from(sorted(SCRIPTS)), styles=SEVERAL)
@settings(PROFILE, max_examples=60)
def test_many_conversions(name: str, styles: list[str]) -> None:
    module = styled(SCRIPTS[name], *styles)
    if module is not None:
        check_conversion(module)


@pytest.mark.parametrize("name", BAD)
def test_json_carries_the_edits_that_are_applied(name: str) -> None:
    import json

    module = styled(BAD[name], "crlf")
    assert module is not None
    found = [one for one in find(module, frozenset((name.partition("-")[0],))) if fixable(one, ALLOWED)]
    for finding in found:
        (entry,) = json.loads(render([finding], lambda path: module.text, ""))
        written = [
            (
                module.offset(_location(edit["location"])),
                module.offset(_location(edit["end_location"])),
                edit["content"],
            )
            for edit in entry["fix"]["edits"]
        ]
        assert finding.fix is not None
        assert sorted(written) == [tuple(one) for one in changes(module.text, finding.fix.edits)]


def _location(entry: dict[str, int]) -> object:
    from amplint.findings import Location

    return Location(entry["row"], entry["column"])
