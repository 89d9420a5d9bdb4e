"""A run whose strong views are made by the training process is the run whose loading processes make them."""

import pytest
import torch

from corrmatch_hf.data.device_color import UncoloredViews


@pytest.mark.parametrize("method, workers", [("corrmatch", 2), ("unimatch", 0)])
def test_a_run_is_the_same_and_resumes(make_trainer, tmp_path, monkeypatch, method, workers):
    made = []
    pictures = UncoloredViews.pictures

    def noted(self, *args):
        made.append(len(self.crops))
        return pictures(self, *args)

    monkeypatch.setattr(UncoloredViews, "pictures", noted)

    def run(folder, **options):
        options = {"num_workers": workers, "cutmix_partner": "batch", "save_steps": 2} | options
        trainer = make_trainer(method, output_dir=str(tmp_path / folder), **options)
        trainer.train()
        return trainer

    plain = run("plain")
    assert not made
    ours = run("ours", recolor_on_device=True)
    assert len(made) == 4  # steps
    resumed = run(
        "resumed",
        recolor_on_device=True,
        resume_from_checkpoint=str(ours.output_dir / "checkpoints" / "step_00000002"),
    )
    assert len(made) == 6
    want = plain.method.state_dict()
    for trainer in (ours, resumed):
        found = trainer.method.state_dict()
        assert found.keys() == want.keys()
        assert all(torch.equal(found[name], want[name]) for name in want)
