from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result
from fakes import RULES

from amplint import __version__
from amplint.cli import cli

pytestmark = pytest.mark.usefixtures("fake")


def put(path: str, content: str = "bad_call()\n") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)
    return path


def amplint(*arguments: str, stdin: str | bytes | None = None, **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, input=stdin, env=env)


def check(*arguments: str, **rest: str) -> Result:
    return amplint("check", "--output-format", "concise", *arguments, **rest)


# -- exit codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "flags", "code"),
    [
        ("fine\n", "", 0),
        ("bad_call()\n", "", 1),
        ("warn_call()\n", "", 1),
        ("hint_call()\n", "", 0),
        ("hint_call()\n", "--select ALL", 1),
        ("bad_call()\n", "--exit-zero", 0),
        ("bad_call()\n", "--ignore AMP1", 0),
        ("bad_call()\n", "--fix", 0),
        ("bad_call()\n", "--fix --exit-non-zero-on-fix", 1),
        ("bad_call(); warn_call()\n", "--fix", 1),
        ("bad_call(); warn_call()\n", "--fix-only", 0),
        ("bad_call(); warn_call()\n", "--fix-only --exit-non-zero-on-fix", 1),
        ("risky_call()\n", "--fix", 1),
        ("risky_call()\n", "--fix --unsafe-fixes", 0),
        ("bad_call()\n", "--diff", 1),
        ("warn_call()\n", "--diff", 0),
        ("bad_call()\n", "--statistics", 1),
        ("def f(:\n", "", 2),
        ("def f(:\n", "--exit-zero", 2),
        ("def f(:\n", "--fix-only", 2),
        ("def f(:\n", "--diff", 2),
        ("crash_call()\n", "", 2),
        ("bad_call()\n", "missing.py", 2),
        ("bad_call()\n", "--no-such-flag", 2),
        ("bad_call()\n", "--select AMP9999", 2),
        ("bad_call()\n", "--config missing.toml", 2),
        ("bad_call()\n", "-o missing/folder.txt", 2),
        ("bad_call()\n", "--output-format xml", 2),
        ("bad_call()\n", "-", 2),
    ],
)
def test_exit_codes(content, flags, code):
    put("a.py", content)
    result = check("a.py", *flags.split())
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


def test_the_working_folder_is_checked_where_no_path_is_named():
    put("sub/a.py")
    assert check().stdout.startswith("sub/a.py:1:1: AMP105 [*] bad is wrong\n")


def test_nothing_to_convert():
    result = amplint("fix", put("a.py", "print(1)\n"))
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no training step found in 1 file\n")


def test_nothing_to_check():
    result = check()
    assert (result.exit_code, result.stdout) == (0, "All checks passed!\n")
    assert "no Python files found" in result.stderr


# -- output -------------------------------------------------------------------------------------------------------


def test_full_concise_and_statistics():
    put("a.py", "risky_call()\nbad_call()\n")
    footer = "Found 2 errors. [*] 1 fixable with --fix (1 more with --unsafe-fixes).\n"
    full = amplint("check", "a.py").stdout
    assert full.startswith("error[AMP101] fp16-without-scaler: risky is wrong\n --> a.py:1:1\n  |\n1 | risky_call()\n")
    assert full.endswith(f"\n\n{footer}")
    concise = "a.py:1:1: AMP101 risky is wrong\na.py:2:1: AMP105 [*] bad is wrong\n"
    assert check("a.py").stdout == concise + footer
    assert check("a.py", "-q").stdout == concise
    assert check("a.py", "--statistics", "-q").stdout.splitlines() == [
        "    1  AMP101  [ ] fp16-without-scaler",
        "    1  AMP105  [*] clip-before-unscale",
    ]


def test_json_is_all_there_is_on_stdout():
    put("a.py", "bad_call()  # amplint: ignore\n"), put("b.py", "def f(: bad_call()\n")
    result = check("--output-format", "json", "a.py", "b.py", "-v")
    entries = json.loads(result.stdout)
    assert [(entry["code"], entry["filename"]) for entry in entries] == [
        ("AMP105", os.path.abspath("a.py")),
        ("AMP902", os.path.abspath("b.py")),
    ]
    assert 'warning: a.py:1: "# amplint: ignore" names no codes' in result.stderr
    assert json.loads(check("--output-format", "json", "empty", "--select", "AMP6").stdout)[0]["code"] == "AMP902"
    assert json.loads(check("--output-format", "json", "--statistics", "a.py").stdout)[0]["count"] == 1


def test_output_file():
    put("a.py")
    result = check("a.py", "-o", "out.txt", "--color", "always")
    assert (result.exit_code, result.stdout) == (1, "")
    assert Path("out.txt").read_text().startswith("a.py:1:1: AMP105 [*] bad is wrong\n")
    check("a.py", "--output-format", "json", "-o", "out.json")
    assert len(json.loads(Path("out.json").read_text())) == 1


@pytest.mark.parametrize(
    ("flags", "env", "coloured"),
    [
        ([], {}, False),  # no terminal
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"FORCE_COLOR": "0"}, False),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ([], {"FORCE_COLOR": "1", "TERM": "dumb"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colours(flags, env, coloured):
    put("a.py")
    assert ("\x1b[" in check("a.py", *flags, **env).stdout) is coloured


@pytest.mark.parametrize(("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_colours_on_a_terminal(monkeypatch, env, coloured):
    monkeypatch.setattr("click._compat.isatty", lambda stream: True)
    monkeypatch.setattr(click.utils, "should_strip_ansi", lambda stream, color: color is False)
    put("a.py")
    assert ("\x1b[" in CliRunner().invoke(cli, ["check", "a.py"], env=env, color=coloured).stdout) is coloured


# -- fixing -------------------------------------------------------------------------------------------------------


def test_fix_and_diff():
    put("a.py", "x\nbad_call()\n"), put("b.py", "risky_call()\n")
    diff = check("--diff")
    assert diff.stdout == "--- a.py\n+++ a.py\n@@ -1,2 +1,2 @@\n x\n-bad_call()\n+good_call()\n"
    assert diff.stderr == "Would fix 1 finding.\n"
    assert Path("a.py").read_text() == "x\nbad_call()\n"
    assert check("--diff", "-o", "a.patch").stdout == ""
    assert Path("a.patch").read_text() == diff.stdout
    fixed = check("--fix")
    assert Path("a.py").read_text() == "x\ngood_call()\n"
    assert fixed.stdout == (
        "b.py:1:1: AMP101 risky is wrong\nFound 2 errors (1 fixed, 1 left). 1 fixable with --fix --unsafe-fixes.\n"
    )
    assert "2 findings" not in check("--fix-only", "--unsafe-fixes").stdout
    assert Path("b.py").read_text() == "calm_call()\n"
    assert check().exit_code == 0


def test_a_diff_in_which_a_file_could_not_be_read():
    put("a.py"), put("b.py", "def f(: bad_call()\n")
    result = check("--diff")
    assert result.exit_code == 2
    assert "+good_call()" in result.stdout
    assert "b.py:1:7: AMP902 syntax error" in result.stderr


# -- stdin --------------------------------------------------------------------------------------------------------


def test_stdin():
    result = check("-", stdin="bad_call()\n")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (1, "-:1:1: AMP105 [*] bad is wrong")
    named = amplint("check", "-", "--stdin-filename", "sub/x.py", stdin="bad_call()\n").stdout
    assert named == amplint("check", "--stdin-filename", "sub/x.py", stdin="bad_call()\n").stdout
    assert "--> sub/x.py:1:1" in named
    assert "1 | bad_call()" in named
    assert not os.path.exists(".amplint_cache")


def test_stdin_with_fix_gives_the_source_on_stdout_and_the_rest_on_stderr():
    source = b"\xef\xbb\xbfrisky_call()\r\nbad_call()  # \xc3\xa9\r\n"
    result = amplint("check", "-", "--fix", stdin=source)
    assert result.stdout_bytes == source.replace(b"bad", b"good")
    assert "error[AMP101]" in result.stderr
    assert "1 | risky_call()" in result.stderr
    assert "(1 fixed, 1 left)" in result.stderr
    assert result.exit_code == 1


@pytest.mark.parametrize("source", [b"def f(:\n", b"\xff\n", b"fine\n", b"", b"crash_call()\r\n"])
def test_stdin_with_fix_always_gives_the_source_back(source):
    result = amplint("check", "-", "--fix", stdin=source)
    assert result.stdout_bytes == source
    assert result.exit_code == (0 if source in (b"fine\n", b"") else 2)


def test_stdin_with_diff():
    result = check("-", "--diff", "--stdin-filename", "x.py", stdin="bad_call()\n")
    assert (result.exit_code, result.stdout) == (1, "--- x.py\n+++ x.py\n@@ -1 +1 @@\n-bad_call()\n+good_call()\n")


def test_stdin_takes_the_settings_of_the_place_that_it_names():
    put("sub/amplint.toml", 'ignore = ["AMP105"]\nexclude = ["gen"]')
    assert check("-", "--stdin-filename", "sub/x.py", stdin="bad_call()\n").exit_code == 0
    assert check("-", "--stdin-filename", "x.py", stdin="bad_call()\n").exit_code == 1
    arguments = ["-", "--stdin-filename", "sub/gen/x.py", "--select", "AMP105"]
    assert check(*arguments, stdin="bad_call()\n").exit_code == 1
    assert check(*arguments, "--force-exclude", "--fix", stdin="bad_call()\n").stdout == "bad_call()\n"


# -- settings -----------------------------------------------------------------------------------------------------


def test_flags_reach_the_settings():
    put("a.py", "bad_call(); warn_call(); risky_call()\n"), put("gen/b.py")
    rows = check("--select", "AMP101,AMP6", "--select", "AMP105", "--ignore", "AMP6", "-q").stdout.splitlines()
    assert [row.split()[1] for row in rows] == ["AMP105", "AMP101", "AMP105"]
    assert "gen" not in check("--exclude", "gen,other").stdout
    assert "gen" not in check("--extend-exclude", "gen").stdout
    assert "gen" in check("--extend-exclude", "gen", "gen/b.py").stdout
    assert "gen" not in check("--extend-exclude", "gen", "--force-exclude", "gen/b.py").stdout
    ignored = check("--per-file-ignores", "gen/*:AMP105,a.py:AMP1", "--per-file-ignores", "a.py:AMP6")
    assert ignored.exit_code == 0
    put("amplint.toml", 'select = ["AMP601"]')
    assert check("gen").exit_code == 0
    assert check("gen", "--isolated").exit_code == 1
    assert check("gen", "--config", "select = ['AMP105']").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--select", "AMP1055"], 'amplint: --select: unknown rule selector "AMP1055"; did you mean "AMP105"?'),
        (["--target-torch", "new"], "amplint: --target-torch takes a version"),
        (["--target-device", "gpu"], "amplint: --target-device takes one of"),
        (["--per-file-ignores", "a.py"], '"a.py" is not GLOB:CODE'),
        (["-", "a.py"], 'amplint: "-" reads standard input and goes with no other path'),
        (["a.py", "--stdin-filename", "b.py"], 'amplint: "-" reads standard input and goes with no other path'),
        (["a.py", ""], "amplint: a path is empty"),
        (["a.py", "--isolated", "--config", "x.toml"], "amplint: --isolated reads no config file"),
        (["-o", "no/where"], "amplint: no/where: cannot write the findings: no such file or directory"),
        (["--selct", "AMP105"], "No such option"),
    ],
)
def test_mistakes_on_the_command_line(arguments, words):
    put("a.py")
    result = check(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_cache_flags():
    put("a.py")
    check("--no-cache")
    assert not os.path.exists(".amplint_cache")
    first = check()
    assert os.path.exists(".amplint_cache")
    assert check().output == first.output


def test_verbose_shows_the_traceback_of_an_internal_error():
    put("a.py", "crash_call()\n")
    assert "Traceback" not in check().output
    result = check("-v")
    assert "ValueError: boom" in result.stderr
    assert "checked 1 file against" in result.stderr


# -- other commands -----------------------------------------------------------------------------------------------


def test_rule():
    text = amplint("rule", "AMP105").stdout
    head = "AMP105 clip-before-unscale\nerror · fix: mixed · on by default · since 0.1.0\n\n"
    assert text.startswith(f"{head}## What it does")
    assert amplint("rule", "clip-before-unscale").stdout == text == amplint("rule", "amp105").stdout
    markdown = amplint("rule", "AMP105", "--output-format", "markdown").stdout
    assert markdown.startswith("# clip-before-unscale (AMP105)\n")
    assert json.loads(amplint("rule", "AMP105", "--output-format", "json").stdout)["severity"] == "error"
    entries = json.loads(amplint("rule", "--all", "--output-format", "json").stdout)
    assert [entry["code"] for entry in entries] == list(RULES)
    assert amplint("rule", "--all").stdout.count("## What it does") == len(RULES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["AMP1055"], 'unknown rule "AMP1055"; did you mean "AMP105"?'),
        (["clip-before-unscal"], 'did you mean "clip-before-unscale"?'),
        ([], "name a rule, or use --all"),
        (["AMP105", "--all"], "name a rule, or use --all"),
    ],
)
def test_rule_mistakes(arguments, words):
    result = amplint("rule", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_events(monkeypatch):
    put("a.py"), put("b.py", "def f(:\n")
    story = SimpleNamespace(tell=lambda module, settings: f"{module.path} on {settings.target_device}")
    monkeypatch.setitem(sys.modules, "amplint.report.story", story)
    assert amplint("events", "a.py", "--target-device", "xpu").stdout == "a.py on xpu\n"
    for path, words in (("b.py", "b.py:1:7: AMP902 syntax error"), ("no.py", "AMP902 no such file")):
        result = amplint("events", path)
        assert result.exit_code == 2
        assert words in result.stderr


def test_fix_command(monkeypatch):
    def rewrite(module, settings, options):
        text = module.text.replace("old", f"new on {settings.target_device} in {options['dtype']}")
        if "crash" in text:
            raise KeyError("oops")
        said = "refused: too odd" if "odd" in text else "converted" if "new" in text else "already AMP"
        return SimpleNamespace(text=text, lines=[f"{module.path}:1: {said}"], refused="odd" in text, steps=True)

    def rewrite_all(modules, settings, options, guard):
        return [guard(module, partial(rewrite, module, settings, options)) for module in modules]

    monkeypatch.setattr("amplint.rewrite.instrument.fix_all", rewrite_all)
    put("a.py", "old = 1\n"), put("b.py", "x\n")
    assert amplint("fix", "a.py", "--check").exit_code == 1
    diff = amplint("fix", ".", "--diff", "--dtype", "auto", "--device", "cpu")
    assert "+new on cpu in auto = 1\n" in diff.stdout
    assert "a.py:1: converted" in diff.stderr
    assert Path("a.py").read_text() == "old = 1\n"
    done = amplint("fix", "a.py", "b.py", "--dtype", "bfloat16")
    assert (done.exit_code, done.stdout) == (0, "a.py:1: converted\nb.py:1: already AMP\n")
    assert Path("a.py").read_text() == "new on cuda in bfloat16 = 1\n"
    put("odd.py", "odd\n")
    assert amplint("fix", "odd.py").exit_code == 1
    assert "fix works on files" in amplint("fix", "-", stdin="old = 1\n").stderr
    put("broken.py", "def f(:\n")
    put("crash.py", "crash\n")
    result = amplint("fix", "odd.py", "broken.py", "gone.py", "crash.py")
    assert result.exit_code == 2
    assert "crash.py:1:1: AMP902 internal error in" in result.stderr
    assert "KeyError: 'oops'; please report" in result.stderr
    assert "odd.py:1: refused" in result.stdout
    assert "broken.py:1:7: AMP902" in result.stderr
    assert "gone.py:1:1: AMP902 no such file" in result.stderr


def test_version_and_help():
    assert amplint("--version").stdout == f"amplint {__version__}\n"
    for command in ("check", "fix", "rule", "events"):
        assert amplint(command, "-h").exit_code == 0
