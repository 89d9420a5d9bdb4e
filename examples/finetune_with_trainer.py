"""Supervised fine-tuning with transformers' Trainer, as of any segmentation model of transformers.

    python examples/finetune_with_trainer.py            # about a minute on two CPU cores; results in outputs/trainer

For training with unlabelled photos, too, see `train_semi.py`.
"""

import torch
from transformers import Trainer, TrainingArguments

from corrmatch_hf import (
    CorrMatchConfig,
    CorrMatchForSegmentation,
    CorrMatchImageProcessor,
    load_semi_dataset,
)
from corrmatch_hf.evaluation import ConfusionMatrix


def main(output_dir: str = "outputs/trainer", **changed) -> dict:
    # Arguments
    options = {
        "max_steps": 100, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "lr_scheduler_type": "polynomial",
        "eval_strategy": "steps", "eval_steps": 50, "save_steps": 50, "logging_steps": 10, "report_to": [],
        "remove_unused_columns": False, "eval_accumulation_steps": 1, "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip
    arguments = TrainingArguments(output_dir, **options | changed)

    # Dataset: a photo and its mask become pixel_values (3, H, W) and labels (H, W)
    data = load_semi_dataset("synthetic")
    processor = CorrMatchImageProcessor(do_resize=True, size={"height": 64, "width": 64})

    def prepare(rows):
        return processor(rows["image"], rows["label"], return_tensors="pt")

    # Model
    config = CorrMatchConfig(
        encoder_name="mobilenetv2_100", aspp_channels=64, decoder_channels=64, id2label=data.id2label
    )
    model = CorrMatchForSegmentation(config)

    def compute_metrics(evaluated):
        logits, labels = evaluated
        matrix = ConfusionMatrix(data.num_labels, data.ignore_index)
        matrix.update(torch.from_numpy(logits).argmax(1), torch.from_numpy(labels))
        result = matrix.compute(data.id2label)
        return {"mean_iou": result["mean_iou"], "pixel_accuracy": result["pixel_accuracy"]}

    # Train
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data.labeled.with_transform(prepare),
        eval_dataset=data.validation.with_transform(prepare),
        processing_class=processor,
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    trainer.save_model()
    return trainer.evaluate()


if __name__ == "__main__":
    print(main())
