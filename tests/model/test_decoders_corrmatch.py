import pytest
import torch

from corrmatch_hf.model import DeepLabV3PlusDecoder, resize


def make():
    return DeepLabV3PlusDecoder(
        low_channels=6, high_channels=10, num_labels=3, atrous_rates=[1, 2, 3], aspp_channels=8, channels=12
    )


@pytest.mark.parametrize("grid", [(1, 1), (3, 4)])
@pytest.mark.parametrize("images", [1, 2])
def test_steps_and_gradients_in_train_mode(images, grid):
    decoder = make().train()
    aspp = decoder.aspp(torch.randn(images, 10, *grid))
    fused = decoder.fuse(torch.randn(images, 6, 9, 13), aspp)
    logits = decoder.classify(fused)
    assert aspp.shape == (images, 8, *grid)
    assert fused.shape == (images, 12, 9, 13)
    assert logits.shape == (images, 3, 9, 13)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_single_image_uses_running_statistics_where_there_is_no_variance():
    decoder = make().train()
    pooled = decoder.aspp.pooled
    before = pooled.norm.running_mean.clone()
    one = torch.randn(1, 10, 1, 1)
    out = pooled(one)
    assert torch.equal(pooled.norm.running_mean, before)
    assert torch.equal(out, pooled.eval()(one))


def test_resize_aligns_corners():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    expected = torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]])
    assert torch.equal(resize(x, (3, 3))[0, 0], expected)
    big = torch.randn(1, 2, 97, 97)  # 8k + 1: every second pixel, bit for bit
    assert torch.equal(resize(big, (49, 49)), big[:, :, ::2, ::2])
