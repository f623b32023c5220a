"""How a function becomes a command of `evo2`: its options, its help, its old spellings, its place under torchrun.

An option is a field of a dataclass or a parameter of the function: a name, a default, and
`Annotated[type, typer.Option(...)]`. A parameter whose type is such a dataclass stands for all of its fields.
"""

from __future__ import annotations

import inspect
import re
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo, ParameterInfo

from evo2cli.cli.options import LOGGING, PANELS, LogOptions
from evo2cli.console import log
from evo2cli.distributed import Sharing, World
from evo2cli.errors import UsageError

Function = Callable[..., Any]


def command(
    app: typer.Typer, name: str, *, shares: Sharing, examples: list[str], renamed: dict[str, str] | None = None
) -> Callable[[Function], Function]:
    """A decorator that makes a function the command `name` of an app.

    Args:
        shares: what the command's processes share under torchrun; where that does not fit, it refuses to run.
        examples: of its use, for the help.
        renamed: old spellings of options, and the new ones; the old ones work with a warning.
    """
    path = f"evo2 {name}" if app.info.name == "evo2" else f"evo2 {app.info.name} {name}"

    def decorate(function: Function) -> Function:
        parameters = list(_expanded(function))

        def run(**values: Any) -> None:
            start = time.perf_counter()
            World.here(values.get("cp", 1)).require(shares, path)
            function(**_collected(function, values))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            log.debug("%s took %.1f s and at most %.2f GiB of memory", path, time.perf_counter() - start, peak)

        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        kind = type("Command", (_Command,), {"examples": examples, "renamed": renamed or {}})
        app.command(name, cls=kind)(run)
        return function

    return decorate


def option_names(command: Any) -> dict[str, str]:
    """The parameter behind each spelling of an option of a command, without its dashes, as in a TOML file."""
    names = {old: command.renamed[old] for old in command.renamed}
    spelled = {spelling: p.name for p in command.params for spelling in (*p.opts, f"--{p.name}")}
    spelled |= {old: spelled[new] for old, new in names.items()}
    return {spelling.lstrip("-").replace("-", "_"): name for spelling, name in spelled.items()}


class Group(TyperGroup):
    """A group whose help tells the first line of each command's help, whole."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, c.get_short_help_str(limit=200)) for name, c in self.commands.items()])


class _Command(TyperCommand):
    """A command whose help has a section for each panel, and whose old spellings of options work with a warning."""

    examples: list[str]
    renamed: dict[str, str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        for i, argument in enumerate(args[:end]):
            old, equals, value = argument.partition("=")
            if new := self.renamed.get(old):
                log.warning("%s is now called %s; the old name will be removed in the next release", old, new)
                args[i] = new + equals + value
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            raise _plain_error(error, ctx.command_path) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panels[getattr(parameter, "rich_help_panel", None) or LOGGING].append(_plain(parameter, *record))
        for panel in sorted(panels, key=PANELS.index):
            with formatter.section(panel):
                formatter.write_dl(panels[panel])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {example}\n")
            formatter.write("\n")


def _plain(parameter: Any, name: str, text: str) -> tuple[str, str]:
    """A line of help without what Typer puts into it for programmers: names of types, brackets, inequalities."""
    if parameter.param_type_name == "argument":
        name, text = parameter.metavar, text.replace("[required]", "").rstrip()
    name = re.sub(r"<(.*)>", r"\1", name)
    text = re.sub(r"default: \((.*?)\)(?=[;\]])", r"default: \1", text)
    text = re.sub(r"([^ \[]+)<=x<=([^ \]]+)", r"\1 to \2", text)
    return name, re.sub(r"x>=([^ \]]+)", r"at least \1", text)


def _plain_error(error: Exception, path: str) -> Exception:
    """A value of the wrong kind said in our words; other errors as they are."""
    parameter, cause = getattr(error, "param", None), error.__cause__
    if parameter is None or cause is None:
        return error
    faults = cause.errors() if hasattr(cause, "errors") else []
    given = str(faults[0]["input"]) if faults else str(cause)
    expected = _expected(parameter.type_descriptor.annotation, parameter.min, parameter.max)
    return UsageError(f"{parameter.opts[-1]}: expected {expected}, got {given}; see {path} --help")


def _expected(kind: Any, least: float | None, most: float | None) -> str:
    choices = [value for part in (kind, *get_args(kind)) if get_origin(part) is Literal for value in get_args(part)]
    if choices:
        return "one of " + ", ".join(map(str, choices))
    whole = int in (kind, *get_args(kind))
    if whole and least == 1 and most is None:
        return "a positive integer"
    noun = "an integer" if whole else "a number"
    if most is not None:
        return f"{noun} from {least} to {most}"
    return noun if least is None else f"{noun} of at least {least}"


def _expanded(function: Function) -> Iterator[inspect.Parameter]:
    """The parameters of a function, those that are dataclasses of options replaced with their fields."""
    hints = get_type_hints(function, include_extras=True)
    log_options = inspect.Parameter("log_options", inspect.Parameter.KEYWORD_ONLY, annotation=LogOptions)
    for parameter in [*inspect.signature(function).parameters.values(), log_options]:
        annotation = hints.get(parameter.name, parameter.annotation)
        if not is_dataclass(annotation):
            yield _parameter(parameter.name, annotation, parameter.default)
            continue
        types = get_type_hints(annotation, include_extras=True)
        for field in _options(annotation):
            yield _parameter(field.name, types[field.name], _default(field))


def _collected(function: Function, values: dict[str, object]) -> dict[str, object]:
    """The arguments of a function, made of the values of its expanded parameters."""
    hints = get_type_hints(function, include_extras=True)
    arguments = {}
    for name in inspect.signature(function).parameters:
        kind: Any = hints[name]
        fields_of = _options(kind) if is_dataclass(kind) else None
        arguments[name] = values[name] if fields_of is None else kind(**{f.name: values[f.name] for f in fields_of})
    return arguments


def _options(options: Any) -> list[Field[Any]]:
    """The fields of a dataclass that are options or arguments of the command line."""
    types = get_type_hints(options, include_extras=True)
    return [
        field for field in fields(options) if any(isinstance(a, ParameterInfo) for a in get_args(types[field.name]))
    ]


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A keyword parameter as Typer takes it; a number's metavar is N or X, and not the name of its type."""
    if get_origin(annotation) is Annotated:
        kind, info = get_args(annotation)
        numbers = {int: "N", float: "X"}
        named = next((numbers[part] for part in (kind, *get_args(kind)) if part in numbers), None)
        if isinstance(info, OptionInfo) and info.metavar is None and named:
            info.metavar = named
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
