"""What is recorded, published and printed: no secrets, no folders, nothing that steers a terminal, and still useful."""

import json

import pytest
import yaml

from corrmatch_hf.commands import main
from corrmatch_hf.data.classes import read_names
from corrmatch_hf.text import presentable, presentable_command, visible, without_tokens

from .reliability.small_run import make

SECRETS = [
    "hf_" + "AbC123" * 5, "AKIAABCDEFGHIJKLMNOP", "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 9,
    "sk-proj-" + "a1B2" * 9, "xoxb-123456789012-abcdef", "AIza" + "a1B2-" * 7,
]  # fmt: skip


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text", ["{}", "a: {}", "--token={}", "https://user:{}@host/x", "'{}'", "https://h/x?k=1&t={}#a"]
)
def test_secrets_are_replaced_wherever_they_stand(text, secret):
    assert secret not in without_tokens(text.format(secret))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://ada:p@ss@host/data.parquet", "https://***@host/data.parquet"),
        ("https://h/a?sig=abc%3D&x=1", "https://h/a?sig=***&x=1"),
        ("https://h/a?X-Amz-Signature=ab&X-Amz-Date=2", "https://h/a?X-Amz-Signature=***&X-Amz-Date=2"),
        ("AWS_SECRET_ACCESS_KEY=abcdef/ghi train", "AWS_SECRET_ACCESS_KEY=*** train"),
        ("class_token: false, reg_tokens: 4", "class_token: false, reg_tokens: 4"),
        ("author={Sun, Boyuan}, key: model_ema", "author={Sun, Boyuan}, key: model_ema"),
        ("--key model_ema --seed 3", "--key model_ema --seed 3"),
    ],
)
def test_what_is_no_secret_stays(text, left):
    assert without_tokens(text) == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/acme corp/photos", ".../photos"),
        ("/data/acme corp/photos/", ".../photos"),
        ("C:\\Users\\ada\\photos", ".../photos"),
        ("\\\\server\\share\\photos", ".../photos"),
        ("file:///data/acme/photos", ".../photos"),
        ("/home/ada", "~"),
        ("~/a/photos", ".../photos"),
        ("photos/train", "photos/train"),
        ("user/model", "user/model"),
        ("https://host/a/b", "https://host/a/b"),
        ("and/or 3/4 /10", "and/or 3/4 /10"),
        ('{"7": "/data/acme corp/names.json"}', '{"7": ".../names.json"}'),
        ("Cannot read /data/acme/1.png: cut off.", "Cannot read .../1.png: cut off."),
    ],
)
def test_absolute_paths_keep_their_last_part(text, left, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert presentable(text) == left
    assert presentable(left) == left, "a record may be published twice"


def test_a_command_keeps_its_options():
    command = "corrmatch train --data_dir '/data/acme corp/photos' --out=/a/b/run --seed 3 --name 'two words'"
    left = "corrmatch train --data_dir .../photos --out=.../run --seed 3 --name 'two words'"
    assert presentable_command(command) == left
    assert presentable_command("a 'quote without end /x/y/z") == "a 'quote without end .../z"


def test_only_characters_that_steer_are_shown_as_escapes():
    assert visible("a\x1b[2J\x07\x9b\u202e\u2066\n") == r"a\x1b[2J\x07\x9b\u202e\u2066" + r"\n"
    for name in ("Straße", "道路", "دوچرخه\u200cسوار", "👩\u200d🌾", "a\\b"):
        assert visible(name) == name


def test_names_of_classes_reach_no_terminal_as_they_are():
    names = read_names('{"0": "\\u001b]0;owned\\u0007sky", "1": "\\u202eroad"}', 255, False)
    assert names.id2label == {0: r"\x1b]0;owned\x07sky", 1: r"\u202eroad"}


def test_names_of_files_reach_no_terminal_as_they_are(tmp_path, capsys):
    assert main(["check", "--data_dir", str(tmp_path / "\x1b[2Jphotos")]) == 1
    assert "\x1b" not in "".join(capsys.readouterr())
    assert main(["predict", str(tmp_path / "a\u202eb.png"), "--model", "m"]) == 1
    assert "\u202e" not in "".join(capsys.readouterr())


def test_trackers_and_checkpoints_get_no_folders_and_no_secrets(tmp_path):
    trainer = make(tmp_path / "acme corp" / "run", max_steps=1, eval_steps=None)
    trainer.recipe = {"data_dir": "/data/acme corp/photos", "extra_unlabeled": "https://u:secret@host/pool"}
    sent = {}
    trainer.accelerator.init_trackers = lambda name, config: sent.update(config)
    trainer.tracker.start(trainer.full_configuration())
    assert "acme" not in str(sent) and "secret" not in str(sent)
    assert (sent["data_dir"], sent["output_dir"]) == (".../photos", ".../run")
    trainer.train()
    (state,) = (tmp_path / "acme corp").glob("run/checkpoints/*/trainer_state.json")
    assert json.loads(state.read_text())["config"]["output_dir"] == ".../run"
    here = yaml.safe_load((tmp_path / "acme corp/run/training_config.yaml").read_text())
    assert here["data_dir"] == "/data/acme corp/photos", "the folder's own record can be used as --config"
    assert "secret" not in here["extra_unlabeled"]
