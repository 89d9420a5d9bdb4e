"""Two small models: a CNN with DeepLabV3+, a plain transformer with DPT."""

SMALL = {
    "num_labels": 3,
    "aspp_channels": 8,
    "low_level_channels": 4,
    "decoder_channels": 8,
    "correlation_channels": 8,
}
CNN = SMALL | {
    "encoder_name": "resnet18",
    "encoder_kwargs": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
}
VIT = SMALL | {
    "encoder_name": "vit_small_patch14_dinov2",
    "encoder_kwargs": {"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 56},
    "decoder_type": "dpt",
}
