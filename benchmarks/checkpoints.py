"""What a checkpoint costs: CorrMatch with SGD on a ResNet-101, against `torch.save` of the same tensors alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation, SemiSupervisedTrainer, TrainingConfig
from corrmatch_hf.data.sources.synthetic import synthetic_semi_dataset
from corrmatch_hf.methods import CorrMatch

from .measure import Row, milliseconds


def rows(device: str, encoder_name: str = "resnet101") -> Iterator[Row]:
    data = synthetic_semi_dataset(labeled=4, unlabeled=4, validation=0)
    model = CorrMatchForSegmentation(CorrMatchConfig(encoder_name=encoder_name, id2label=data.id2label))
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(max_steps=10**6, crop_size=65, output_dir=folder)
        trainer = SemiSupervisedTrainer(CorrMatch(model), data, config)
        for parameter in trainer.method.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()  # fills the momentum

        def plain() -> None:
            state = trainer.method.state_dict(), trainer.optimizer.state_dict()
            torch.save(state, Path(folder, "plain.pt"))

        def ours() -> None:
            trainer.step += 1
            with redirect_stdout(StringIO()):
                trainer.save_checkpoint()

        times = milliseconds(plain, ours, device, 3)
        what = f"checkpoint of CorrMatch on {encoder_name}, against torch.save of its tensors"
        yield Row(f"{what}: time", *times, "ms", None, None, "with checksums, and two kept")
        newest = max(Path(folder, "checkpoints").iterdir())
        sizes = (
            Path(folder, "plain.pt").stat().st_size,
            sum(file.stat().st_size for file in newest.iterdir()),
        )
        yield Row(f"{what}: size", *(size / 2**20 for size in sizes), "MiB", None)
