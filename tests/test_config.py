from __future__ import annotations

import os
from pathlib import Path

import pytest

from amplint.config import ConfigError, Settings, load
from amplint.globs import matches, pattern

DEFAULT = {"AMP101", "AMP105", "AMP110", "AMP601", "AMP902"}
ALL = DEFAULT | {"AMP132"}  # neither AMP001 nor AMP451, which is in preview


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: object) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def codes(file: str = "", **flags: object) -> set[str]:
    """What selection comes to with an amplint.toml and flags."""
    Path("amplint.toml").write_text(file)
    return set(load(["."], {key.replace("_", "-"): value for key, value in flags.items()}).codes)


# -- selection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ("", {}, DEFAULT),
        ('select = ["AMP105"]', {}, {"AMP105"}),
        ('select = ["AMP1"]', {}, {"AMP101", "AMP105", "AMP110", "AMP132"}),
        ('select = ["AMP10"]', {}, {"AMP101", "AMP105"}),
        ('select = ["ALL"]', {}, ALL),
        ('select = ["AMP"]', {}, ALL),
        ('select = ["AMP0"]', {}, {"AMP001"}),
        ('select = ["AMP4"]', {}, set()),  # a prefix leaves preview rules out
        ('select = ["AMP451"]', {}, {"AMP451"}),
        ("select = []", {}, set()),
        ('ignore = ["AMP1"]', {}, {"AMP601", "AMP902"}),
        ('extend-select = ["AMP132"]', {}, ALL),
        # the longer selector wins, ignore wins a tie
        ('select = ["ALL"]\nignore = ["AMP1"]', {}, {"AMP601", "AMP902"}),
        ('select = ["AMP105"]\nignore = ["AMP1"]', {}, {"AMP105"}),
        ('select = ["AMP1"]\nignore = ["AMP1"]', {}, set()),
        ('select = ["ALL"]\nextend-select = ["AMP105"]\nignore = ["AMP1"]', {}, {"AMP105", "AMP601", "AMP902"}),
        # the command line: --select starts afresh, the others go on from the file
        ('select = ["AMP6"]\nignore = ["AMP105"]', {"select": ["AMP105"]}, {"AMP105"}),
        ('select = ["AMP6"]', {"extend_select": ["AMP105"]}, {"AMP601", "AMP105"}),
        ('select = ["AMP1"]', {"ignore": ["AMP105"]}, {"AMP101", "AMP110", "AMP132"}),
        ('ignore = ["AMP105"]', {"ignore": ["AMP6"]}, {"AMP101", "AMP110", "AMP902"}),
        ("", {"select": ["ALL"], "ignore": ["AMP1", "AMP9"]}, {"AMP601"}),
    ],
)
def test_selection(project, file, flags, expected):
    assert codes(file, **flags) == expected


@pytest.mark.parametrize(
    ("flags", "notes"),
    [
        ({}, set()),
        ({"select": ["ALL"]}, ALL),
        ({"extend-select": ["AMP132"]}, {"AMP132"}),
        ({"select": ["AMP1"], "ignore": ["AMP105"]}, {"AMP101", "AMP110", "AMP132"}),
    ],
)
def test_notes_are_wanted_from_rules_that_somebody_named(project, flags, notes):
    assert load(["."], flags).notes == notes


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ('slect = ["AMP105"]', ['amplint.toml: unknown key "slect"', 'did you mean "select"?']),
        ("frobnicate = 1", ['unknown key "frobnicate"']),
        ("select = 1", ["amplint.toml: select takes a list of codes, not 1"]),
        ("select = [1]", ["select takes a list of codes"]),
        ('select = ["AMP1055"]', ['amplint.toml: select: unknown rule selector "AMP1055"', 'did you mean "AMP105"?']),
        ('ignore = ["amp105"]', ["ignore:", 'did you mean "AMP105"?']),
        ('select = ["clip-before-unscale"]', ["rules are selected by code: AMP105"]),
        ('select = [""]', ['unknown rule selector ""']),
        ("target-torch = 2.10", ['target-torch takes a version as a string, such as "2.4", not 2.1']),
        ('target-torch = "new"', ["target-torch"]),
        ('target-device = "gpu"', ["target-device takes one of cpu, cuda"]),
        ('target-device = ["cuda"]', ["target-device"]),
        ('target-dtype = "half"', ["target-dtype takes one of bfloat16, float16, not 'half'"]),
        ('[per-file-ignores]\n"a.py" = "AMP105"', ["per-file-ignores takes a table"]),
        ('[per-file-ignores]\n"a.py" = ["AMP77"]', ["per-file-ignores", '"AMP77"']),
        ("[api]\nnames = []", ["api takes a list of tables"]),
        ('[[api]]\nreturns = "Model"', ["api takes a list of tables, each with `names`"]),
        ("select = [", ["amplint.toml: not TOML"]),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_remedy(project, file, words):
    with pytest.raises(ConfigError) as error:
        codes(file)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_flag_is_named_as_it_was_typed(project):
    with pytest.raises(ConfigError, match=r'^--ignore: unknown rule selector "AMP99"'):
        load(["."], {"ignore": ["AMP99"]})


def test_a_config_file_that_is_no_text(project):
    Path("amplint.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^amplint.toml: not UTF-8"):
        load(["."], {})


# -- where settings come from -------------------------------------------------------------------------------------


def test_the_nearest_config_wins(project):
    write(project / "pyproject.toml", '[tool.amplint]\ntarget-device = "xpu"')
    write(project / "a" / "pyproject.toml", "[tool.other]\nx = 1")
    write(project / "a" / "b" / "amplint.toml", 'target-device = "cpu"')
    script = write(project / "a" / "b" / "c" / "x.py", "")
    assert load([str(script)], {}).target_device == "cpu"
    assert load([str(script)], {}).root == str(project / "a" / "b")
    assert load(["a"], {}).target_device == "xpu"
    assert load([str(script), "a"], {}).target_device == "xpu"  # from the folder that holds both
    assert load(["a/missing.py"], {}).target_device == "xpu"
    assert load([], {}).target_device == "xpu"


def test_amplint_toml_beats_pyproject_toml(project):
    write(project / "pyproject.toml", '[tool.amplint]\ntarget-device = "xpu"')
    write(project / "amplint.toml", 'target-device = "cpu"')
    assert load(["."], {}).target_device == "cpu"


def test_a_broken_pyproject_that_is_not_about_amplint_is_none_of_its_business(project):
    write(project / "pyproject.toml", "broken = [")
    assert load(["."], {}).root == str(project)
    write(project / "pyproject.toml", "[tool.amplint]\nbroken = [")
    with pytest.raises(ConfigError, match=r"pyproject.toml: not TOML"):
        load(["."], {})


def test_flags_beat_inline_beats_file(project):
    write(project / "amplint.toml", 'target-torch = "2.0"\ntarget-device = "cpu"\ntarget-dtype = "bfloat16"')
    settings = load(["."], {"target-torch": "2.6.1"}, ["target-torch = '2.5'", "target-device = 'xpu'"])
    assert (settings.target_torch, settings.target_device, settings.target_dtype) == ((2, 6), "xpu", "bfloat16")


def test_config_file_by_name(project):
    write(project / "amplint.toml", 'target-device = "cpu"')
    write(project / "other.toml", 'target-device = "xpu"')
    assert load(["."], {}, ["other.toml"]).target_device == "xpu"
    assert load(["."], {}, isolated=True).target_device == "cuda"
    assert load(["."], {}, ["target-device = 'mps'"], isolated=True).target_device == "mps"
    write(project / "pyproject.toml", "[tool.amplint-other]\n")
    for configs, isolated, words in (
        (["missing.toml"], False, "missing.toml: cannot read the config file: No such file"),
        (["pyproject.toml"], False, r"pyproject.toml: has no table \[tool.amplint\]"),
        (["other.toml"], True, "--isolated reads no config file"),
        (["nonsense ="], False, "--config 'nonsense =': not TOML"),
        (["slect = []"], False, "--config 'slect = \\[\\]': unknown key \"slect\""),
    ):
        with pytest.raises(ConfigError, match=words):
            load(["."], {}, configs, isolated)


def test_the_users_own_wrappers(project):
    write(
        project / "amplint.toml",
        '[[api]]\nnames = ["ours.amp.Scaler"]\nreturns = "Scaler"\nsignature = "loss"\nfixed = { enabled = true }',
    )
    [entry] = load(["."], {}, ["api = [{names = ['x.Y']}]"]).apis[1:]
    assert entry["returns"] == "Scaler"


def test_import_roots(project):
    write(project / "pkg" / "setup.py", "")
    write(project / "pkg" / "train.py", "")
    assert load(["pkg/train.py"], {}).roots == (str(project / "pkg"), str(project / "pkg" / "src"))
    write(project / "amplint.toml", 'src = [".", "lib"]')
    assert load(["pkg/train.py"], {}).roots == (str(project), str(project / "lib"))


# -- globs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("a.py", "a.py", True),
        ("a.py", "deep/er/a.py", True),  # a name, anywhere
        ("deep/a.py", "deep/a.py", True),
        ("deep/a.py", "other/deep/a.py", False),
        ("./deep/a.py", "deep/a.py", True),
        ("tests", "tests/x/a.py", True),  # a folder above
        ("tests/", "tests/x/a.py", True),
        ("tests/*", "tests/x/a.py", True),
        ("test_*.py", "x/test_a.py", True),
        ("*.pyi", "a.py", False),
        ("[ab].py", "b.py", True),
    ],
)
def test_globs(project, glob, path, expected):
    assert matches(path, (pattern(glob, str(project)),), str(project)) is expected


def test_folders_above_the_project_do_not_count(tmp_path):
    root = tmp_path / "build" / "project"
    assert not matches(str(root / "a.py"), (pattern("build", str(root)),), str(root))
    assert matches(str(root / "build" / "a.py"), (pattern("build", str(root)),), str(root))


def test_a_folder_with_glob_characters_is_taken_literally(tmp_path):
    root = tmp_path / "[x]"
    assert matches(str(root / "deep" / "a.py"), (pattern("deep/*.py", str(root)),), str(root))


def test_per_file_ignores_start_from_where_they_were_written(project, monkeypatch):
    write(project / "amplint.toml", '[per-file-ignores]\n"sub/*" = ["AMP1", "AMP601"]')
    (project / "sub").mkdir()
    monkeypatch.chdir(project / "sub")
    settings = load(["."], {})
    assert settings.of_file("x.py").codes == {"AMP902"}
    assert settings.of_file(os.path.join("..", "x.py")).codes == DEFAULT
    flagged = load(["."], {"per-file-ignores": {"x.py": ["AMP6"]}})
    assert flagged.of_file("x.py").codes == DEFAULT - {"AMP601"}


def test_settings_without_anything():
    assert Settings().codes == frozenset()
    assert Settings().of_file("a.py") == Settings()
