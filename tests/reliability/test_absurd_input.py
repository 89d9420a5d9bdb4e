"""Whatever a user types or hands in is used, or refused with one clear sentence: no traceback, crash or full memory."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from multiprocessing import active_children
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest
from PIL import Image

from corrmatch_hf.commands import run
from corrmatch_hf.commands.arguments import parse, read_config
from corrmatch_hf.commands.check import CheckOptions
from corrmatch_hf.commands.convert import ConvertOptions
from corrmatch_hf.commands.evaluate import EvaluationOptions
from corrmatch_hf.commands.import_ import ImportOptions
from corrmatch_hf.commands.predict import PredictOptions
from corrmatch_hf.commands.push_dataset import PushDatasetOptions
from corrmatch_hf.commands.train import GROUPS
from corrmatch_hf.data.classes import read_colors, read_names
from corrmatch_hf.data.options import DataOptions
from corrmatch_hf.data.sources import lists
from corrmatch_hf.data.sources.lists import read_lines
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods import METHODS
from corrmatch_hf.options import plain_type

from .small_run import make

# Numbers


def numeric_options():
    groups = [*GROUPS[1:], *(method.Options for method in METHODS.values())]
    groups += [
        CheckOptions,
        ConvertOptions,
        EvaluationOptions,
        ImportOptions,
        PredictOptions,
        PushDatasetOptions,
    ]
    for group in groups:
        hints = get_type_hints(group)
        for spec in fields(group):
            plain = plain_type(hints[spec.name])
            part = get_args(plain)[0] if get_origin(plain) is list else plain
            if part in (int, float):
                yield group, spec.name, part


@pytest.mark.parametrize("group", dict.fromkeys(group for group, _, _ in numeric_options()))
def test_numbers_that_no_computer_can_use_are_refused_by_name(group):
    for name, part in ((n, p) for g, n, p in numeric_options() if g is group):
        for text in ["nan", "inf", "-inf", "9" * 400, "9" * 5000, "1e400", "x", ""]:
            with pytest.raises(InputError, match=f"--{name} is ") as refused:
                # The problems of data options are left to those who load them, except in training.
                parse(
                    "train",
                    *dict.fromkeys((GROUPS[0], group) if group is DataOptions else (group,)),
                    args=[f"--{name}={text}", *required(group)],
                )
            assert len(str(refused.value)) < 1500, (name, part)


def required(group):
    """What the command cannot do without."""
    given = {
        PredictOptions: ["a.png", "--model=m"],
        EvaluationOptions: ["--model=m"],
        ConvertOptions: ["a", "b"],
    }
    return given.get(group) or (["a", "b"] if group in (ImportOptions, PushDatasetOptions) else [])


@pytest.mark.parametrize(
    "args",
    [
        ["--seed", "4294967296"], ["--split_seed", "4294967296"], ["--scale_max", "1e308"],
        ["--num_workers", "1000000"],
        ["--crop_size", "1000000000"], ["--num_epochs", "1e308"], ["--ddp_timeout", "1000000000000"],
        ["--per_device_batch_size", "1000000000"], ["--num_labels", "1000000000"],
    ],
)  # fmt: skip
def test_numbers_out_of_all_proportion_are_refused_with_the_largest_that_works(args, capsys):
    assert run("train", args) == 1
    said = capsys.readouterr().err
    assert re.search(rf"{args[0]} is .* it must be .*at most \d+[;.]", said), said


# Files of options


def billion_laughs(levels=9, wide=10):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * wide)}]" for i in range(1, levels)]
    return "\n".join(lines)


def merging_laughs(levels=9, wide=10):
    lines = ["a0: &a0 {seed: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * wide)}]}}" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00s\x00e", "is not UTF-8"),
        (b"seed: \xe4", "not UTF-8 text: line 1"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
        (b"seed: \x01", "not valid YAML"),
        (b"1: 2", "option: value"),
        (b"null: 2", "option: value"),
        (b"? [a, b]\n: 2", "not valid YAML"),
        (b"seed: 2020-99-99", "not valid YAML"),
        (b"seed: !!bool x", "not valid YAML"),
        (b"seed: !!timestamp x", "not valid YAML"),
        (b"seed: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (b"seed: " + b"9" * 5000, "not valid YAML"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"- " * 5000, "nested too deeply"),
        (b"a: &a [*a]", "more than 10,000 values"),
        (billion_laughs().encode(), "more than 10,000 values"),
        (merging_laughs().encode(), "more than 10,000 values"),
        (b"#" * 2**25, "larger than 16 MiB"),
        (b"encoder_kwargs: {a: 2020-01-01}\nmax_steps: 1", "encoder_kwargs in .* has values that are not"),
        (b"encoder_kwargs: {a: !!binary aGVsbG8=}\nmax_steps: 1", "encoder_kwargs in .* has values that are not"),
        (b"base: /etc", "--config /etc: a folder"),
        (b"base: null", "no such file"),
        (b"base: " + b"x" * 400, "no such file"),
    ],
)  # fmt: skip
def test_a_file_of_options_that_is_not_one_is_refused(tmp_path, content, said):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as refused:
        parse("train", *GROUPS, args=["--config", str(path)])
    assert len(str(refused.value)) < 1500 and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["/etc", "x" * 400, "/dev/null/a", "a\0b", "."])
def test_a_name_that_is_no_file_of_options_is_refused(name):
    with pytest.raises(InputError, match=r"--config .*(no such file|a folder); give a YAML file"):
        read_config(name)


def test_aliases_and_merged_mappings_still_work(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("seed: &n 3\nmax_steps: *n\nencoder_kwargs: &k {a: 1}\n<<: {crop_size: 33}\n")
    assert read_config(str(path)) == {"seed": 3, "max_steps": 3, "encoder_kwargs": {"a": 1}, "crop_size": 33}


@pytest.mark.parametrize(
    "text",
    [
        "[[Infinity, 0, 0]]", "[[NaN, 0, 0]]", "[[1e308, 0, 0]]", "[[0.5, 0.5, 0.5]]", "[[0, 0]]", "[null]", "{}",
        "[[[]]]",
        '{"a": [0, 0, 0]}', '{"9e9": [0, 0, 0]}', f"[[{'9' * 400}, 0, 0]]", "[" * 100_000, "/etc", "x" * 400, "a\0b",
        '{"0": "red"}', "[true]", "[[true, {}, []]]",
    ],
)  # fmt: skip
def test_colours_and_names_of_any_form_are_read_or_refused(text, tmp_path):
    with pytest.raises(InputError, match="--label_colors"):
        read_colors(text, 255)
    try:
        names = read_names(text, 255, False)
        assert all(isinstance(name, str) for name in names.id2label.values())
    except InputError as refused:
        assert len(str(refused)) < 1500
    if text.startswith(("[", "{")):
        path = tmp_path / "file.json"
        path.write_text(text)
        with pytest.raises(InputError, match="--label_colors"):
            read_colors(str(path), 255)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, "[NaN", "\0"])
def test_options_in_json_are_read_or_refused(text):
    with pytest.raises(InputError, match=r"--encoder_kwargs is .* give JSON"):
        parse("train", *GROUPS, args=["--max_steps", "1", "--encoder_kwargs", text])


# Paths of results


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a file"
    path.write_text("not a folder")
    return path


def test_results_that_cannot_be_written_are_refused_before_the_work(file, saved_model, tmp_path, capsys):
    below, long = str(file / "run" / "deeper"), str(tmp_path / ("x" * 300) / "run")
    Path(tmp_path / "photo.png").write_bytes(b"")
    for command, args in [
        ("train", ["--output_dir"]),
        ("predict", [str(tmp_path / "photo.png"), "--model", "nowhere", "--output_dir"]),
        ("evaluate", ["--model", "nowhere", "--data_dir", "nowhere", "--output"]),
        ("check", ["--data_dir", "nowhere", "--output"]),
        ("export", ["--model", "nowhere", "--format", "torch", "--output"]),
        ("convert", [str(file), "--recipe", "pascal"]),
    ]:
        for path in (below, long) if command != "export" else (f"{below}.pt2",):
            assert run(command, [*args, path]) == 1, command
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and said.startswith("error: "), said
            if path != long:
                assert f"cannot be made: {file} is a file" in said or command == "convert", said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_disk_that_is_full_at_the_end_is_one_sentence(two_photos, tmp_path, monkeypatch, capsys):
    def write_text(path, text, encoding):
        with open("/dev/full", "w", encoding=encoding) as full:
            full.write(text)

    monkeypatch.setattr(Path, "write_text", write_text)
    assert run("check", ["--data_dir", str(two_photos), "--output", str(tmp_path / "report.json")]) == 1
    assert "error: No space left on device; free some disk space.\n" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="needs mount")
def test_a_disk_that_is_full_at_the_start_is_one_sentence(tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk]
    if subprocess.run(mounted, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        trainer = make(disk / "run")
        with pytest.raises(InputError, match=r"--output_dir .* cannot be written: No space left on device"):
            trainer.train()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.parametrize("name", ["/proc/no/run", "/sys/no/run"])
def test_an_output_folder_that_the_system_refuses_is_one_sentence(name, capsys):
    if not Path(name).parent.parent.is_dir():
        pytest.skip("another system")
    with pytest.raises(InputError, match=f"--output_dir {name} cannot be written"):
        make(name).train()


# Paths of data


@pytest.fixture(scope="module")
def two_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for kind, mode in (("images", "RGB"), ("masks", "L")):
        (folder / kind).mkdir()
        for i in range(2):
            Image.new(mode, (40, 40), i if mode == "L" else (i, 90, 90)).save(folder / kind / f"{i}.png")
    return folder


SYSTEM = ["/etc/passwd", "/bin/sh", "/etc", "/dev/null", "x" * 400, "a\0b", "nowhere", ""]


@pytest.mark.parametrize(
    "option",
    [
        "data_dir", "train_images", "labeled_list", "extra_unlabeled", "id2label", "label_colors", "encoder_weights",
        "resume_from_checkpoint",
    ],
)  # fmt: skip
def test_paths_that_hold_something_else_are_refused(option, two_photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--output_dir", "run", "--max_steps", "1", "--encoder_name", "test_resnet"]
    args += [] if option == "encoder_weights" else ["--encoder_weights", "none"]
    args += [] if option in ("data_dir", "train_images", "labeled_list") else ["--data_dir", str(two_photos)]
    for value in SYSTEM[: -1 if option == "resume_from_checkpoint" else None]:
        status = run("train", [*args, f"--{option}", value])
        said = capsys.readouterr().err
        assert status in (1, 2) and "error: " in said and "Traceback" not in said, (value, said)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b"a\0b.png c.png", b"../../../etc/passwd", b"\x1b[2J.png"]
)
def test_a_list_that_is_not_one_is_one_short_sentence(content, two_photos, tmp_path, capsys):
    (tmp_path / "list.txt").write_bytes(content)
    for option in ("labeled_list", "validation_list", "extra_unlabeled"):
        assert run("check", ["--data_dir", str(two_photos), f"--{option}", str(tmp_path / "list.txt")]) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and len(said) < 2100 and "\x1b" not in said and option in said


# Processes


def test_a_loading_process_that_is_killed_is_one_sentence(tmp_path):
    trainer = make(tmp_path / "run", num_workers=1, max_steps=10_000, eval_steps=None, save_steps=None)

    def kill_a_loader():
        while not active_children():
            time.sleep(0.01)
        time.sleep(0.2)
        for child in active_children():
            os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_a_loader)
    killer.start()
    with pytest.raises(
        InputError, match=r"A process that loads images was ended .*--num_workers.*--resume_from"
    ):
        trainer.train()
    killer.join()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no 3 TiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: no 3 TiB"),
        MemoryError(),
    ],
)
def test_memory_that_cannot_be_had_is_one_sentence(error, monkeypatch, capsys):
    from corrmatch_hf.commands import check

    def exhaust(args):
        raise error

    monkeypatch.setattr(check, "main", exhaust)
    assert run("check", []) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory: ") and said.endswith("; give smaller values.\n"), said


def test_a_reader_of_the_output_may_end_first():
    code = "import sys; from corrmatch_hf.commands import run; from corrmatch_hf.commands import check\n"
    code += "def talk(args):\n    [print('x' * 1000, flush=True) for _ in range(1000)]\n"
    code += "check.main = talk; sys.exit(run('check', []))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1) as process:
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_absurd_files_take_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "LARGEST_LIST", 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "run.yaml"
    for text in (billion_laughs(), merging_laughs()):
        path.write_text(text)
        with pytest.raises(InputError):
            read_config(str(path))
    with pytest.raises(InputError, match="larger than"):
        read_names("/dev/zero", 255, False)
    with pytest.raises(InputError, match="larger than"):
        read_lines("/dev/zero", "--labeled_list")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("command", ["check", "evaluate", "export"])
def test_a_file_of_another_kind_is_not_overwritten(command, saved_model, tmp_path, capsys):
    """A name typed by mistake, as somebody who may write everywhere."""
    precious = tmp_path / "passwords.txt"
    precious.write_text("secret")
    args = [] if command == "check" else ["--model", str(saved_model)]
    assert run(command, [*args, "--output", str(precious)]) == 1
    assert "passwords.txt exists and is no " in capsys.readouterr().err and precious.read_text() == "secret"
