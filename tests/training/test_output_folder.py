"""The output folder: what stands there is replaced only when it may be."""

import pytest

from corrmatch_hf.errors import InputError
from corrmatch_hf.training.checkpoint import list_checkpoints
from corrmatch_hf.training.output_folder import CODE


def test_an_output_folder_with_a_run_is_not_touched(make_trainer):
    first = make_trainer(max_steps=1)
    first.train()
    before = (first.output_dir / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="--overwrite True"):
        make_trainer(max_steps=1).train()
    assert (first.output_dir / "model.safetensors").read_bytes() == before
    make_trainer(max_steps=2, overwrite=True).train()
    assert [p.name for p in list_checkpoints(first.output_dir / "checkpoints")] == ["step_00000002"]


def test_a_run_is_replaced_only_once_data_and_tracker_are_known_to_be_good(make_trainer, monkeypatch):
    first = make_trainer(max_steps=1)
    first.train()
    before = sorted((path, path.stat().st_mtime_ns) for path in first.output_dir.rglob("*"))

    def found_bad(*args, **kwargs):
        raise InputError("Cannot read the picture photo.png.")

    for place in ("preflight.check_dataset", "log.Tracker.start"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="Cannot read the picture"):
            patch.setattr(f"corrmatch_hf.training.{place}", found_bad)
            make_trainer(max_steps=1, overwrite=True, report_to="tensorboard").train()
    assert sorted((path, path.stat().st_mtime_ns) for path in first.output_dir.rglob("*")) == before
    make_trainer(max_steps=1, overwrite=True).train()


def test_files_of_others_are_never_deleted(make_trainer, tmp_path):
    notes = tmp_path / "run" / "README.md"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        make_trainer(max_steps=1, overwrite=True).train()
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("how", [{"resume_from_checkpoint": "latest"}, {"overwrite": True}])
def test_code_that_version_0_1_saved_goes_and_files_of_others_stay(make_trainer, how):
    folder = make_trainer(max_steps=1).output_dir
    make_trainer(max_steps=1).train()
    for name in ("encoder_weights_corrmatch.py", "own_corrmatch.py"):
        (folder / name).touch()
    make_trainer(max_steps=1, **how).train()
    assert {path.name for path in folder.glob("*_corrmatch.py")} == {*CODE, "own_corrmatch.py"}
