"""Crop sizes and encoders: what fits trains, what does not is refused before the first step."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from corrmatch_hf import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.errors import InputError


def small_vit(data, decoder="dpt"):
    return CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="test_vit",
            encoder_kwargs={"depth": 4, "embed_dim": 48, "num_heads": 3},
            decoder_type=decoder,
            decoder_channels=8,
            correlation_head=False,
            id2label=data.id2label,
            label2id={v: k for k, v in data.id2label.items()},
        )
    )


def fixed_size_model(data):
    """CoAtNet takes images of its own size only."""
    return CorrMatchForSegmentation(
        CorrMatchConfig(
            encoder_name="coatnet_pico_rw_224",
            output_stride=32,
            id2label=data.id2label,
            encoder_kwargs={"depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "img_size": 64},
            correlation_head=False,
        )
    )


def test_one_feature_of_one_image_is_refused(make_trainer):
    with pytest.raises(InputError, match="--crop_size 16 gives a single feature"):
        make_trainer(crop_size=16, per_device_batch_size=1)
    make_trainer(crop_size=16, per_device_batch_size=2)


def test_refusals_before_the_first_step(make_trainer, tiny_data):
    with pytest.raises(InputError, match="--method supervised"):
        make_trainer(data=dataclasses.replace(tiny_data, unlabeled=None))
    with pytest.raises(InputError, match="--crop_size 4"):
        make_trainer(crop_size=4, model=fixed_size_model(tiny_data), method="supervised")
    with pytest.raises(InputError, match="classes"):
        other = dataclasses.replace(tiny_data, id2label={**tiny_data.id2label, 5: "star"})
        make_trainer(data=other, model=make_trainer().method.model)
    with pytest.raises(InputError, match="ignore"):
        other = dataclasses.replace(tiny_data, ignore_index=254)
        make_trainer(data=other, model=make_trainer().method.model)


@pytest.mark.parametrize("crop, given", [(33, "32 or 48"), (47, "32 or 48"), (7, "16 or 32")])
def test_a_crop_that_is_no_whole_number_of_patches_is_refused(make_trainer, tiny_data, crop, given):
    """It would be resized in every step, and no pixel would lie where it was."""
    with pytest.raises(
        InputError, match=f"--crop_size is {crop}, not a multiple of 16, .*'test_vit'; give {given}"
    ):
        make_trainer("unimatch_v2", model=small_vit(tiny_data), crop_size=crop)


def test_a_transformer_trains_resumes_and_is_saved(make_trainer, tiny_data):
    settings = {
        "crop_size": 48, "optimizer": "adamw", "layer_decay": 0.7, "cutmix_partner": "reversed", "save_steps": 2
    }  # fmt: skip
    whole = make_trainer("unimatch_v2", model=small_vit(tiny_data), **settings)
    result = whole.train()
    assert 0 <= result["final"]["mean_iou"] <= 1
    saved = AutoModelForSemanticSegmentation.from_pretrained(whole.output_dir)
    for key, value in whole.method.teacher.network.state_dict().items():
        assert torch.equal(saved.state_dict()[key], value), key
    resumed = make_trainer(
        "unimatch_v2", model=small_vit(tiny_data), **settings,
        resume_from_checkpoint=str(whole.output_dir / "checkpoints" / "step_00000002"),
    )  # fmt: skip
    resumed.train()
    for key, value in whole.method.state_dict().items():
        assert torch.equal(resumed.method.state_dict()[key], value), key
    with pytest.raises(InputError, match="decoder is 'dpt' there and 'linear' here"):
        make_trainer(
            "unimatch_v2",
            model=small_vit(tiny_data, decoder="linear"),
            resume_from_checkpoint="latest",
            **settings,
        ).train()
    for changed, named in (
        (
            {"freeze_encoder": True, "layer_decay": None},
            "freeze_encoder is False there and True here, layer_decay is",
        ),
        ({"layer_decay": 0.9}, "layer_decay is 0.7 there and 0.9 here"),
    ):
        with pytest.raises(InputError, match=named):
            make_trainer(
                "unimatch_v2",
                model=small_vit(tiny_data),
                resume_from_checkpoint="latest",
                **settings | changed,
            ).train()


def test_an_encoder_of_one_size_trains_on_crops_of_it_and_is_evaluated_on_any(make_trainer, tiny_data):
    def model():
        return CorrMatchForSegmentation(
            CorrMatchConfig(
                encoder_name="beit_base_patch16_224",
                encoder_kwargs={"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 48},
                decoder_type="linear",
                correlation_head=False,
                id2label=tiny_data.id2label,
                label2id={v: k for k, v in tiny_data.id2label.items()},
            )
        )

    result = make_trainer("supervised", model=model(), crop_size=48, max_steps=1).train()
    assert 0 <= result["final"]["mean_iou"] <= 1
    with pytest.raises(
        InputError, match=r"--crop_size is 64, but .* only images of 48x48 pixels; give 48, or .*: 64\}"
    ):
        make_trainer("supervised", model=model(), crop_size=64, max_steps=1)


def test_one_image_of_one_patch_trains_where_there_is_no_batch_norm(make_trainer, tiny_data):
    trainer = make_trainer(
        "supervised", model=small_vit(tiny_data), crop_size=16, max_steps=1, per_device_batch_size=1
    )
    assert 0 <= trainer.train()["final"]["mean_iou"] <= 1
