"""DGCL: density-guided contrastive learning (CVPR 2023), a self-training with a teacher and a loss on features.

With f the student and g its moving average, three passes make one step:

    1. g on u_w and on u_m, the CutMix partner's weak view, in evaluation mode without gradient: pseudo-labels Y
       and their entropy
    2. f on [x; u_w; u_s], labelled images, weak views, and strong views with the partner's box pasted in
    3. the projection head on the decoder's features z of [x; u_w]: r, one vector for each pixel at stride 4

    r_t  = progress, from 0 to 1
    L_u  = N / N_kept  mean CE(f(u_s), Y) over the N_kept of N pixels whose entropy is not among the
           20 (1 - r_t) % highest
    L_c  = mean over classes c of the mean over anchors a of
           -log( exp(a.v / T) / (exp(a.v / T) + sum_n exp(a.n / T)) )           all vectors at length 1
    L    = L_x + 1/2 L_u + 1/2 L_c

With --inter_pixel_loss, its weighted term is added: f(u_s) against g, over the pixels that L_u keeps (see
`inter_pixel.py`).

The contrast uses the labels of x, and those of u_w except for the max(80 (1 - r_t), 10) % of highest entropy. A pixel's
density is its mean similarity to its 8, 16 and 32 nearest features in the memory of its class. For each class:

    anchors a      r of the 200 pixels of lowest density in the batch; only they get a gradient
    v              mean of r of the 50 densest pixels in the batch and the 50 densest in the memory
    negatives n    r of 512 pixels of the batch that belong to another class

A class takes part once its own memory is full. The published runs wait for all classes, so that one that never occurs
switches the contrast off for good. After the loss up to a tenth of each memory is replaced by pixels of the batch, with
the density they had. All draws and means are over the total batch of all processes.

Other differences from the published runs:
- The strong views are those of all methods here: colours are changed as well, and the box covers 2-40 % of the image
  instead of half; `cutmix_partner` chooses a second view or another image as the partner.
- The teacher is in evaluation mode, with an average of the student's BatchNorm statistics; theirs uses those of the
  batch, which makes the labels of an image depend on the other images of the batch.
- Entropy is ranked over the total batch instead of that of each process; the partner's pixels have the same threshold.
- The projection head sees [x; u_w]; theirs also sees u_s, which affects nothing but its BatchNorm.
- Negatives are searched among 4096 random pixels of the total batch, so there are fewer than 512 only where other
  classes make up less than an eighth of it.
- The teacher is what is evaluated and saved; they report the better of teacher and student.
- There is neither an auxiliary head (weight 0.4 on Cityscapes) nor dropout in the decoder.
- A stored density is 0 while the memory of its class has fewer than 32 entries, theirs up to 1000.
- With more than 21 classes a class's memory is smaller, and so is the number of pixels whose density is measured in a
  step, which is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import all_reduce, per_process
from ..errors import InputError
from ..evaluation.inference import evaluating
from ..model import resize
from ..model.decoders_corrmatch import ConvNormAct
from ..ops.dense_contrast import (
    NEIGHBOURS,
    NOTHING,
    best_of_all,
    draw_per_class,
    entropy,
    entropy_threshold,
    pixel_scores,
    prototype_contrast,
    take,
)
from ..ops.losses import masked_cross_entropy
from ..ops.random_masks import step_generator
from ..options import option
from .base import Logs, Method, loss_logs
from .citations import Citation
from .inter_pixel import InterPixelOptions, inter_pixel_terms
from .memory_bank import MemoryBank
from .pseudo_labels import PseudoLabels, partner_logits
from .teacher import Teacher

Sampling = Literal["density", "confidence", "random"]
POOL = 4096  # random pixels of the total batch among which every class finds its negatives
NO_CLASS = -1
UNLABELED_LOGS = ("loss/u", "loss/c", "kept_ratio", "ready_classes")


@dataclass
class DGCLOptions(InterPixelOptions):
    """The defaults are those of the published runs on VOC."""

    dgcl_total_steps: int | None = option(
        None, "Forward passes over which the entropy filters relax; by default those of the run.", at_least=1
    )
    dgcl_supervised_share: float = option(
        0.0125,
        "Share of --dgcl_total_steps on labelled images alone (VOC 1 of 80 epochs, Cityscapes 0.05).",
        at_least=0,
        at_most=1,
    )
    dgcl_teacher_decay: float = option(
        0.999, "Share of the teacher's weights kept by a step.", at_least=0, below=1
    )
    dgcl_label_drop: float = option(
        0.2,
        "Share of pixels without pseudo-label at the start; falls linearly to 0.",
        at_least=0,
        at_most=1,
    )
    dgcl_contrast_drop: float = option(
        0.8, "Share of unlabelled pixels left out of the contrast at the start.", at_least=0, at_most=1
    )
    dgcl_contrast_drop_least: float = option(
        0.1, "Lower limit of that share, which falls linearly towards 0.", at_least=0, at_most=1
    )
    dgcl_unlabeled_weight: float = option(0.5, "Weight of the loss on pseudo-labels.", at_least=0)
    dgcl_contrast_weight: float = option(0.5, "Weight of the contrastive loss.", at_least=0)
    dgcl_temperature: float = option(0.5, "T of the contrastive loss.", above=0)
    dgcl_ignored_class: int = option(
        0, "Class left out of the contrast, for instance VOC's background; -1 for none.", at_least=-1
    )
    dgcl_anchor_sampling: Sampling = option(
        "density", "Anchors: pixels of lowest density, of lowest confidence, or any."
    )
    dgcl_key_sampling: Sampling = option(
        "density", "Pixels of the prototype: of highest density, of highest confidence, or any."
    )
    dgcl_anchors: int = option(200, "Anchors of each class and step.", at_least=1)
    dgcl_keys: int = option(50, "Pixels of the prototype, from the batch and from memory each.", at_least=1)
    dgcl_negatives: int = option(512, "Negatives of each class and step.", at_least=1)
    dgcl_projection_channels: int = option(256, "Length of the projected vectors.", at_least=1)
    dgcl_memory_size: int = option(
        10_000, "Largest memory of a class in pixels; the time of a step grows with its square (CPU: 1000)."
    )
    dgcl_memory_total: int = option(
        210_000,
        "Largest memory of all classes in pixels: about 2 kB each with 256 channels, on every process.",
    )

    def memory_per_class(self, num_labels: int) -> int:
        """Entries of each class's memory; `InputError` if they are too few to measure a density."""
        size = min(self.dgcl_memory_size, self.dgcl_memory_total // num_labels)
        if size < max(NEIGHBOURS):
            raise InputError(
                f"--dgcl_memory_size {self.dgcl_memory_size} and --dgcl_memory_total {self.dgcl_memory_total} leave "
                f"{size} pixels to each of {num_labels} classes; the density needs at least {max(NEIGHBOURS)}."
            )
        return size


@dataclass
class Pixels:
    """The pixels of [x; u_w] at stride 4 of this process, P of them, for the contrast; h w of each image."""

    features: Tensor  # (P, C) float32, length 1, detached
    projections: Tensor  # (P, D) float32, with gradient
    confidence: Tensor  # (P,) float32, the student's
    labels: Tensor  # (P,) int64, NO_CLASS where the label is unknown or too uncertain
    images: tuple[int, int]  # labelled and unlabelled images of this process


class DGCL(Method):
    """DGCL's training step; the head of this file has the equations, `MemoryBank` the memory that it needs.

    The projection head and the memory are part of the method's state, not of the saved model.
    """

    name = "dgcl"
    advice_for_starving = "a lower --dgcl_label_drop"
    Options = DGCLOptions
    options: DGCLOptions
    citation = Citation(
        "Hunting Sparsity: Density-Guided Contrastive Learning for Semi-Supervised Semantic Segmentation (CVPR 2023)",
        """\
@inproceedings{wang2023dgcl,
  title={Hunting Sparsity: Density-Guided Contrastive Learning for Semi-Supervised Semantic Segmentation},
  author={Wang, Xiaoyang and Zhang, Bingfeng and Yu, Limin and Xiao, Jimin},
  booktitle={CVPR},
  year={2023}
}""",
    )
    teacher: Teacher

    def __init__(self, model: nn.Module, options: DGCLOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        o, labels, channels = self.options, model.config.num_labels, model.decoder.fused_channels
        if o.dgcl_ignored_class >= labels:
            raise InputError(
                f"--dgcl_ignored_class is {o.dgcl_ignored_class}; give one of the classes 0 to {labels - 1}, or -1."
            )
        self.teacher = Teacher(model, o.dgcl_teacher_decay)
        self.projection = nn.Sequential(
            ConvNormAct(channels, channels, 1), nn.Conv2d(channels, o.dgcl_projection_channels, 1)
        )
        self.memory = MemoryBank(labels, o.memory_per_class(labels), channels, o.dgcl_projection_channels)
        self.total_steps = o.dgcl_total_steps
        self.warming_up = False
        # Every process computes the same memory, so data-parallel training need not broadcast it in every step.
        self._ddp_params_and_buffers_to_ignore = [f"memory.{name}" for name, _ in self.memory.named_buffers()]

    # -------------------- schedule

    def plan(self, total_steps: int) -> None:
        if self.options.dgcl_total_steps is None:
            self.total_steps = total_steps

    def progress(self, step: int) -> float:
        """r_t of a step: 0 at the first one with unlabelled images, 1 at the end of the run."""
        total = self.total_steps
        if total is None:
            return 0.0
        start = self._supervised_steps()
        return min(max((step - start) / max(total - start, 1), 0.0), 1.0)

    def _supervised_steps(self) -> int:
        return int(self.options.dgcl_supervised_share * (self.total_steps or 0))

    def dropped(self, step: int) -> tuple[float, float]:
        """Shares of highest entropy left out of the pseudo-labels and of the contrast."""
        o, left = self.options, 1 - self.progress(step)
        return o.dgcl_label_drop * left, max(o.dgcl_contrast_drop * left, o.dgcl_contrast_drop_least)

    # -------------------- step

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        self.warming_up = batch.step < self._supervised_steps()
        return self._supervised(batch) if self.warming_up else self._semi_supervised(batch)

    def after_step(self) -> None:
        super().after_step()
        if self.warming_up:
            self.teacher.updates.zero_()  # until unlabelled images come, the teacher is a copy of the student

    def _supervised(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        decoded = self.model.decode(self.model.encode(batch.image))
        loss = self.labeled_loss(resize(decoded.logits, batch.image.shape[-2:]), batch.label)
        # Data-parallel training waits for every gradient: the projection head's is 0.
        total = loss + 0 * self.projection(decoded.fused).sum()
        # The same names in every step, because the collected logs have a fixed shape.
        zero = torch.zeros_like(loss.detach())
        later = UNLABELED_LOGS + (("loss/inter_pixel",) if self.options.inter_pixel_loss != "none" else ())
        return total, {"loss/x": loss.detach()} | dict.fromkeys(later, zero)

    def _semi_supervised(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        o, size, teacher = self.options, batch.weak.shape[-2:], self.teacher.network
        labeled, unlabeled = len(batch.image), len(batch.weak)
        both = labeled + unlabeled
        drop, contrast_drop = self.dropped(batch.step)

        with evaluating(teacher):
            low = teacher.decode(teacher.encode(batch.weak)).logits.float()  # (B_u, K, h, w)
            weak_logits = resize(low, size)
        weak = _labels_by_entropy(weak_logits, batch.valid)
        target = weak.mixed(_labels_by_entropy(*partner_logits(teacher, batch, weak_logits)), batch.box[:, 0])

        decoded = self.model.decode(
            self.model.encode(torch.cat([batch.image, batch.weak, batch.strong[:, 0]]))
        )
        logits = resize(decoded.logits, size)  # (B_l + 2 B_u, K, H, W)
        strong = logits[both:]
        terms = {"x": self.labeled_loss(logits[:labeled], batch.label)}
        terms["u"], kept = self._self_training(strong, weak, target, drop, batch)

        pixels = Pixels(
            F.normalize(_rows(decoded.fused[:both].detach()), dim=-1),
            _rows(self.projection(decoded.fused[:both])),
            decoded.logits[:both].detach().float().softmax(1).amax(1).flatten(),
            self._contrast_labels(batch, low, contrast_drop).flatten(),
            (labeled, unlabeled),
        )
        terms["c"], ready = self._contrast(pixels, batch.step)
        terms |= inter_pixel_terms(self, [(strong, target, kept)], batch.step)

        total = terms["x"] + o.dgcl_unlabeled_weight * terms["u"] + o.dgcl_contrast_weight * terms["c"]
        total = total + terms.get("inter_pixel", 0)
        return total, loss_logs(terms) | {"kept_ratio": kept.float().mean(), "ready_classes": ready}

    def _self_training(
        self,
        strong: Tensor,
        weak: PseudoLabels,
        target: PseudoLabels,
        drop: float,
        batch: SemiBatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """L_u of logits (N, K, H, W), and which pixels (N, H, W) it is over.

        `weak` gives the threshold, that leaves out its share `drop` of highest entropy; `target` is `weak` with the
        partner's box. The labels of `batch` are counted for the log.
        """
        threshold = -entropy_threshold(-weak.confidence, weak.valid, drop)
        kept = target.confident(threshold)
        if batch is not None:
            certainty = 1 + weak.confidence / math.log(max(strong.shape[1], 2))  # 1 - normalised entropy
            self.class_statistics.observe(
                weak.labels, certainty, weak.confident(threshold), weak.valid, truth=batch.unlabeled_truth
            )
        count = per_process(kept.sum())
        # Every process has equally many pixels, so those of this one are those "per process".
        return kept.numel() / count * masked_cross_entropy(strong, target.labels, kept, count), kept

    def _contrast_labels(self, batch: SemiBatch, low: Tensor, drop: float) -> Tensor:
        """(N, h, w) labels of [x; u_w] at the size of the teacher's logits `low` (N_u, K, h, w)."""

        def shrink(tensor: Tensor) -> Tensor:
            return F.interpolate(tensor[:, None].float(), low.shape[-2:], mode="nearest")[:, 0]

        labels = shrink(batch.label).long()
        labels = labels.masked_fill(labels == self.model.config.ignore_index, NO_CLASS)
        valid, uncertainty = shrink(batch.valid).bool(), entropy(low)
        certain = valid & (uncertainty <= entropy_threshold(uncertainty, valid, drop))
        return torch.cat([labels, low.argmax(1).masked_fill(~certain, NO_CLASS)])

    # -------------------- contrast

    def _contrast(self, pixels: Pixels, step: int) -> tuple[Tensor, Tensor]:
        """L_c, and the number of classes whose memory is full; then pixels of the batch enter the memory."""
        o, memory = self.options, self.memory
        classes = len(memory.added)
        draw = self._draw(pixels, step, "candidates")
        wanted = pixels.labels.masked_fill(pixels.labels == o.dgcl_ignored_class, NO_CLASS)
        index, order = draw_per_class(wanted, draw, classes, memory.size)
        # The total batch has as many candidates as one process may have.
        order = order.masked_fill(order < best_of_all(order, memory.size)[0][:, -1:], NOTHING)
        present = order > NOTHING

        def rank(sampling: str, use: str) -> Tensor:
            if sampling == "random":
                return self._draw(pixels, step, use)[index]
            if sampling == "confidence":
                return pixels.confidence[index]
            return memory.density(pixels.features, index)

        anchor_rank = rank(o.dgcl_anchor_sampling, "anchors")
        same = o.dgcl_key_sampling == o.dgcl_anchor_sampling != "random"
        key_rank = anchor_rank if same else rank(o.dgcl_key_sampling, "keys")

        anchors, is_anchor = self._anchors(pixels, index, anchor_rank, present)
        prototypes = self._prototypes(pixels, index, key_rank, present, step)
        negatives, is_negative = self._negatives(pixels, step, classes)

        ready = memory.added >= memory.size
        losses = prototype_contrast(anchors, prototypes, negatives, is_negative, o.dgcl_temperature)
        chosen = is_anchor & ready[:, None]
        count = per_process(chosen.sum(1))
        contributing = (all_reduce(chosen.sum(1)) > 0).sum().clamp(min=1)
        loss = ((losses * chosen).sum(1) / count).sum() / contributing

        self._remember(pixels, index, order, key_rank)
        return loss, ready.sum().float()

    def _draw(self, pixels: Pixels, step: int, use: str) -> Tensor:
        """(P,) random numbers: this process's part of those of the total batch."""
        device = pixels.labels.device
        generator = step_generator(device, self.seed, step, use)
        each = len(pixels.labels) // sum(pixels.images)
        return torch.cat([pixel_scores(images, each, generator, device) for images in pixels.images])

    def _anchors(self, pixels: Pixels, index: Tensor, rank: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Projections (K, A, D), with gradient, of this process's pixels among the A lowest of the total batch."""
        lowest = (-rank).masked_fill(~present, NOTHING)
        own, place = lowest.topk(min(self.options.dgcl_anchors, lowest.shape[1]))
        cut = best_of_all(own, self.options.dgcl_anchors)[0][:, -1:]
        return pixels.projections[index.gather(1, place)], (own >= cut) & (own > NOTHING)

    def _prototypes(self, pixels: Pixels, index: Tensor, rank: Tensor, present: Tensor, step: int) -> Tensor:
        """(K, D): mean projection of the highest pixels of the total batch and of the memory; 0 where there is none."""
        number, memory = self.options.dgcl_keys, self.memory
        best, place = rank.masked_fill(~present, NOTHING).topk(min(number, rank.shape[1]))
        best, keys = best_of_all(best, number, pixels.projections.detach()[index.gather(1, place)])
        scores = None
        if self.options.dgcl_key_sampling == "random":
            generator = step_generator(rank.device, self.seed, step, "memory keys")
            scores = torch.rand(memory.scores.shape, generator=generator, device=rank.device)
        remembered, is_remembered = memory.best(number, scores)
        keys = torch.cat([keys, remembered], dim=1)
        is_key = torch.cat([best > NOTHING, is_remembered], dim=1).unsqueeze(-1)
        return (keys * is_key).sum(1) / is_key.sum(1).clamp(min=1)

    def _negatives(self, pixels: Pixels, step: int, classes: int) -> tuple[Tensor, Tensor]:
        """Projections (K, N, D) of random pixels of the total batch that have another class, and which there are."""
        scores = self._draw(pixels, step, "negatives").masked_fill(pixels.labels == NO_CLASS, NOTHING)
        scores, place = scores.topk(min(POOL, len(scores)))
        pool = best_of_all(
            scores[None], POOL, pixels.projections.detach()[place][None], pixels.labels[place][None]
        )
        scores, projections, labels = (value[0] for value in pool)
        scores = scores.expand(classes, -1)
        own = labels == torch.arange(classes, device=labels.device)[:, None]
        scores, place = scores.masked_fill(own, NOTHING).topk(
            min(self.options.dgcl_negatives, scores.shape[1])
        )
        return projections[place], scores > NOTHING

    @torch.no_grad()
    def _remember(self, pixels: Pixels, index: Tensor, order: Tensor, score: Tensor) -> None:
        """Put random candidates of the total batch into the memory, at most a tenth of it."""
        number = max(self.memory.size // 10, 1)
        order, place = order.topk(min(number, order.shape[1]))
        chosen = index.gather(1, place)
        order, features, projections, score = best_of_all(
            order, number, pixels.features[chosen], pixels.projections[chosen], take(score, place)
        )
        self.memory.add(features, projections, score, order > NOTHING)


def _rows(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N h w, C) float32."""
    return maps.float().permute(0, 2, 3, 1).flatten(0, 2)


def _labels_by_entropy(logits: Tensor, valid: Tensor) -> PseudoLabels:
    """Pseudo-labels of logits (N, K, H, W) whose confidence is minus their entropy."""
    return PseudoLabels(logits.argmax(1), -entropy(logits), valid, logits)
