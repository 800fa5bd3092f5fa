from __future__ import annotations

from dataclasses import replace

import pytest
from fakes import RULES

from amplint.source.triage import holds, make_plan, may_hold

CLIP = replace(RULES["AMP105"], triggers=("clip_grad", "unscale"))
AMP = replace(RULES["AMP601"], triggers=("amp.",))
ALWAYS = replace(RULES["AMP110"], triggers=())


@pytest.mark.parametrize(
    ("data", "rules", "expected"),
    [
        (b"x.clip_grad_norm_(y)", [CLIP], True),
        (b"x.clip(y)", [CLIP], False),
        (b"import torch.cuda.amp.autocast", [CLIP, AMP], True),
        (b"ampere", [CLIP, AMP], False),
        (b"", [CLIP, ALWAYS], True),
        (b"clip_grad", [], False),
        (b"\xff\x00clip_grad", [CLIP], True),
    ],
)
def test_a_file_without_a_word_of_any_rule_can_hold_nothing(data, rules, expected):
    assert may_hold(data, make_plan(rules)) is expected


def test_extra_words_count_as_triggers():
    assert may_hold(b"MyScaler()", make_plan([CLIP]), ("MyScaler",))
    assert not may_hold(b"MyScaler()", make_plan([CLIP]))


def test_words_that_belong_together_are_needed_together_unless_notes_are_wanted():
    rule = replace(CLIP, with_words=(("scale", "amp"), ("step",)))
    assert may_hold(b"clip_grad amp step", make_plan([rule]))
    assert not may_hold(b"clip_grad amp", make_plan([rule]))
    assert may_hold(b"clip_grad", make_plan([rule], notes={"AMP105"}))


def test_a_quote_that_is_never_closed_takes_no_longer():
    assert may_hold(b'x = "' + b"a.b " * 2000 + b"\nclip_grad", make_plan([CLIP]))


@pytest.mark.parametrize(
    "code", ["-1e9", "1e5", "fill=100_000", "2 ** 20", "(1 << 40)", "[65505]", "x: float = 1e10", "2 ** 8 ** 3"]
)
def test_a_large_number_may_fill_something(code):
    assert holds(f"x = ({code}, y)".encode(), "{large}")


@pytest.mark.parametrize(
    "code",
    [
        "65504",
        "2 ** 8",
        "1 << 4",
        "x > 100000",
        "x <= 1e6",
        "x / 1024 ** 3",
        "vocab_size=100000",
        "x1234567",
        "#123456",
        "'^norm', (99999,)",
        "'w-530616c2.pth'",
        "'w-670e1166.pth'",
        "'llama-3___1-8b'",
    ],
)
def test_a_count_or_a_divisor_fills_nothing(code):
    assert not holds(f"f({code})".encode(), "{large}")


@pytest.mark.parametrize(
    "line", ["pad_token_id: int | None = 151643", 'd = {"rope_theta": 1e6}', "MAX_SIZE = int(1e9)"]
)
def test_a_number_is_a_count_by_type_or_name(line):
    assert not holds(line.encode(), "{large}")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_comment_ends_with_its_line(end: bytes) -> None:
    assert may_hold(end.join((b"import torch  # the library", b"clip_grad()", b"")), make_plan([CLIP]))
