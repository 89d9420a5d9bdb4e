"""A finished folder onto the Hub."""

import copy
import json
import shlex

import pytest
import torch

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.commands.push import main
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.push import UploadError, push_folder, retry_command

from .loopback_hub import OTHER_TOKEN, TOKEN


@pytest.fixture
def littered(saved):
    """A folder with what a run leaves, and with what is nobody's business."""
    for name in ("checkpoints/step_1/optimizer.bin", "best/model.safetensors", "samples/1.jpg", "samples/raw/2.jpg",
                 "samples/.env", "notes.txt", ".env", "metrics.json", "train.py"):  # fmt: skip
        path = saved / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    return saved


def test_one_commit_holds_what_belongs_to_the_model_and_nothing_else(hub, littered):
    before = {p: p.read_bytes() for p in littered.rglob("*") if p.is_file()}
    assert push_folder(littered, "user/model", message="A model") == f"{hub.url}/user/model"
    assert hub.messages("user/model") == ["initial commit", "A model"]
    code = {p.name for p in littered.glob("*_corrmatch.py")}
    assert hub.files("user/model").keys() == code | {
        ".gitattributes", "README.md", "config.json", "handler.py", "metrics.json", "model.safetensors",
        "preprocessor_config.json", "requirements.txt", "samples/1.jpg",
    }  # fmt: skip
    assert b'"user/model"' in hub.files("user/model")["README.md"]
    assert {p: p.read_bytes() for p in littered.rglob("*") if p.is_file()} == before
    loaded = CorrMatchForSegmentation.from_pretrained("user/model").state_dict()
    original = CorrMatchForSegmentation.from_pretrained(littered).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in original.items())


def test_records_are_published_without_folders_and_secrets(hub, saved, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = f"data_dir: /data/acme corp/photos\nnote: {TOKEN}\nother: /home/ada\nseed: 3\n"
    (saved / "training_config.yaml").write_text(config)
    (saved / "metrics.json").write_text('{"skipped": ["Cannot read the picture /data/acme/1.png: cut off."]}')
    push_folder(saved, "user/model")
    text = hub.files("user/model")["training_config.yaml"].decode()
    assert text == "data_dir: '.../photos'\nnote: '***'\nother: '~'\nseed: 3\n"
    metrics = json.loads(hub.files("user/model")["metrics.json"])
    assert metrics == {"skipped": ["Cannot read the picture .../1.png: cut off."]}
    assert (saved / "training_config.yaml").read_text() == config


def test_what_an_earlier_push_left_does_not_stay(hub, littered):
    """Old shards would be loaded, and old photos would stay public."""
    push_folder(littered, "user/model")
    model = CorrMatchForSegmentation.from_pretrained(littered)
    with torch.no_grad():
        model.decoder.classify.bias += 1
    (littered / "model.safetensors").unlink()
    (littered / "samples" / "1.jpg").unlink()
    model.save_pretrained(littered, max_shard_size="200KB")
    push_folder(littered, "user/model")
    names = hub.files("user/model").keys()
    assert (
        "samples/1.jpg" not in names
        and "model.safetensors" not in names
        and len(hub.messages("user/model")) == 3
    )
    loaded = CorrMatchForSegmentation.from_pretrained("user/model")
    assert torch.equal(loaded.decoder.classify.bias, model.decoder.classify.bias)
    push_folder(littered, "user/model", inference_only=True)
    names = hub.files("user/model").keys()
    assert [n for n in names if n.startswith("model") and "safetensors" in n] == ["model.safetensors"]
    assert CorrMatchForSegmentation.from_pretrained("user/model").correlation is None


def test_somebody_elses_public_repository_is_refused_before_anything_is_sent(hub, saved):
    hub.add("stranger/model", {"README.md": b"theirs"})
    with pytest.raises(UploadError, match="no right to write"):
        push_folder(saved, "stranger/model")
    assert not [path for method, path in hub.requests if method == "PUT"]


def test_a_model_without_its_processor_is_refused(hub, saved):
    (saved / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"CorrMatchImageProcessor\(\)\.save_pretrained"):
        push_folder(saved, "user/model")


def test_the_same_folder_again_makes_no_commit(hub, saved):
    push_folder(saved, "user/model")
    push_folder(saved, "user/model")
    assert len(hub.messages("user/model")) == 2


def test_without_its_correlation_head_the_model_is_smaller_and_the_rest_is_the_same(hub, saved):
    push_folder(saved, "model", inference_only=True)
    files = hub.files("user/model")
    assert json.loads(files["config.json"])["correlation_head"] is False
    assert len(files["model.safetensors"]) < (saved / "model.safetensors").stat().st_size
    whole, slim = (
        CorrMatchForSegmentation.from_pretrained(saved),
        CorrMatchForSegmentation.from_pretrained("user/model"),
    )
    image = torch.rand(1, 3, 40, 50)
    with torch.no_grad():
        # Copied: weights mapped from a file lie at odd addresses, where some processors round otherwise.
        assert torch.equal(copy.deepcopy(whole)(image).logits, copy.deepcopy(slim)(image).logits)
    assert json.loads((saved / "config.json").read_text())["correlation_head"] is True


def test_a_private_model_never_lands_in_a_public_repository(hub, api, saved):
    api.create_repo("model")
    with pytest.raises(InputError, match="user/model exists on the Hub and is public"):
        push_folder(saved, "user/model", private=True)
    assert hub.messages("user/model") == ["initial commit"]
    push_folder(saved, "user/other", private=True)
    assert hub.repositories["model", "user/other"].private


def test_a_branch_is_made_and_the_main_one_left_alone(hub, saved):
    for _ in range(2):
        assert push_folder(saved, "user/model", revision="v2").endswith("/user/model/tree/v2")
    assert "model.safetensors" in hub.files("user/model", "v2")
    assert hub.files("user/model").keys() == {".gitattributes"}


WRONG_TOKENS = [
    ("hf_wrongwrongwrong", "hf auth login"),
    (OTHER_TOKEN, "no right to write"),
    (f"{TOKEN}\n", "Could not push"),  # as read from a file
]


@pytest.mark.parametrize("token, hint", WRONG_TOKENS)
def test_a_wrong_token_is_explained_and_not_shown(token, hint, hub, saved):
    with pytest.raises(UploadError) as raised:
        push_folder(saved, "user/model", token=token)
    assert raised.value.__cause__ is None
    assert hint in str(raised.value) and token.strip() not in str(raised.value)
    assert f"Try again: {retry_command(saved, 'user/model')}" in str(raised.value)


def test_a_push_cut_off_half_way_is_repeated_with_the_command_it_names(hub, saved, capsys):
    hub.cut_uploads_after = 100_000
    with pytest.raises(UploadError, match=r"Try again: corrmatch push") as raised:
        push_folder(saved, "user/model", private=True, revision="v 2")
    assert "model.safetensors" not in hub.files("user/model", "v 2") and TOKEN not in str(raised.value)
    hub.cut_uploads_after = None
    main(shlex.split(str(raised.value).split("Try again: corrmatch push ")[1]))
    assert "published: " in capsys.readouterr().out
    assert hub.files("user/model", "v 2")["model.safetensors"] == (saved / "model.safetensors").read_bytes()


def test_a_folder_without_a_model_is_refused_before_anything_is_asked(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, words in (
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "empty", "contains no saved model"),
    ):
        with pytest.raises(InputError, match=words):
            push_folder(folder, "user/model")
    assert not hub.requests


def test_an_impossible_name_is_explained(hub, saved):
    with pytest.raises(UploadError, match="a/b/c"):
        push_folder(saved, "a/b/c")
    assert not hub.repositories
