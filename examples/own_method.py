"""A complete training method of your own: entropy minimisation on the built-in synthetic data.

    python examples/own_method.py                  # about a minute on two CPU cores; results in outputs/own_method

The labelled images teach the classes; on the unlabelled ones, the loss makes predictions confident.
`docs/own_method.md` explains the interface of a method.
"""

import sys
from dataclasses import dataclass

import torch

from corrmatch_hf import (
    CorrMatchConfig,
    CorrMatchForSegmentation,
    SemiSupervisedTrainer,
    TrainingConfig,
    load_semi_dataset,
)
from corrmatch_hf.distributed import per_process
from corrmatch_hf.errors import InputError
from corrmatch_hf.methods.base import Method, MethodOptions
from corrmatch_hf.ops.losses import masked_mean
from corrmatch_hf.options import option


@dataclass
class EntropyOptions(MethodOptions):
    entropy_weight: float = option(0.1, "Weight of the entropy of unlabelled images.", at_least=0)


class EntropyMinimisation(Method):
    """L = cross-entropy on labelled images + weight * mean entropy of the predictions on unlabelled ones."""

    name = "entropy"
    Options = EntropyOptions
    strong_views = 0  # the weak views alone

    def forward(self, batch):
        logits = self.model(torch.cat([batch.image, batch.weak])).logits
        count = len(batch.image)
        labeled = self.labeled_loss(logits[:count], batch.label)
        log_p = logits[count:].float().log_softmax(1)
        entropy = masked_mean(-(log_p.exp() * log_p).sum(1), batch.valid, per_process(batch.valid.sum()))
        total = labeled + self.options.entropy_weight * entropy
        return total, {"loss/x": labeled.detach(), "loss/entropy": entropy.detach()}


def main(max_steps: int = 300, output_dir: str = "outputs/own_method") -> dict:
    # Arguments
    options = TrainingConfig(
        output_dir=output_dir, max_steps=max_steps, per_device_batch_size=8, crop_size=65, scale_min=0.6,
        scale_max=1.2, optimizer="adamw", learning_rate=0.002, head_lr_multiplier=1, eval_batch_size=10,
    )  # fmt: skip

    # Dataset
    data = load_semi_dataset("synthetic")

    # Model and method
    torch.manual_seed(0)
    config = CorrMatchConfig(
        encoder_name="test_resnet", output_stride=8, aspp_channels=32, decoder_channels=32, correlation_head=False,
        id2label=data.id2label,
    )  # fmt: skip
    method = EntropyMinimisation(CorrMatchForSegmentation(config))

    # Training
    return SemiSupervisedTrainer(method, data, options).train()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
