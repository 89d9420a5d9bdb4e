"""The loopback Hub answers huggingface_hub as the real one does."""

from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .loopback_hub import OTHER_TOKEN, TOKEN, LoopbackHub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A model\n")
    (folder / "sub" / "notes.txt").write_text("notes")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


def test_what_is_uploaded_comes_back_in_one_commit(hub, api, folder, tmp_path):
    assert api.create_repo("model").repo_id == "user/model"
    api.upload_folder(repo_id="user/model", folder_path=folder, commit_message="all of it")
    assert hub.messages("user/model") == ["initial commit", "all of it"]
    assert any(path.startswith("/lfs/") for method, path in hub.requests if method == "PUT")
    assert sorted(api.list_repo_files("user/model")) == [
        ".gitattributes", "README.md", "model.safetensors", "sub/notes.txt",
    ]  # fmt: skip
    copy = snapshot_download("user/model", local_dir=tmp_path / "copy")
    for path in ("README.md", "sub/notes.txt", "model.safetensors"):
        assert (tmp_path / "copy" / path).read_bytes() == (folder / path).read_bytes(), copy
    info = api.model_info("user/model")
    assert info.library_name == "transformers" and not info.private
    assert [e.path for e in api.list_repo_tree("user/model", "sub")] == ["sub/notes.txt"]
    assert {e.path for e in api.list_repo_tree("user/model")} == {
        ".gitattributes",
        "README.md",
        "model.safetensors",
        "sub",
    }


def test_branches_and_old_commits_stay_readable(hub, api):
    api.create_repo("user/model")
    first = api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id="user/model")
    api.create_branch("user/model", branch="try/out")
    api.upload_file(path_or_fileobj=b"two", path_in_repo="a.txt", repo_id="user/model", revision="try/out")
    for revision, expected in (("main", "one"), ("try/out", "two"), (first.oid, "one")):
        assert Path(hf_hub_download("user/model", "a.txt", revision=revision)).read_text() == expected
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("user/model", branch="try/out")
    api.create_branch("user/model", branch="try/out", exist_ok=True)


def test_what_is_not_there_is_named(api):
    api.create_repo("user/model")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("user/nothing")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("user/model", "README.md", revision="nothing")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("user/model", "nothing.txt")


def test_private_repositories_and_foreign_names_are_closed(hub, api):
    api.create_repo("user/secret", private=True)
    assert api.model_info("user/secret").private
    for token in (OTHER_TOKEN, False):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.url, token=token).model_info("user/secret")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("stranger/model")
    api.create_repo("model")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(endpoint=hub.url, token=OTHER_TOKEN).upload_file(
            path_or_fileobj=b"", path_in_repo="a.txt", repo_id="user/model"
        )
    assert api.whoami()["name"] == "user"


def test_a_wrong_token_is_not_taken_for_a_missing_repository(hub, api):
    api.create_repo("model")
    wrong = HfApi(endpoint=hub.url, token="hf_wrong")
    for call in (wrong.model_info, wrong.create_repo, wrong.list_repo_files):
        with pytest.raises(HfHubHTTPError, match="401") as raised:
            call("user/model")
        assert not isinstance(raised.value, RepositoryNotFoundError)


def test_datasets_and_spaces_are_apart_from_models(hub, api):
    for kind in ("model", "dataset", "space"):
        api.create_repo("thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
        api.upload_file(
            path_or_fileobj=kind.encode(), path_in_repo="a.txt", repo_id="user/thing", repo_type=kind
        )
    for kind in ("model", "dataset", "space"):
        assert Path(hf_hub_download("user/thing", "a.txt", repo_type=kind)).read_text() == kind
        found = api.get_paths_info("user/thing", ["a.txt", "b.txt"], repo_type=kind)
        assert [entry.path for entry in found] == ["a.txt"]
        assert hub.files("user/thing", repo_type=kind)["a.txt"] == kind.encode()


def test_deleted_files_and_folders_are_gone_from_then_on(hub, api, folder):
    api.create_repo("model")
    whole = api.upload_folder(repo_id="user/model", folder_path=folder).oid
    api.delete_folder("sub", repo_id="user/model")
    api.delete_file("model.safetensors", repo_id="user/model")
    assert hub.files("user/model").keys() == {".gitattributes", "README.md"}
    assert hub.files("user/model", whole).keys() == {
        ".gitattributes", "README.md", "model.safetensors", "sub/notes.txt",
    }  # fmt: skip


def test_trouble_comes_where_it_is_asked_for_and_a_closed_hub_answers_nobody():
    server = LoopbackHub()
    api = HfApi(endpoint=server.url, token=TOKEN)
    api.create_repo("model")
    server.fail["/api/models/user/model"] = 418
    with pytest.raises(HfHubHTTPError, match="418"):
        api.model_info("user/model")
    assert api.whoami()["name"] == "user"
    server.close()
    with pytest.raises(httpx2.ConnectError):  # though the client had kept its connection
        api.whoami()


def test_parts_of_a_file_are_parts_of_a_file(hub, api, folder):
    api.create_repo("user/model")
    api.upload_folder(repo_id="user/model", folder_path=folder)
    url, whole = (
        f"{hub.url}/user/model/resolve/main/model.safetensors",
        (folder / "model.safetensors").read_bytes(),
    )
    for wanted, expected in (("5-9", whole[5:10]), ("10230-", whole[10230:]), ("-7", whole[-7:])):
        answer = httpx2.get(url, headers={"Range": f"bytes={wanted}"})
        assert answer.status_code == 206 and answer.content == expected
