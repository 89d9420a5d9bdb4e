"""The endpoint's handler under load, with the client and the server of benchmarks/endpoint_load.py; small."""

import contextlib
import sys
import threading
import time

import pytest
from PIL import Image

from benchmarks.endpoint_load import memory, requests, save_model, send, served, together
from corrmatch_hf.hub.handler import EndpointHandler

SIZES = ((64, 48), (97, 65), (200, 150))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads the server's memory from /proc")
def test_forty_requests_at_once_get_what_each_gets_alone(folder):
    kinds = requests(SIZES)
    batch = [kinds[i % len(kinds)] for i in range(40)]
    assert sum(each.bad for each in batch) >= 6
    with served(folder, threads=1) as (port, pid):
        alone = {each.body: send(port, each) for each in kinds}
        for each in kinds:
            assert alone[each.body].status == (400 if each.bad else 200)
        together(port, batch)  # warms up
        held = [memory(pid)]
        for _ in range(3):
            replies, _ = together(port, batch)
            held.append(memory(pid))
            for each, reply in zip(batch, replies, strict=True):
                expected = alone[each.body]
                assert (reply.status, reply.body) == (expected.status, expected.body)
    assert max(held) - held[0] < 60, f"MiB after each round: {held}"


@pytest.mark.parametrize("allowed", [1, 3])
def test_no_more_images_are_worked_on_at_once_than_allowed(folder, monkeypatch, allowed):
    monkeypatch.setenv("CORRMATCH_MAX_CONCURRENT", str(allowed))
    handler = EndpointHandler(folder)
    working, most = [], []

    def read(value, place):
        working.append(value)
        most.append(len(working))
        time.sleep(0.02)
        if value is None:
            working.pop()
            raise ValueError("bad")
        return value

    def segment(image, threshold):
        time.sleep(0.02)
        working.pop()
        return []

    monkeypatch.setattr(handler, "_read", read)
    monkeypatch.setattr(handler, "_segment", segment)
    photo = Image.new("RGB", (8, 8))

    def ask(i):
        with contextlib.suppress(ValueError):
            handler({"inputs": [photo, None] if i % 3 == 0 else photo})

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not any(thread.is_alive() for thread in threads)  # a refused image gives its place back
    assert max(most) == allowed and len(most) == 16
