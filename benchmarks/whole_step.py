"""A whole CorrMatch step - forward passes, losses, backward, optimiser - against a plain form of the same step.

The plain form is written as one writes the paper down: contiguous float32; the whole n x n correlation matrix of all
images; shapes of all images at full resolution; nested loops over images, shapes and classes; boolean indexing for
CutMix and the threshold; the partner's pass for all images; every loss read back for the log.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from corrmatch_hf.data.batch import SemiBatch
from corrmatch_hf.methods import CorrMatch
from corrmatch_hf.methods.feature_perturbation import with_dropped_channels
from corrmatch_hf.model import CorrMatchConfig, CorrMatchForSegmentation
from corrmatch_hf.ops.random_masks import stacked_channel_mask
from corrmatch_hf.training.optimizer import compile_networks

from .measure import Row, extra_mib, milliseconds
from .region_propagation import algorithm_1


class PlainStep:
    """CorrMatch's step, plainly. Random numbers are drawn as the method draws them, so that losses can be compared."""

    def __init__(self, method: CorrMatch):
        self.method = copy.deepcopy(method).to(memory_format=torch.contiguous_format)
        self.model, self.threshold = self.method.model, self.method.threshold.value.clone()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self, batch: SemiBatch, partners: Tensor, partners_valid: Tensor) -> dict[str, float]:
        """`partners` (N, 3, H, W) and `partners_valid` (N, H, W): of all images, with a box or not."""
        model, size, labeled = self.model, batch.weak.shape[-2:], len(batch.image)
        n, seed, step, config = len(batch.weak), self.method.seed, batch.step, self.model.config
        model.eval()
        with torch.no_grad():
            partner = model(partners).logits
        model.train()

        def head(features, decoded, logits, rows, use):
            mask = stacked_channel_mask(
                rows, config.correlation_channels, config.correlation_dropout, logits.device,
                seed=seed, step=step, use=use,
            )  # fmt: skip
            query, key = model.correlate(features, decoded, channel_mask=mask)
            scores = query.flatten(2).transpose(1, 2) @ key.flatten(2)
            matrix = (scores / math.sqrt(query.shape[1])).softmax(-1)  # (N, n, n)
            source = resized(logits.detach(), query.shape[-2:])
            return matrix, resized((source.flatten(2) @ matrix).unflatten(2, source.shape[-2:]), size)

        features = model.encode(torch.cat([batch.image, batch.weak]))
        both = with_dropped_channels(features, 0.5, (labeled, n), seed=seed, step=step)
        decoded_both = model.decode(both)
        decoded = type(decoded_both)(*(t[: labeled + n] for t in decoded_both))
        out, out_perturbed = resized(decoded_both.logits, size).split(labeled + n)
        matrix, corr = head(features, decoded, out, (labeled, n), "weak correlation")
        strong_features = model.encode(batch.strong[:, 0])
        strong_decoded = model.decode(strong_features)
        strong = resized(strong_decoded.logits, size)
        _, strong_corr = head(strong_features, strong_decoded, strong, (n,), "strong correlation")
        x, weak, perturbed = out[:labeled], out[labeled:], out_perturbed[labeled:]
        x_corr, weak_corr = corr[:labeled], corr[labeled:]

        # Shapes of all images at full resolution.
        grid = features.high.shape[-2:]
        index = self.method._shape_index(grid[0] * grid[1], step, out.device)
        maps = resized(matrix.detach()[:, index].unflatten(2, grid), size)
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        shapes = ((maps - low) / (high - low)) > 0.5

        box, valid = batch.box[:, 0], batch.valid
        conf_w, label_w = weak.detach().softmax(1).max(1)
        conf_m, label_m = partner.softmax(1).max(1)
        mixed_conf, mixed_label, mixed_valid = conf_w.clone(), label_w.clone(), valid.clone()
        mixed_conf[box] = conf_m[box]
        mixed_label[box] = label_m[box]
        mixed_valid[box] = partners_valid[box]
        shapes = shapes[labeled:] & (mixed_valid & ~box)[:, None]

        best = []
        probabilities = weak.detach().softmax(1).permute(0, 2, 3, 1)[mixed_valid]
        highest, winner = probabilities.max(1)
        for c in winner.unique():
            best.append(highest[winner == c].max())
        self.threshold = 0.999 * self.threshold + 0.001 * torch.stack(best).mean()
        tau = self.threshold

        confident_w = (conf_w >= tau) & valid
        confident = (mixed_conf >= tau) & mixed_valid
        labels, propagated = algorithm_1(mixed_label, confident, shapes, tau)
        n0, n1 = valid.sum().item(), mixed_valid.sum().item()

        def unlabeled(logits, target, mask, count):
            return (F.cross_entropy(logits, target, reduction="none") * mask).sum() / count

        kl = F.kl_div(strong.log_softmax(1), weak.detach().softmax(1), reduction="none").sum(1)
        terms = {
            "x": F.cross_entropy(x, batch.label, ignore_index=255),
            "x_corr": F.cross_entropy(x_corr, batch.label, ignore_index=255),
            "s": unlabeled(strong, labels, propagated, n1),
            "corr_s": unlabeled(strong_corr, labels, propagated, n1),
            "corr_w": unlabeled(weak_corr, label_w, confident_w, n0),
            "kl": (kl * confident).sum() / n1,
            "fp": unlabeled(perturbed, label_w, confident_w, n0),
        }
        t = terms
        total = (t["x"] + t["x_corr"]) / 4
        total = total + (t["s"] + t["kl"] + t["fp"]) / 8 + (t["corr_s"] + t["corr_w"]) / 16
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return {"total": total.item(), **{f"loss/{name}": value.item() for name, value in terms.items()}}


def resized(tensor: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=True)


class OurStep:
    """The package's step, as the trainer runs it."""

    def __init__(
        self, method: CorrMatch, bf16: bool = False, compiled: bool = False, channels_last: bool = True
    ):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.method, self.bf16 = copy.deepcopy(method).to(memory_format=layout).train(), bf16
        if compiled:
            compile_networks(self.method)
        self.optimizer = torch.optim.SGD(self.method.parameters(), lr=1e-4, momentum=0.9, fused=True)

    def __call__(self, batch: SemiBatch) -> dict[str, Tensor]:
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.bf16):
            total, logs = self.method(batch)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"total": total.detach(), **logs}

    def network_alone(self, batch: SemiBatch) -> None:
        """The same forward passes, backward and optimiser step, with nothing to do in between."""
        model = self.method.model
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.bf16):
            if batch.partner_rows:
                with torch.no_grad():
                    model.eval()
                    model.decode(model.encode(batch.partner_weak))
                    model.train()
            features = model.encode(torch.cat([batch.image, batch.weak]))
            rows = (len(batch.image), len(batch.weak))
            both = model.decode(with_dropped_channels(features, 0.5, rows, seed=0, step=batch.step))
            outputs = [both.logits, *model.correlate(features, type(both)(*(t[: sum(rows)] for t in both)))]
            strong = model.encode(batch.strong[:, 0])
            decoded = model.decode(strong)
            outputs += [decoded.logits, *model.correlate(strong, decoded)]
            total = sum(output.float().mean() for output in outputs)
        total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_batch(size: int, images: int, num_labels: int, device: str) -> tuple[SemiBatch, Tensor, Tensor]:
    """A batch with a box in every second image; the partners of all images, and which of their pixels are valid."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        """Smooth pictures: neighbouring pixels of a photo are alike."""
        coarse = torch.randn(math.prod(shape), 3, 12, 12, generator=generator)
        return resized(coarse, (size, size)).view(*shape, 3, size, size).to(device)

    partners = draw(images)
    partners_valid = torch.ones(images, size, size, dtype=torch.bool, device=device)
    rows = list(range(0, images, 2))
    box = torch.zeros(images, 1, size, size, dtype=torch.bool, device=device)
    box[rows, :, size // 4 : size // 2, size // 3 : 3 * size // 4] = True
    valid = torch.ones(images, size, size, dtype=torch.bool, device=device)
    valid[:, 7 * size // 8 :] = False
    label = torch.randint(0, num_labels, (images, 9, 9), generator=generator).float()[:, None]
    batch = SemiBatch(
        step=0,
        image=draw(images),
        label=F.interpolate(label, size=(size, size)).long()[:, 0].to(device),
        weak=draw(images),
        strong=draw(images, 1),
        valid=valid,
        box=box,
        partner_rows=rows,
        partner_weak=partners[rows],
        partner_valid=partners_valid[rows],
    )
    return batch, partners, partners_valid


def confident_method(encoder_name: str, num_labels: int, device: str, **config) -> CorrMatch:
    """CorrMatch at output stride 8, whose untrained network is as sure of itself as a trained one."""
    torch.manual_seed(0)
    config = CorrMatchConfig(encoder_name=encoder_name, output_stride=8, num_labels=num_labels, **config)
    model = CorrMatchForSegmentation(config)
    with torch.no_grad():
        model.decoder.classify.weight.mul_(8)
        model.correlation.query.weight.mul_(4)
    return CorrMatch(model).to(device).train()


def rows(
    device: str,
    encoder_name: str = "resnet101s",
    size: int = 321,
    images: int | None = None,
    repeats: int | None = None,
) -> Iterator[Row]:
    images = images or (8 if device == "cuda" else 2)
    repeats = repeats or (5 if device == "cuda" else 1)
    method = confident_method(encoder_name, 21, device)
    batch, partners, partners_valid = step_batch(size, images, 21, device)
    plain, ours = PlainStep(method), OurStep(method)
    on_gpu = device == "cuda"
    what = f"CorrMatch step, {encoder_name}, crop {size}, {images} + {images}"

    expected, found = plain(batch, partners, partners_valid), ours(batch)
    same = all(math.isclose(found[k].item(), v, rel_tol=1e-3, abs_tol=1e-5) for k, v in expected.items())
    kept = found["propagated_ratio"].item()
    note = f"losses within 1e-3; {100 * kept:.0f} % of the pixels kept"

    def reference_step() -> None:
        plain(batch, partners, partners_valid)

    def our_step() -> None:
        ours(batch)

    times = milliseconds(reference_step, our_step, device, repeats)
    yield Row(f"{what}, float32", *times, "ms", same, 1.5 if on_gpu else 1.2, note)
    memory = extra_mib(reference_step, device), extra_mib(our_step, device)
    yield Row(f"{what}, float32, memory", *memory, "MiB", same)
    ours = fast = OurStep(method, bf16=True, compiled=on_gpu)
    name = "bf16, channels_last, compiled" if on_gpu else "bf16, channels_last"
    times = milliseconds(reference_step, our_step, device, repeats)
    yield Row(f"{what}, {name}", *times, "ms", None, 4.0 if on_gpu else 2.5)
    times = milliseconds(lambda: fast.network_alone(batch), our_step, device, repeats)
    yield Row("the network's own passes against that step", *times, "ms", None, 0.9)
    if on_gpu:
        yield Row("host synchronisations in that step", waits(reference_step), waits(our_step), "", None)


def waits(call: Callable[[], object]) -> int:
    """How often a call makes the host wait for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)
