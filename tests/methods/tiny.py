"""Models, batches and hand-made predictions that are small enough for tests."""

import torch

from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.methods import method_class
from corrmatch_hf.methods.pseudo_labels import PseudoLabels
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation


def tiny_model(num_labels=5, **config):
    config = {"encoder_name": "test_resnet", "output_stride": 16, "aspp_channels": 16, "decoder_channels": 16,
              "low_level_channels": 8, "correlation_channels": 16} | config  # fmt: skip
    return CorrMatchForSegmentation(CorrMatchConfig(num_labels=num_labels, **config))


def tiny_vit(decoder="dpt", **config):
    return tiny_model(
        encoder_name="test_vit",
        encoder_kwargs={"depth": 4, "embed_dim": 48, "num_heads": 3},
        output_stride=None,
        decoder_type=decoder,
        decoder_channels=8,
        **config,
    )


def tiny_method(name, model=None, seed=0, **options):
    """In training mode. DGCL gets a small memory and starts with unlabelled images at once."""
    cls = method_class(name)
    if name == "dgcl":
        small = {"dgcl_memory_size": 40, "dgcl_projection_channels": 8, "dgcl_supervised_share": 0.0}
        options = small | options
    return cls(tiny_model() if model is None else model, cls.Options(**options), seed=seed).train()


def random_batch(step=0, labeled=2, unlabeled=2, size=49, num_labels=5, rows=(1,), seed=0, views=1):
    generator = torch.Generator().manual_seed(seed)

    def images(n, *more):
        return torch.randn(n, *more, 3, size, size, generator=generator)

    box = torch.zeros(unlabeled, views, size, size, dtype=torch.bool)
    for view in range(views):
        box[list(rows), view, 8 + 3 * view : 30, 5 : 25 + view] = True
    valid = torch.ones(unlabeled, size, size, dtype=torch.bool)
    valid[:, 40:] = False
    return SemiBatch(
        step=step,
        image=images(labeled),
        label=torch.randint(0, num_labels, (labeled, size, size), generator=generator),
        weak=images(unlabeled),
        strong=images(unlabeled, views),
        valid=valid,
        box=box,
        partner_rows=list(rows),
        partner_weak=images(len(rows)),
        partner_valid=torch.ones(len(rows), size, size, dtype=torch.bool),
        labeled_files=["x.jpg"] * labeled,
        unlabeled_files=["u.jpg"] * unlabeled,
    )


def batch_for(name, step=0, **arguments):
    """A random batch with as many strong views as the method wants."""
    return random_batch(step, views=max(method_class(name).strong_views, 1), **arguments)


def logits_of(probabilities):
    """Probabilities of class 1 (N, H, W) -> logits (N, 2, H, W)."""
    p = torch.tensor(probabilities)
    return torch.stack([torch.log(1 - p), torch.log(p)], dim=1)


def targets(label, *boxes, valid=None):
    """A batch of labels (N, H, W) and one box (N, H, W) per strong view, without pictures."""
    box = torch.stack(boxes, dim=1) if boxes else None
    return SemiBatch(step=0, image=None, label=label, box=box, valid=valid)


def pseudo(logits, valid=None):
    """Pseudo-labels of logits (N, K, H, W); everything is valid by default."""
    return PseudoLabels.of(
        logits, torch.ones_like(logits[:, 0], dtype=torch.bool) if valid is None else valid
    )


def slow_unlabeled(weak, strong, partner, valid, partner_valid, box, threshold):
    """The loss of FixMatch and UniMatch against confident pseudo-labels, pixel by pixel."""
    total, count = 0.0, 0
    n, _, height, width = weak.shape
    for i in range(n):
        for y in range(height):
            for x in range(width):
                inside = bool(box[i, y, x])
                source = (partner if inside else weak)[i, :, y, x].softmax(0)
                if not (partner_valid if inside else valid)[i, y, x]:
                    continue
                count += 1
                if source.max() >= threshold:
                    total -= strong[i, :, y, x].log_softmax(0)[source.argmax()].item()
    return total / max(count, 1)
