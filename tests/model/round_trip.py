"""A model that has been saved and loaded is the same to the last bit."""

import copy

import torch

from corrmatch_hf.model import CorrMatchForSegmentation


def learn(model: CorrMatchForSegmentation, size: tuple[int, int]) -> None:
    """One backward pass, in which every parameter that is trained gets a gradient, as data-parallel training needs."""
    labels = torch.randint(model.config.num_labels, (2, *size))
    model(torch.randn(2, 3, *size), labels=labels).loss.backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def assert_same_when_loaded(model: CorrMatchForSegmentation, size: tuple[int, int], folder) -> torch.Tensor:
    """The logits that both, in eval mode, give for one image of `size` in the model's precision."""
    model.eval().save_pretrained(folder)
    loaded = CorrMatchForSegmentation.from_pretrained(folder)
    for kind in ("named_parameters", "named_buffers"):  # buffers that are not saved, too
        ours, theirs = (dict(getattr(each, kind)()) for each in (model, loaded))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype, key
            assert ours[key].requires_grad == theirs[key].requires_grad, key
    image = torch.randn(1, 3, *size, dtype=model.dtype)
    # Copies, for the CPU's convolutions round differently on memory aligned differently.
    with torch.no_grad():
        logits, again = (copy.deepcopy(each)(image).logits for each in (model, loaded))
    assert torch.equal(logits, again)
    return logits
