"""Connections that break: nothing half is ever in use, and doing it again helps."""

from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from corrmatch_hf import CorrMatchForSegmentation
from corrmatch_hf.errors import InputError
from corrmatch_hf.hub.load import load_saved

from .conftest import tiny_model


def test_an_upload_cut_off_half_way_changes_nothing_and_can_be_repeated(hub, api, saved):
    api.create_repo("model")
    before = hub.files("user/model")
    hub.cut_uploads_after = 100_000
    with pytest.raises(Exception, match=r"(?i)connection|disconnected|broken|error while uploading"):
        api.upload_folder(repo_id="user/model", folder_path=saved)
    assert hub.files("user/model") == before and hub.messages("user/model") == ["initial commit"]

    hub.cut_uploads_after = None
    api.upload_folder(repo_id="user/model", folder_path=saved)
    weights = (saved / "model.safetensors").read_bytes()
    assert hub.files("user/model")["model.safetensors"] == weights and len(hub.messages("user/model")) == 2


def test_a_download_cut_off_half_way_goes_on_where_it_stopped(hub):
    content = bytes(range(256)) * 90_000  # the client keeps what it has got in pieces of 10 MB
    hub.add("user/model", {"model.safetensors": content})
    hub.cut_downloads_after = 11_000_000
    path = Path(hf_hub_download("user/model", "model.safetensors"))
    assert path.read_bytes() == content
    parts = [path for method, path in hub.requests if method == "GET" and path.endswith("model.safetensors")]
    assert len(parts) == 3


@pytest.mark.parametrize("enough_for", ["nothing", "the config"])
def test_a_download_that_breaks_off_leaves_no_half_file_in_use(enough_for, hub, saved, tmp_path):
    model = tiny_model()
    hub.add("user/model", {path.name: path.read_bytes() for path in saved.iterdir()})
    hub.cut_downloads_after = 500 if enough_for == "nothing" else 100_000
    with pytest.raises(Exception, match=r"(?i)user/model|connection|closed|incomplete"):
        CorrMatchForSegmentation.from_pretrained("user/model")
    with pytest.raises(InputError, match="user/model"):
        load_saved("user/model")
    whole = {path.name for path in (tmp_path / "home" / "hub").glob("*/snapshots/*/*")}
    assert whole == (set() if enough_for == "nothing" else {"config.json"})

    hub.cut_downloads_after = None
    loaded = CorrMatchForSegmentation.from_pretrained("user/model").state_dict()
    assert all((loaded[key] == value).all() for key, value in model.state_dict().items())
