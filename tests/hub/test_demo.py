"""`corrmatch demo`: what the folder contains, what it costs to have a smaller file, and the Space on the Hub."""

import json
import shutil

import numpy as np
import onnx
import pytest
import yaml
from PIL import Image

from corrmatch_hf.commands import run
from corrmatch_hf.errors import InputError
from corrmatch_hf.evaluation.export import onnx_runtime
from corrmatch_hf.evaluation.onnx_weights import agreement, shrink_weights
from corrmatch_hf.hub.demo import runtime
from corrmatch_hf.hub.load import load_saved

from ..conftest import ID2LABEL


@pytest.fixture(scope="module")
def runtime_folder(tmp_path_factory):
    """Files of these names; what is in them only matters to a browser."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in runtime.FILES:
        (folder / name).write_bytes(b"-")
    return folder


@pytest.fixture(scope="module")
def trained(saved_model, tmp_path_factory):
    """A model's folder as a run leaves it: with facts and sample photos."""
    folder = tmp_path_factory.mktemp("run") / "mine"
    shutil.copytree(saved_model, folder)
    run_facts = {"encoder_name": "test_resnet", "output_stride": 16, "id2label": ID2LABEL, "license": "mit"}
    (folder / "run.json").write_text(json.dumps({"run": run_facts}))
    (folder / "samples").mkdir()
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    small.resize((160, 120), Image.Resampling.BICUBIC).save(folder / "samples" / "1.jpg")
    return folder


@pytest.fixture(scope="module")
def demo(trained, runtime_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "page"
    assert run("demo", [str(trained), "--output", str(folder), "--runtime", str(runtime_folder)]) == 0
    return folder


@pytest.fixture
def quick_export(demo, monkeypatch):
    """The file of `demo` instead of the export of the same model, which takes seconds."""

    def copy(model, processor, output, *args, **kwargs):
        shutil.copyfile(demo / "model.onnx", output)

    monkeypatch.setattr("corrmatch_hf.hub.demo.export_model", copy)


def test_the_folder_is_a_static_space_with_all_that_the_page_needs(demo):
    facts = json.loads((demo / "demo.json").read_text())
    assert facts["names"] == list(ID2LABEL.values()) and len(facts["palette"]) == len(ID2LABEL)
    assert facts["model_bytes"] == (demo / "model.onnx").stat().st_size
    assert facts["samples"] == ["samples/1.jpg"] and (demo / "samples" / "1.jpg").is_file()
    assert facts["processor"]["size"] == {"height": 512, "width": 512} and not facts["processor"]["do_resize"]
    assert {file.name for file in (demo / "runtime").iterdir()} == set(runtime.FILES)
    _, front, _ = (demo / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["sdk"] == "static" and (demo / front["app_file"]).is_file()
    assert front["title"] == "mine" and front["license"] == "mit"
    assert "<title>mine</title>" in (demo / "index.html").read_text()


@pytest.mark.parametrize(("precision", "size"), [("float16", 0.65), ("int8", 0.45)])
def test_smaller_weights_change_hardly_a_pixel(demo, trained, tmp_path, precision, size):
    small = tmp_path / "small.onnx"
    shutil.copyfile(demo / "model.onnx", small)
    shrink_weights(small, precision)
    onnx.checker.check_model(small)
    assert small.stat().st_size < size * (demo / "model.onnx").stat().st_size
    model, processor = load_saved(str(trained))
    share = agreement(model, processor, onnx_runtime(small), [Image.open(trained / "samples" / "1.jpg")])
    assert 0.97 < share <= 1


def test_a_smaller_precision_is_measured_and_stated(quick_export, trained, runtime_folder, tmp_path, capsys):
    folder = tmp_path / "page"
    options = ["--output", str(folder), "--runtime", str(runtime_folder), "--precision", "int8"]
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("samples"))
    assert run("demo", [str(bare), *options]) == 1
    assert "has no sample photos" in capsys.readouterr().err and not folder.exists()
    assert run("demo", [str(bare), *options, "--photos", str(trained / "samples")]) == 0
    note = json.loads((folder / "demo.json").read_text())["precision_note"]
    assert note.startswith("With int8 weights, 9") or note.startswith("With int8 weights, 100")
    assert note in capsys.readouterr().out and note in (folder / "README.md").read_text()


def test_the_demo_is_published_as_a_static_space(
    hub, quick_export, trained, runtime_folder, tmp_path, capsys
):
    hub.add("user/page", {"samples/old.jpg": b"-", "notes.txt": b"-"}, "space")
    folder = tmp_path / "page"
    arguments = [
        str(trained),
        "--output",
        str(folder),
        "--runtime",
        str(runtime_folder),
        "--push",
        "user/page",
    ]
    assert run("demo", arguments) == 0
    assert f"published: {hub.url}/spaces/user/page" in capsys.readouterr().out
    names = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert hub.files("user/page", repo_type="space").keys() == names | {"notes.txt"}

    hub.fail["/preupload/"] = 403
    assert run("demo", arguments) == 1
    assert "Could not push" in (said := capsys.readouterr().err) and "repeat the command" in said


def test_a_folder_of_something_else_is_not_overwritten(trained, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("-")
    assert run("demo", [str(trained), "--output", str(tmp_path)]) == 1
    assert "holds no demo" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_downloaded_is_what_was_pinned(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    package = tmp_path / "registry" / "onnxruntime-web" / "-" / f"onnxruntime-web-{runtime.VERSION}.tgz"
    monkeypatch.setenv("npm_config_registry", (tmp_path / "registry").as_uri())
    with pytest.raises(InputError, match=r"could not be downloaded .* --runtime"):
        runtime.find_runtime()
    package.parent.mkdir(parents=True)
    package.write_bytes(b"something else")
    with pytest.raises(InputError, match="not the file that was expected"):
        runtime.find_runtime()

    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in runtime.FILES:
        (dist / name).write_text(name)
    shutil.make_archive(str(tmp_path / "archive"), "gztar", tmp_path, "package")
    shutil.copyfile(tmp_path / "archive.tar.gz", package)
    digest = runtime.checksum(package.read_bytes())
    monkeypatch.setattr(runtime, "SHA512", digest)
    assert [file.read_text() for file in runtime.find_runtime()] == list(runtime.FILES)
    package.unlink()  # once is enough
    assert len(runtime.find_runtime()) == len(runtime.FILES)
    assert runtime.find_runtime(tmp_path)[0] == dist / runtime.FILES[0]
    with pytest.raises(InputError, match=r"--runtime .*npm pack"):
        runtime.find_runtime(tmp_path / "home")
