"""From the command line and YAML to option classes. Only this room knows about argv and YAML."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from ..data.options import SOURCES, DataOptions
from ..errors import InputError, refuse, unknown_name
from ..options import Options, choices_of, option, plain_type
from ..text import read_small_text, short, some
from .help import help_text, is_required

MOST_VALUES = 10_000  # in a YAML file, with all aliases written out
RECIPES = Path(__file__).with_name("recipes")
BOOLEANS = {"true": True, "yes": True, "y": True, "t": True, "1": True} | {
    "false": False, "no": False, "n": False, "f": False, "0": False,
}  # fmt: skip
# On the command line, one of a pair replaces the other of the YAML file.
ALTERNATIVES = (("max_steps", "num_epochs"), ("labeled_count", "labeled_fraction"))
HELP = ("-h", "--help", "--help-all", "--help_all")
REMOVED = ("cpu_threads", "recolor_on_device", "card_pictures")  # options of version 0.1


class UsageError(InputError):
    """Arguments are missing; the exit status is 2, as of other commands."""

    exit_status = 2


@dataclass
class MethodChoice(Options):
    """Which method; its own options follow from the choice."""

    method: str = option("corrmatch", "Training method.", group="Method", common=True, metavar="NAME")


def parse(
    command: str,
    *groups: type[Options],
    args: Sequence[str],
    description: str = "",
    examples: str = "",
    default_recipe: str | None = None,
    photos_recipe: str | None = None,
    unlisted: Iterable[str] = (),
    of_training: bool = False,
) -> tuple[Any, ...]:
    """Instances of the option classes `groups`; with `MethodChoice` among them also the method's class and options.

    `--config` names a YAML file or a packaged recipe with values that the command line overrides. `default_recipe` is
    used if neither `--config` nor a dataset is given, `photos_recipe` with a dataset, but neither `--config` nor
    `--method`. `--help` and `--help-all` print the options and exit, without those `unlisted`, which are accepted but
    do not matter to the command. With `of_training` the YAML file may hold options of a training, which do not matter
    either.

    Raises:
        InputError: lists everything that is wrong: unknown options with the nearest known name, values of the wrong
            type, and the `problems()` of the option classes.
    """
    args = list(args)
    config = _value_of("--config", args, remove=True)
    if config == "" or "--config" in args:
        raise UsageError(f"--config needs a file or the name of a recipe; see corrmatch {command} --help")
    path = config or default_config(args, default_recipe, photos_recipe)
    values = _config_values(path, args) if path else {}
    types, method = list(groups), None
    if MethodChoice in groups:
        from ..methods import method_class

        method = method_class(str(_value_of("--method", args) or values.get("method") or MethodChoice.method))
        types.append(method.Options)
    asked = [arg for arg in args if arg in HELP]
    if asked:
        shown = values if config else {}  # the default recipe is for the synthetic dataset alone
        everything = asked[-1] in HELP[2:]
        print(help_text(command, types, method, shown, everything, description, examples, unlisted))
        raise SystemExit(0)

    problems: list[str] = []
    known = {name: found for cls in types for name, found in _declared(cls).items()}
    skipped: set[str] = set()
    if method is not None:
        skipped = option_names(MethodChoice)  # of other methods, so that one file serves several
    elif of_training and values:
        skipped = _of_training()
    raw = _from_yaml(values, known, skipped, path, problems)
    raw |= _from_command_line(command, args, known, method, problems)
    missing = [f"--{name}" for name, (spec, _) in known.items() if is_required(spec) and name not in raw]
    if missing:
        raise UsageError(f"{', '.join(missing)} must be given; see corrmatch {command} --help")
    parsed = _instances(types, known, raw, problems)
    for group in parsed:
        # Training needs a training split; evaluation does not, and finds problems of the data where it loads them.
        if method is not None or not isinstance(group, DataOptions):
            problems += group.problems()
    refuse(problems)
    for group in parsed:
        # A training tells them itself, once for all processes, and data where they are loaded.
        if method is None and not isinstance(group, DataOptions):
            for text in group.idle():
                print(f"note: {text}", file=sys.stderr)
    return (*parsed[:-1], method, parsed[-1]) if method is not None else tuple(parsed)


def _declared(cls: type[Options]) -> dict[str, tuple[Field, Any]]:
    """name -> (field, type) of the options of a class."""
    hints = get_type_hints(cls)
    return {spec.name: (spec, hints[spec.name]) for spec in fields(cls)}


def default_config(args: Sequence[str], default_recipe: str | None, photos_recipe: str | None) -> str | None:
    """The recipe where `--config` names none: `default_recipe` if no option names a dataset; `photos_recipe` if one
    does, and none names the method or the optimiser."""
    given = {_option_name(arg) for arg in args if arg.startswith("--")}
    if not given & set(SOURCES):
        return default_recipe
    own = {"config", "method", "optimizer"} & given or _value_of("--dataset_name", list(args)) == "synthetic"
    return None if own else photos_recipe


def _config_values(path: str, args: Sequence[str]) -> dict[str, Any]:
    """The values of a YAML file, without those that an alternative on the command line replaces."""
    values = read_config(path)
    given = {_option_name(arg) for arg in args if arg.startswith("--")}
    for pair in ALTERNATIVES:
        for one, other in (pair, pair[::-1]):
            if one in given and other not in given:
                values.pop(other, None)
    return values


def _of_training() -> set[str]:
    """The names of all options of `corrmatch train`."""
    from .train import GROUPS  # options lie beside methods, which import torch: --help does without

    return option_names(*GROUPS)


def _instances(types: list[type], known: dict, raw: dict[str, Any], problems: list[str]) -> list[Options]:
    """The option classes with the converted texts of `raw`; a text that cannot be converted leaves the default."""
    converted = {}
    for name, text in raw.items():
        try:
            converted[name] = convert(name, known[name][1], text)
        except ValueError as error:
            problems.append(str(error))
    return [cls(**{s.name: converted[s.name] for s in fields(cls) if s.name in converted}) for cls in types]


def _from_yaml(values: dict, known: dict, skipped: set[str], path: str | None, problems: list[str]) -> dict:
    """The options of a YAML file as text, so that they are converted exactly as those of the command line."""
    raw: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            # Old training_config.yaml files hold removed options; only card_pictures: false kept photos private.
            harmless = name in REMOVED and (name, value) != ("card_pictures", False)
            if not (harmless or name in skipped):
                problems.append(_unknown(f"option in {path}", name, known.keys() | skipped))
            continue
        spec, hint = known[name]
        container = get_origin(plain_type(hint)) or plain_type(hint)
        if value is False and "no" in choices_of(hint):  # YAML reads an unquoted `no` as False
            value = "no"
        if value is None and spec.default is None:
            raw[name] = None
        elif isinstance(value, list | dict) and (
            container is type(value) or spec.metadata["metavar"] == "JSON"
        ):
            try:
                raw[name] = json.dumps(value)
            except (TypeError, ValueError):  # a date, bytes, a set, a key that is a list
                problems.append(f"{name} in {path} has values that are not text, numbers, lists or mappings")
        elif value is None or isinstance(value, list | dict):
            problems.append(f"{name} in {path} is {short(value)}; give one value")
        else:
            raw[name] = str(value)
    return raw


def _from_command_line(
    command: str, args: list[str], known: dict, method: Any, problems: list[str]
) -> dict[str, Any]:
    """The options of the command line as text; `method` is the chosen method's class, None for other commands."""
    parser = _Parser(
        prog=f"corrmatch {command}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    for name, (spec, hint) in known.items():
        plain = plain_type(hint)
        flags = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        if spec.metadata.get("positional"):
            parser.add_argument(name, nargs="+" if get_origin(plain) is list else None)
        elif plain is bool:
            parser.add_argument(*flags, nargs="?", const="True")
            if spec.default is True:
                parser.add_argument(f"--no_{name}", f"--no-{name.replace('_', '-')}", dest=name,
                                    action="store_const", const="False")  # fmt: skip
        else:
            parser.add_argument(*flags, nargs="+" if get_origin(plain) is list else None)
    parsed, unused = parser.parse_known_args(args)
    flags = [f"--{name}" for name, (spec, _) in known.items() if not spec.metadata.get("positional")]
    full_list = f"corrmatch {command} --help-all"
    problems += [
        (method and _of_other_methods(each, method)) or _unknown("option", each, flags, full_list)
        for each in (arg.split("=")[0] for arg in unused)
        if each.startswith("-")
    ] or [f"unknown argument {each!r}: options start with --" for each in unused]
    return vars(parsed)


def _of_other_methods(flag: str, chosen: Any) -> str | None:
    """The problem of an option that only other methods than the chosen one have; None for other names."""
    from ..methods import METHODS

    name = _option_name(flag)
    owners = [each for each, method in METHODS.items() if name in option_names(method.Options)]
    if not owners:
        return None
    return (
        f"{flag} is an option of --method {' and of '.join(owners)}, not of {chosen.name}; leave it out, or choose "
        f"{'that method' if len(owners) == 1 else 'one of these methods'}"
    )


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(**options)
        # argparse recognises -1 and -0.5 as values, but takes -1e-3 for an option.
        self._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|^-inf$", re.IGNORECASE)

    def error(self, message: str):
        raise UsageError(f"{message}; see {self.prog} --help")


def convert(name: str, hint: Any, text: Any) -> Any:
    """The text of one option as its type.

    Raises:
        ValueError: a sentence without full stop that names the option, the value, and what to give.
    """
    plain = plain_type(hint)
    kind = get_origin(plain) or plain
    if text is None:
        return None
    if kind is dict:
        return _json(name, text, dict, """JSON such as '{"img_size": 384}'""")
    if kind is list:
        (part,) = get_args(plain)
        texts = text if isinstance(text, list) else [text]
        if part is not str and len(texts) == 1 and texts[0].strip().startswith("["):
            texts = [
                json.dumps(each) for each in _json(name, texts[0], list, "JSON such as '[4, 11, 17, 23]'")
            ]
        return [convert(name, part, each) for each in texts]
    if kind is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError(f"--{name} is {short(text)}; give True or False")
        return BOOLEANS[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            if plain is not hint:  # None is the default
                wanted += ", or leave the option out"
            raise ValueError(f"--{name} is {short(text)}; give {wanted}") from None
    if "\0" in text:
        raise ValueError(f"--{name} is {short(text)}; no name or path contains the character NUL")
    return next((choice for choice in choices_of(hint) if str(choice) == text), text)


def _json(name: str, text: str, kind: type, wanted: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ValueError(f"--{name} is {short(text)}; give {wanted}")
    return value


def option_names(*groups: type[Options]) -> set[str]:
    """The names of all options of `groups`, and those of every method if `MethodChoice` is among them."""
    types = list(groups)
    if MethodChoice in groups:
        from ..methods import METHODS

        types += [method.Options for method in METHODS.values()]
    return {spec.name for cls in types for spec in fields(cls)}


def read_config(config: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The options of a YAML file or packaged recipe, on top of those of its `base`, a path relative to the file."""
    path = find_config(config)
    try:
        text = read_small_text(path)
    except ValueError as error:
        raise InputError(f"--config {config} cannot be read: {error}.") from error
    try:
        values = _read_yaml(text)
    except RecursionError as error:
        raise InputError(
            f"--config {config} is nested too deeply; write 'option: value' in each line."
        ) from error
    except (
        Exception
    ) as error:  # tags with wrong values, such as `!!bool 3`, make yaml raise any kind of error
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"--config {config} is not valid YAML: {reason[:300]}.") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"--config {config} must contain lines of the form 'option: value'.")
    if "base" not in values:
        return values
    seen = (*seen, path.resolve())
    base = path.parent / str(values.pop("base"))
    if base.resolve() in seen:
        raise InputError(f"--config {config}: its base {base} leads back to itself.")
    return read_config(str(base), seen) | values


def _read_yaml(text: str) -> Any:
    """The value of a YAML document. A few hundred bytes of nested aliases can mean gigabytes; they are refused."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        sizes: dict[int, int] = {}  # of each node with everything in it, aliases written out
        if node is None:
            return None
        if _size(node, sizes) > MOST_VALUES:
            raise ValueError(f"its aliases (*name) stand for more than {MOST_VALUES:,} values")
        names = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"it has {some(twice)} more than once")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int]) -> int:
    if id(node) not in sizes:
        sizes[id(node)] = MOST_VALUES + 1  # if it contains itself
        inner = [n for part in node.value for n in (part if isinstance(part, tuple) else (part,))]
        sizes[id(node)] = 1 + (
            0 if isinstance(node, yaml.ScalarNode) else sum(_size(n, sizes) for n in inner)
        )
    return sizes[id(node)]


def find_config(config: str) -> Path:
    """The file of that path, else the packaged recipe of that name, such as `pascal`."""
    if os.path.isfile(config):  # unlike Path.is_file, it accepts names that the system does not allow
        return Path(config)
    recipes = {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in RECIPES.rglob("*.yaml")}
    if config in recipes:
        return recipes[config]
    stem = Path(config).stem
    hint = (
        f"the recipe of the package is given by its name: --config {stem}"
        if stem in recipes
        else f"give a YAML file, or a recipe of the package: {', '.join(sorted(n for n in recipes if '/' not in n))}"
    )
    found = "a folder" if os.path.isdir(config) else "no such file"
    raise InputError(f"--config {config}: {found}; {hint}.")


def _option_name(arg: str) -> str:
    return arg.split("=")[0].lstrip("-").replace("-", "_")


def _unknown(kind: str, name: str, known: Iterable[str], full_list: str = "") -> str:
    if _option_name(name) in REMOVED:
        photos = "; delete predictions.png and samples before you publish" if "card" in name else ""
        return f"{name} was removed; leave it out{photos}"
    return str(unknown_name(kind, name, known, full_list)).rstrip(".")


def _value_of(flag: str, args: list[str], remove: bool = False) -> str | None:
    """The last value of a flag, as argparse takes it; None if the flag is not given."""
    value, i = None, 0
    while i < len(args):
        if args[i] == flag and i + 1 < len(args):
            value, count = args[i + 1], 2
        elif args[i].startswith(f"{flag}="):
            value, count = args[i].split("=", 1)[1], 1
        else:
            i += 1
            continue
        if remove:
            del args[i : i + count]
        else:
            i += count
    return value


def typed_command(command: str, args: Sequence[str]) -> str:
    """The shell command of this run, for the record. Of an outer launcher's flags, only the numbers of processes are
    known to the script that it starts."""
    if "CORRMATCH_COMMAND" in os.environ:  # set by `corrmatch train` when it starts several processes
        return os.environ["CORRMATCH_COMMAND"]
    script = sys.argv[0]
    by_module = Path(script).name in ("__main__.py", "corrmatch")
    started = ["-m", "corrmatch_hf", command] if by_module else [script]
    processes, here = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        machines = ["--num_machines", nodes] if nodes != "1" else []
        words = ["accelerate", "launch", *machines, "--num_processes", processes, *started]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        machines = ["--nnodes", nodes] if nodes != "1" else []
        words = ["torchrun", *machines, "--nproc_per_node", here, *started]
    elif Path(script).parent.name == "examples":
        words = ["python", script]
    else:
        words = ["corrmatch", command]
    return shlex.join([*words, *args])
