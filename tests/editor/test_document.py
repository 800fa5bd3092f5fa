"""What an editor gets of a document: findings, fixes as edits, the comment that hides, and hovers."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplint.editor.document import actions, findings, fix_all
from amplint.editor.hover import hover
from amplint.findings import Edit, Location, Range
from amplint.rewrite.syntax.apply import apply_changes, changes

TRAIN = """\
import torch
import torch.nn.functional as F

scaler = torch.cuda.amp.GradScaler()
model = torch.nn.Linear(4, 2).cuda()
optimizer = torch.optim.AdamW(model.parameters())
for x, y in [(torch.rand(3, 4).cuda(), torch.rand(3, 2).cuda())]:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = F.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.amplint]\n")
    monkeypatch.chdir(tmp_path)


def applied(text: str, edits: tuple[Edit, ...]) -> str:
    return apply_changes(text, changes(text, edits))


def at(row: int, column: int = 1) -> Range:
    return Range(Location(row, column), Location(row, column))


def test_the_text_in_the_editor_is_checked_not_the_disks() -> None:
    Path("train.py").write_text("")
    assert [finding.code for finding in findings("train.py", TRAIN)] == ["AMP601", "AMP105"]
    assert findings("train.py", "import torch\nmodel = (\n")[0].code == "AMP902"


def test_a_mistake_in_the_settings_is_told_at_the_top() -> None:
    Path("pyproject.toml").write_text('[tool.amplint]\nselekt = ["AMP1"]\n')
    (finding,) = findings("train.py", TRAIN)
    assert finding.range.start == (1, 1) and "selekt" in finding.message
    assert fix_all("train.py", TRAIN) == ()


def test_quick_fixes() -> None:
    found = findings("train.py", TRAIN)
    clip = [action for action in actions("train.py", TRAIN, found, at(12, 20)) if action.finding.code == "AMP105"]
    assert [action.preferred for action in clip] == [True, False]
    fixed = applied(TRAIN, clip[0].edits)
    assert "    scaler.unscale_(optimizer)\n    torch.nn.utils.clip_grad_norm_" in fixed
    hidden = applied(TRAIN, clip[1].edits)
    assert "1.0)  # amplint: ignore[AMP105]\n" in hidden
    assert [finding.code for finding in findings("train.py", hidden)] == ["AMP601"]
    assert not list(actions("train.py", TRAIN, found, at(1)))


def test_fix_all_is_check_fix() -> None:
    fixed = applied(TRAIN, fix_all("train.py", TRAIN))
    assert findings("train.py", fixed) == () and "unscale_" in fixed and "torch.amp.GradScaler" in fixed
    assert fix_all("train.py", fixed) == ()
    windows = TRAIN.replace("\n", "\r\n")
    assert applied(windows, fix_all("train.py", windows)) == fixed.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        (1, 45, "`softmax` runs in FP32 under CUDA autocast"),
        (2, 8, "`matmul` runs in bfloat16 under CUDA autocast"),
        (3, 7, "`@` runs in bfloat16 under CUDA autocast"),
        (4, 10, "`mean` is on no list of CUDA autocast: it runs in the dtype of its operands"),
        (5, 12, "`Linear` runs in bfloat16"),
        (6, 8, "raises under CUDA autocast"),
        (7, 37, "AMP105 clip-before-unscale"),
        (8, 6, ""),  # a local name
        (4, 5, ""),  # what stands before the dot
    ],
)
def test_hover(row: int, column: int, said: str) -> None:
    lines = (
        "from torch.nn.functional import softmax; softmax(x)",
        "torch.matmul(a, b)",
        "c = a @ b",
        "d = c.mean()",
        "torch.nn.Linear(4, 4)",
        "F.binary_cross_entropy(a, b)",
        "loss.backward()  # amplint: ignore[AMP105] measured",
        "softmax_of_mine(x)",
        "import torch, torch.nn.functional as F",
    )
    shown = hover("net.py", "\n".join(lines), Location(row, column), (), "cuda", "bfloat16")
    assert said in shown and bool(said) == bool(shown)


def test_hover_on_a_finding_is_its_rules_page() -> None:
    found = findings("train.py", TRAIN)
    shown = hover("train.py", TRAIN, Location(12, 20), found, "cuda", "float16")
    assert shown.startswith("**AMP105 clip-before-unscale**") and "Why it matters" in shown


def test_a_text_that_is_none_yet_says_nothing() -> None:
    assert hover("train.py", "def (", Location(1, 3), (), "cuda", "float16") == ""
