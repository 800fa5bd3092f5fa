"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

Command = Callable[..., Any]


def _split(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """`--select A,B --select C` is A, B and C."""
    return [part.strip() for value in values for part in value.split(",")] if values else None


def _ignores(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]] | None:
    """`--per-file-ignores "tests/*:AMP105,demo.py:AMP1"` as the table that a config file has."""
    table: dict[str, list[str]] = {}
    for part in _split(context, option, values) or ():
        glob, colon, code = part.rpartition(":")
        if not colon:
            raise click.BadParameter(f'"{part}" is not GLOB:CODE', context, option)
        table.setdefault(glob.strip(), []).append(code.strip())
    return table or None


def list_option(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, multiple=True, callback=_split, metavar="LIST", help=text)


FORMAT_HELP = "How findings are printed [default: full]"
OUTPUT_FILE = click.option(
    "-o",
    "--output-file",
    multiple=True,
    metavar="[FORMAT:]FILE",
    help="Write the findings here instead of to standard output; with a format, beside it (may be repeated).",
)
SETTINGS = (
    list_option("--select", "Rules to run: codes, prefixes or ALL, comma-separated; instead of the default ones."),
    list_option("--ignore", "Rules not to run."),
    list_option("--extend-select", "Rules to run, too."),
    list_option("--fixable", "Rules whose fixes may be applied [default: ALL]."),
    list_option("--unfixable", "Rules whose fixes may not be applied."),
    click.option("--target-torch", metavar="VERSION", help="Oldest torch that the code runs on [default: 2.4]."),
    click.option("--target-device", metavar="DEVICE", help="Device that the code trains on [default: cuda]."),
    click.option("--target-dtype", metavar="DTYPE", help="float16 or bfloat16 [default: float16]."),
    click.option("--config", multiple=True, metavar="FILE|KEY=VALUE", help="Config file, or one setting as TOML."),
    click.option("--isolated", is_flag=True, help="Read no config file."),
    click.option("--color", type=click.Choice(["auto", "always", "never"]), default="auto", help="Use colours."),
)
FILES = (
    click.option(
        "--per-file-ignores",
        multiple=True,
        callback=_ignores,
        metavar="GLOB:CODE",
        help="Rules not to run there.",
    ),
    list_option("--exclude", "Files and folders to leave out, as globs; instead of the default ones."),
    list_option("--extend-exclude", "Files and folders to leave out, too."),
    click.option("--force-exclude", is_flag=True, help="Leave out also files that are named on the command line."),
)


def with_options(options: Sequence[Callable[[Command], Command]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


KEYS = (
    *("select", "ignore", "extend-select", "fixable", "unfixable", "per-file-ignores", "exclude", "extend-exclude"),
    *("target-torch", "target-device", "target-dtype"),
)
