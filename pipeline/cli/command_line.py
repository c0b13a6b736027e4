"""A Typer application whose every command has `--quiet` and `--verbose`, and whose help groups the commands."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from lotlip_data.pipeline.cli.console import Verbosity, verbosity

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings, errors and results only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print debug messages too, with time and module.")]
_OPTIONS = {"quiet": Quiet, "verbose": Verbose}

Function = Callable[..., Any]


class _Group(TyperGroup):
    """Lists the commands in the order in which they were added, under the heading of each one's `rich_help_panel`."""

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command line. Click calls this for the outermost group only."""
        token = verbosity.set(Verbosity.NORMAL)
        try:
            return super().main(*args, **settings)
        finally:
            verbosity.reset(token)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands. Click calls this for `--help`."""
        visible = [command for command in self.commands.values() if not command.hidden]
        width = max(len(str(command.name)) for command in visible)
        panels: dict[str, list[tuple[str, str]]] = {}
        for command in visible:
            panel = getattr(command, "rich_help_panel", None)
            summary = command.get_short_help_str(formatter.width - 6 - width)
            name = str(command.name).ljust(width)  # so that all panels have one column of names
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, summary))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


class CommandLine(typer.Typer):
    """A group of commands. `--quiet` and `--verbose` work before and after the name of each command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, no_args_is_help=True, rich_markup_mode=None, **settings)
        self.callback()(_no_options)

    def callback(self, **settings: Any) -> Callable[[Function], Function]:  # type: ignore[override]
        """Add the options of `function` to the group itself."""
        add = super().callback(**settings)
        return lambda function: add(_with_verbosity(function))

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:  # type: ignore[override]
        """Add `function` as a command. Returns the function as it is, so that it can be called."""
        add = super().command(name, **settings)

        def register(function: Function) -> Function:
            add(_with_verbosity(function))
            return function

        return register


def _no_options() -> None:
    pass


def _with_verbosity(function: Function) -> Function:
    """`function` with the options `quiet` and `verbose`, which set the verbosity of what it calls."""

    @functools.wraps(function)
    def run(*args: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
        if quiet and verbose:
            raise typer.BadParameter("give either --quiet or --verbose")
        if quiet or verbose:
            verbosity.set(Verbosity.QUIET if quiet else Verbosity.VERBOSE)
        return function(*args, **options)

    signature = inspect.signature(function)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in _OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, **_OPTIONS}
    return run
