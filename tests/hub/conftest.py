"""A loopback Hub, and the real clients, in this process or in one without this package."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor

from .loopback_hub import TOKEN, LoopbackHub

SECONDS = 240  # for a process, on a busy machine
NOWHERE = "http://127.0.0.1:9"  # a proxy for https: whatever is asked of the real Hub fails


@pytest.fixture(scope="session")
def hub_server():
    """One for all tests, since some clients keep the address for as long as they live."""
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture
def hub(hub_server):
    """An empty Hub in working order."""
    hub_server.reset()
    return hub_server


@pytest.fixture
def api(hub):
    """The Hub's client of the owner of the token."""
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def online(hub, tmp_path, monkeypatch):
    """This process talks to the loopback Hub, as somebody who is logged in, with an empty cache."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        transformers.utils.hub, "_hf_api", None, raising=False
    )  # keeps the address it first had
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def _online(online):
    """In this folder, always."""


@pytest.fixture
def online_datasets(online, hub, tmp_path, monkeypatch):
    """`datasets` too, which copies these settings when it is imported."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "home" / "datasets")
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the process of a stranger: the number of threads changes the order of sums, hence the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_as_stranger(hub, tmp_path):
    """Runs a Python script where this package does not exist, in an empty folder, against the loopback Hub."""

    def run(script: str, *args: str, **environment: str) -> str:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON", "TRANSFORMERS_"))}
        env |= {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "HTTPS_PROXY": NOWHERE,
            # The interpreter without its environment, and the libraries as a plain folder: the .pth file through which
            # an editable installation is found is not read there.
            "PYTHONPATH": sysconfig.get_path("purelib"),
        }  # fmt: skip
        python = getattr(sys, "_base_executable", sys.executable)
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        result = subprocess.run(
            [python, "-c", f"{ABSENT}\n{script}", *args], cwd=folder, env=env | environment, capture_output=True,
            text=True, timeout=SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout

    return run


# Where the package is installed for good, among the libraries, it is hidden.
ABSENT = """\
import importlib.util, sys
if importlib.util.find_spec("corrmatch_hf"):
    sys.modules["corrmatch_hf"] = None
try:
    import corrmatch_hf
except ImportError:
    pass
else:
    sys.exit("corrmatch_hf is there")
"""


def tiny_model(**options) -> CorrMatchForSegmentation:
    torch.manual_seed(0)
    small = {"aspp_channels": 16, "low_level_channels": 8, "decoder_channels": 16, "correlation_channels": 16}
    classes = {0: "sky", 1: "road", 2: "car"}
    return CorrMatchForSegmentation(
        CorrMatchConfig(**{"encoder_name": "test_resnet", "id2label": classes, **small, **options})
    ).eval()


@pytest.fixture(scope="session")
def _saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_model().save_pretrained(folder)
    CorrMatchImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def saved(_saved, tmp_path) -> Path:
    """The folder of a small model with a correlation head, for this test alone."""
    return Path(shutil.copytree(_saved, tmp_path / "saved"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """The client waits up to eight seconds between its attempts; here it need not."""
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
