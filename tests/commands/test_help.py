"""`corrmatch` and its `--help`: short, fast, and about the options that apply."""

import subprocess
import sys
from dataclasses import fields

import pytest

import corrmatch_hf
from corrmatch_hf.commands import COMMANDS, main, run
from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.methods import METHODS


def help_of(capsys, command, *args):
    with pytest.raises(SystemExit) as stopped:
        run(command, args)
    assert stopped.value.code == 0
    return capsys.readouterr().out


def listed(text):
    """The options that have a line of their own."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


def test_the_list_of_commands(capsys):
    assert main(["--help"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")} >= set(
        COMMANDS
    )
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"corrmatch {corrmatch_hf.__version__}\n")
    assert main(["trian", "--max_steps", "1"]) == 2
    assert capsys.readouterr().err == "error: Unknown command 'trian': did you mean 'train'?\n"


HELP = """
import contextlib, sys
from corrmatch_hf.commands import COMMANDS, main

def imported(command, *names):
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    return [name for name in names if name in sys.modules]

found = imported([], "torch")
for command in COMMANDS.keys() - {"train"}:
    found += imported([command], "torch", "transformers", "datasets")
found += imported(["train"], "torchvision", "timm", "transformers", "datasets")  # options lie beside methods: torch
print(found)
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text_in_lines_of_100_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for asked in ("--help", "--help-all"):
        text = help_of(capsys, command, asked)
        usage = text.splitlines()[0]
        assert (
            usage.startswith(f"usage: corrmatch {command} ")
            and usage.endswith("[options]")
            and len(usage) < 80
        )
        options = text[text.index(":\n", text.index("Examples:") + 9) :]
        assert max(map(len, options.splitlines())) <= 100
        examples = text[text.index("Examples:") : -len(options)]
        assert max(map(len, examples.splitlines())) <= 80
        for entry in options.split("\n  -")[1:]:
            assert len(entry.split("  ", 1)[1].split()) >= 2, entry


def test_the_short_help_of_training_lists_about_twenty_options(capsys):
    text = help_of(capsys, "train", "--help")
    assert 15 <= len(listed(text)) <= 26
    assert len(text.splitlines()) < 100
    assert "--encoder_name" in text and "(default: resnet50)" in text, (
        "not the encoder of the synthetic recipe"
    )
    assert "--no_" not in text


@pytest.mark.parametrize("name", ["fixmatch", "corrmatch"])
def test_the_long_help_lists_all_options_of_the_chosen_method_and_no_others(name, capsys):
    found = listed(help_of(capsys, "train", "--method", name, "--help-all"))
    own = {spec.name for cls in (*GROUPS, METHODS[name].Options) for spec in fields(cls)}
    assert {option.removeprefix("--") for option in found} == own | {"config", "help-all"}
    assert len(found) == len(set(found))


def test_evaluation_lists_no_options_of_the_training_split(capsys):
    assert not {"--labeled_count", "--unlabeled_list"} & set(
        listed(help_of(capsys, "evaluate", "--help-all"))
    )


def test_a_named_configuration_gives_the_defaults(capsys):
    assert "(default: resnet101s)" in help_of(capsys, "train", "--config", "pascal", "--help")


def test_missing_arguments_are_one_line_and_status_2(capsys):
    for command, args, missing in (
        ("push", ["outputs/run"], "repo_id"),
        ("evaluate", [], "--model"),
        ("predict", ["photo.jpg"], "--model"),
        ("train", ["--max_steps"], "--max_steps"),
    ):
        assert run(command, args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and missing in line and f"corrmatch {command} --help" in line
