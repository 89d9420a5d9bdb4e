"""Demo pages of small models, served on the loopback device, and a browser."""

import functools
import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, CorrMatchImageProcessor
from corrmatch_hf.errors import InputError

from ..browser import CHROMIUM, visitors

NAMES = ["background", "Geschwindigkeitsbeschränkungsschild", "Bäume & <b>Sträucher</b>", "road", "car_2"]
PROCESSORS = {
    "as_is": {},
    "resizing": {"do_resize": True, "size": {"shortest_edge": 120, "longest_edge": 200}, "image_std": [0.3, 0.2, 0.25]},
}  # fmt: skip


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured blotches with some noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((pixels + rng.integers(-8, 9, pixels.shape)).clip(0, 255).astype(np.uint8))


def tiny_model() -> CorrMatchForSegmentation:
    torch.manual_seed(1)
    config = CorrMatchConfig(
        encoder_name="test_resnet",
        id2label=dict(enumerate(NAMES)),
        aspp_channels=16,
        decoder_channels=16,
        correlation_head=False,
    )
    return CorrMatchForSegmentation(config).eval()


@pytest.fixture(scope="session")
def demos(tmp_path_factory) -> dict[str, Path]:
    """A demo for each of `PROCESSORS`."""
    from corrmatch_hf.hub.demo import processor_facts, write_demo
    from corrmatch_hf.hub.demo.runtime import find_runtime

    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    try:
        runtime = find_runtime()[0].parent
    except InputError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp("demos")
    sample = root / "sample.jpg"
    photo(160, 120, seed=7).save(sample)
    folders = {"as_is": root / "as_is", "resizing": root / "resizing"}
    write_demo(
        folders["as_is"],
        tiny_model(),
        CorrMatchImageProcessor(),
        title="Straßen & <Wege>",
        samples=[sample],
        runtime=runtime,
    )
    shutil.copytree(folders["as_is"], folders["resizing"])  # an export takes seconds
    facts = json.loads((folders["resizing"] / "demo.json").read_text(encoding="utf-8"))
    facts["processor"] = processor_facts(CorrMatchImageProcessor(**PROCESSORS["resizing"]))
    (folders["resizing"] / "demo.json").write_text(json.dumps(facts), encoding="utf-8")
    return folders


@pytest.fixture(scope="session")
def addresses(demos) -> dict[str, str]:
    servers = {}
    for name, folder in demos.items():
        handler = functools.partial(_Quiet, directory=str(folder))
        servers[name] = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=servers[name].serve_forever, args=(0.02,), daemon=True).start()
    yield {name: f"http://127.0.0.1:{server.server_port}/" for name, server in servers.items()}
    for server in servers.values():
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def visit(browser):
    """A function that opens an address as a new visitor and waits for the model."""
    with visitors(browser, {None, ""}) as open_page:

        def open_demo(*args, **options):
            page = open_page(*args, **options)
            page.wait_for_selector("body[data-runs-on]", timeout=60_000)
            return page

        yield open_demo
