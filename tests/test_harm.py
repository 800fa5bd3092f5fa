"""The harm that the rules' pages speak of, shown by a run: the bad code does it, the good code doesn't."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from amplint.knowledge import rules

FOLDER = Path(__file__).parents[1] / "fixtures" / "harm"

harm = SimpleNamespace(**runpy.run_path(str(FOLDER / "__main__.py"), run_name="harm"))


@pytest.mark.parametrize("code", harm.codes())
def test_the_harm_is_real_and_the_page_quotes_it(code):
    experiment = harm.experiment(code)
    bad, good = experiment.bad(), experiment.good()
    assert experiment.harmful(bad)
    assert not experiment.harmful(good)
    quoted = re.findall(r"^```text harm\n(.*?)\n^```$", rules()[code].text, re.MULTILINE | re.DOTALL)
    assert quoted == [harm.shown(bad, good)]
