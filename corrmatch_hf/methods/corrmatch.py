"""CorrMatch: label propagation via correlation matching (CVPR 2024).

Three forward passes make one step (section and equation numbers are the paper's):

    1. u_m, the CutMix partner's weak view, in evaluation mode without gradient: only pseudo-labels are wanted.
    2. [x; u_w], labelled images and weak views: logits, correlation logits (pixel propagation, equations 4 and 5),
       and a copy decoded from features with dropped channels.
    3. u_s, the strong views with the partner's box pasted in: logits and correlation logits.

u_w gives the pseudo-labels, their confidence and the threshold (equations 11, 13). Sampled rows of its correlation map
become shapes (equation 7) along which confident labels spread (region propagation, equations 8-10). Losses:

    x, x_corr      labelled images, logits and correlation logits
    s, corr_s      strong view against the propagated labels
    corr_w         correlation logits of the weak view against its own labels
    kl             strong against weak probabilities
    fp             weak view with dropped channels against its own labels

    total = 1/2 L_s + 1/2 L_u
    L_s   = (x + x_corr) / 2
    L_u   = lambda1 (s + fp) / 2 + lambda2 kl + lambda3 (corr_s + corr_w) / 2      lambda = 0.5, 0.25, 0.25

Two options come from UniMatch V2. With `teacher ema`, a moving average of the network predicts u_w and u_m in
evaluation mode and gives the pseudo-labels, their confidence, the threshold and the soft target; the correlation shapes
stay the network's own, and the average is what is evaluated and saved. With `feature_perturbation complementary`, two
copies of u_w's features are decoded, each with the channels that the other lacks, and fp is the mean of both losses.
With --inter_pixel_loss, its weighted term is added to L_u (see `inter_pixel.py`).

Where the paper and the published runs differ, the runs' behaviour is the default and the difference is an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..model import CorrMatchFeatures, DecoderOutput, correlation_rows, pixel_propagation, resize
from ..ops.losses import cosine_distance, kl_divergence, masked_cross_entropy, masked_mean, soft_cross_entropy
from ..ops.random_masks import stacked_channel_mask, step_generator
from ..ops.region_propagation import propagate_rows, row_shapes
from ..options import option
from .base import Logs, Method, loss_logs
from .citations import Citation
from .dynamic_threshold import DynamicThreshold, ThresholdUpdate
from .feature_perturbation import with_complementary_channels, with_dropped_channels
from .inter_pixel import InterPixelOptions, inter_pixel_terms
from .pseudo_labels import PseudoLabels, partner_pseudo_labels, teacher_pseudo_labels
from .teacher import Teacher

SOFT_LOSSES = {"kl": kl_divergence, "cross_entropy": soft_cross_entropy, "cosine": cosine_distance}


@dataclass
class CorrMatchOptions(InterPixelOptions):
    """The paper's choices; the defaults are those of the published runs."""

    threshold_initial: float = option(
        0.85, "Confidence threshold at the start (table 13).", at_least=0, at_most=1
    )
    threshold_momentum: float = option(
        0.999,
        "Share of the old threshold kept by a step (table 12).",
        at_least=0,
        at_most=1,
        only_with=(
            "threshold_update=class_max",
            "threshold_update=global_max",
            "threshold_update=global_mean",
            "threshold_update=per_class",
        ),
    )
    threshold_update: ThresholdUpdate = option(
        "class_max", "What the threshold follows; 'fixed' keeps --threshold_initial."
    )
    propagation: Literal["region", "none"] = option(
        "region", "Spread confident labels along correlation shapes, or not (table 5)."
    )
    num_shapes: int = option(
        128,
        "Correlation shapes sampled per image; for none at all use --propagation none.",
        at_least=1,
        only_with="propagation=region",
    )
    shape_sampling: Literal["random", "uniform"] = option(
        "random",
        "Rows of the correlation map drawn at random, or evenly spaced.",
        only_with="propagation=region",
    )
    hard_weight: float = option(0.5, "lambda1: losses against hard pseudo-labels (table 11).", at_least=0)
    soft_weight: float = option(
        0.25, "lambda2: soft loss between weak and strong view (table 11).", at_least=0
    )
    correlation_weight: float = option(
        0.25, "lambda3: losses of the correlation logits (table 11).", at_least=0
    )
    labeled_correlation_weight: float = option(
        0.5, "Share of the correlation logits in the labelled loss.", at_least=0, at_most=1
    )
    unlabeled_weight: float = option(
        0.5,
        "Share of the unlabelled losses in the total; the rest is the labelled loss.",
        at_least=0,
        at_most=1,
    )
    soft_loss: Literal["kl", "cross_entropy", "cosine"] = option(
        "kl", "Soft loss between weak and strong view (table 10)."
    )
    mix_soft_targets: bool = option(
        False,
        "Inside the CutMix box, compare the strong view with the partner's probabilities (the paper) instead of those "
        "of the image below the box (the published runs).",
    )
    feature_perturbation: Literal["none", "dropout", "complementary"] = option(
        "dropout",
        "Loss on features with dropped channels (published runs; the paper's equations lack it), or on two copies "
        "that each have the channels the other lacks.",
    )
    feature_dropout: float = option(
        0.5,
        "Share of channels dropped by the feature perturbation 'dropout'.",
        at_least=0,
        below=1,
        only_with="feature_perturbation=dropout",
    )
    teacher: Literal["none", "ema"] = option(
        "none", "Source of the pseudo-labels: the student itself, or its moving average (EMA)."
    )
    teacher_decay: float = option(
        0.996,
        "teacher ema: share of the average kept by a step.",
        at_least=0,
        below=1,
        only_with="teacher=ema",
    )


@dataclass
class Predictions:
    """What one step predicts at full resolution. Logits are the student's, with gradient.

    `weak` (u_w) and `partner` (u_m) are targets, and the teacher's if there is one.
    """

    x: Tensor  # (B_l, K, H, W)
    x_corr: Tensor  # (B_l, K, H, W)
    weak: PseudoLabels
    weak_corr: Tensor  # (B_u, K, H, W)
    weak_perturbed: (
        Tensor | None
    )  # (B_u, K, H, W); with "complementary" (2 B_u, K, H, W), one copy after the other
    strong: Tensor  # (B_u, K, H, W)
    strong_corr: Tensor  # (B_u, K, H, W)
    partner: PseudoLabels
    rows: Tensor | None  # (B_u, S, h, w), rows of the correlation maps of u_w; None without propagation


class CorrMatch(Method):
    """CorrMatch's training step; the head of this file has the equations. The model needs a correlation head."""

    name = "corrmatch"
    advice_for_starving = "--threshold_update per_class"
    Options = CorrMatchOptions
    options: CorrMatchOptions
    citation = Citation(
        "[CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation]"
        "(https://arxiv.org/abs/2306.04300) (CVPR 2024)",
        """\
@inproceedings{sun2024corrmatch,
  title={CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation},
  author={Sun, Boyuan and Yang, Yuqi and Zhang, Le and Cheng, Ming-Ming and Hou, Qibin},
  booktitle={CVPR},
  year={2024}
}""",
    )
    uses_correlation_head = True

    def __init__(self, model: nn.Module, options: CorrMatchOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        o = self.options
        self.threshold = DynamicThreshold(
            model.config.num_labels, o.threshold_initial, o.threshold_momentum, o.threshold_update
        )
        if o.threshold_update == "per_class":
            self.advice_for_starving = Method.advice_for_starving
        if o.teacher == "ema":
            self.teacher = Teacher(model, o.teacher_decay)

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        model, size = self.model, batch.weak.shape[-2:]
        labeled, unlabeled = len(batch.image), len(batch.weak)

        # Pass 1: u_m. A teacher sees u_w as well.
        if self.teacher is None:
            weak, partner = None, partner_pseudo_labels(model, batch)
        else:
            weak, partner = teacher_pseudo_labels(self.teacher.network, batch)

        # Pass 2: [x; u_w].
        features = model.encode(torch.cat([batch.image, batch.weak]))  # levels (B_l + B_u, C, h, w)
        decoded, perturbed = self._decode_with_perturbed(features, labeled, batch.step)
        logits = resize(decoded.logits, size)  # (B_l + B_u, K, H, W)
        query, key, corr = self._correlate(
            features, decoded, logits, (labeled, unlabeled), batch.step, "weak correlation"
        )
        if weak is None:
            weak = PseudoLabels.of(logits[labeled:], batch.valid)
        rows = None
        if self.options.propagation == "region":
            index = self._shape_index(query.shape[-2] * query.shape[-1], batch.step, query.device)
            query, key = query[labeled:].detach(), key[labeled:].detach()  # (B_u, D, h, w)
            rows = correlation_rows(query, key, index, model.config.correlation_scale)  # (B_u, S, h, w)

        # Pass 3: u_s.
        features = model.encode(batch.strong[:, 0])
        decoded = model.decode(features)
        strong = resize(decoded.logits, size)  # (B_u, K, H, W)
        _, _, strong_corr = self._correlate(
            features, decoded, strong, (unlabeled,), batch.step, "strong correlation"
        )

        predictions = Predictions(
            x=logits[:labeled],
            x_corr=corr[:labeled],
            weak=weak,
            weak_corr=corr[labeled:],
            weak_perturbed=None if perturbed is None else resize(perturbed, size),
            strong=strong,
            strong_corr=strong_corr,
            partner=partner,
            rows=rows,
        )
        return self.losses(predictions, batch)

    def losses(self, p: Predictions, batch: SemiBatch) -> tuple[Tensor, Logs]:
        """The total and all terms; the threshold is updated on the way."""
        o, box, weak = self.options, batch.box[:, 0], p.weak
        mixed = weak.mixed(p.partner, box)

        self.threshold.update(weak.confidence, weak.labels, mixed.valid)
        weak_confident = self.threshold.confident(weak.confidence, weak.labels) & weak.valid
        confident = self.threshold.confident(mixed.confidence, mixed.labels) & mixed.valid

        labels, propagated = mixed.labels, confident
        if p.rows is not None:
            labels, propagated = propagate_rows(
                p.rows,
                labels,
                confident,
                mixed.valid & ~box,
                self.threshold.scalar(),
                num_labels=p.x.shape[1],
            )

        self.class_statistics.threshold = self.threshold.value if self.threshold.value.ndim else None
        self.class_statistics.observe(
            weak.labels,
            weak.confidence,
            confident,
            mixed.valid & ~box,  # outside the box, where these are the image's own
            None if p.rows is None else (labels, propagated),
            batch.unlabeled_truth,
        )
        soft_target = mixed.logits if o.mix_soft_targets else weak.logits
        terms = {
            "x": self.labeled_loss(p.x, batch.label),
            "x_corr": self.labeled_loss(p.x_corr, batch.label),
            "s": masked_cross_entropy(p.strong, labels, propagated, mixed.count),
            "corr_s": masked_cross_entropy(p.strong_corr, labels, propagated, mixed.count),
            "corr_w": weak.cross_entropy(p.weak_corr, weak_confident),
            "kl": masked_mean(SOFT_LOSSES[o.soft_loss](p.strong, soft_target), confident, mixed.count),
        }
        hard = terms["s"]
        if p.weak_perturbed is not None:
            # All copies have equally many pixels that count, so the mean of their losses is that over all of them.
            copies = p.weak_perturbed.split(len(weak.labels))
            terms["fp"] = sum(weak.cross_entropy(copy, weak_confident) for copy in copies) / len(copies)
            hard = (terms["s"] + terms["fp"]) / 2
        terms |= inter_pixel_terms(self, [(p.strong, mixed, confident)], batch.step)

        labeled = torch.lerp(terms["x"], terms["x_corr"], o.labeled_correlation_weight)
        unlabeled = (
            o.hard_weight * hard
            + o.soft_weight * terms["kl"]
            + o.correlation_weight * (terms["corr_s"] + terms["corr_w"]) / 2
            + terms.get("inter_pixel", 0)
        )
        total = torch.lerp(labeled, unlabeled, o.unlabeled_weight)
        return total, loss_logs(terms) | {
            "threshold": self.threshold.scalar().clone(),
            "kept_ratio": mixed.ratio(confident),
            "propagated_ratio": mixed.ratio(propagated),
        }

    def _decode_with_perturbed(
        self, features: CorrMatchFeatures, labeled: int, step: int
    ) -> tuple[DecoderOutput, Tensor | None]:
        """[x; u_w] decoded, and logits of the perturbed u_w, (B_u, K, h, w) or (2 B_u, K, h, w), in one decoder pass.

        The decoder's batch statistics are thus taken over all of them, as in the published runs.
        """
        o, count = self.options, len(features[0])
        if o.feature_perturbation == "none":
            return self.model.decode(features), None
        if o.feature_perturbation == "dropout":
            rows = (labeled, count - labeled)  # x is decoded perturbed as well, for the statistics alone
            both = with_dropped_channels(features, o.feature_dropout, rows, seed=self.seed, step=step)
            start = count + labeled
        else:
            # torch.cat keeps the channels-last layout, which `repeat` would not.
            copies = CorrMatchFeatures(torch.cat([level[labeled:]] * 2) for level in features)
            # A pair that stayed whole would only repeat the weak view.
            copies = with_complementary_channels(copies, seed=self.seed, step=step, whole=False)
            both = CorrMatchFeatures(map(torch.cat, zip(features, copies, strict=True)))
            start = count
        decoded = self.model.decode(both)
        plain = DecoderOutput(*(part if part is None else part[:count] for part in decoded))
        return plain, decoded.logits[start:]

    def _correlate(
        self,
        features: CorrMatchFeatures,
        decoded: DecoderOutput,
        logits: Tensor,
        parts: tuple[int, ...],
        step: int,
        use: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query and key (N, D, h, w), and the logits (N, K, H, W) propagated along them.

        `parts`: images of each part of the batch, such as (labelled, unlabelled); `use`: of the random draw.
        """
        config = self.model.config
        dropout = stacked_channel_mask(
            parts, config.correlation_channels, config.correlation_dropout, logits.device,
            seed=self.seed, step=step, use=use,
        )  # fmt: skip
        query, key = self.model.correlate(features, decoded, channel_mask=dropout)
        # Detached: the correlation losses train the encoder and the correlation head, not the classifier.
        source = resize(logits.detach(), query.shape[-2:])  # (N, K, h, w)
        propagated = pixel_propagation(query, key, source, config.correlation_scale)
        return query, key, resize(propagated, logits.shape[-2:])

    def _shape_index(self, positions: int, step: int, device: torch.device) -> Tensor:
        """(S,) rows of the correlation map, the same for all images and processes of a step."""
        count = self.options.num_shapes
        if self.options.shape_sampling == "uniform":
            return torch.linspace(0, positions - 1, count, device=device).long()
        generator = step_generator(device, self.seed, step, "shapes")
        # With replacement and never the last position, as in the published runs.
        return torch.randint(max(positions - 1, 1), (count,), generator=generator, device=device)


def correlation_shapes(
    query: Tensor, key: Tensor, index: Tensor, size: tuple[int, int], scale: str = "scores"
) -> Tensor:
    """The regions that look like the pixels `index`, as binary shapes (equation 7). No gradient.

    Only the rows of the correlation map that are asked for are computed. The training step spreads labels along the
    same shapes by `propagate_rows`, which never holds them all.

    Args:
        query, key: (N, D, h, w), any floating dtype.
        index: (S,) integers in 0..h*w-1, the pixels p of the rows, the same for every image.
        size: (H, W) of the shapes.
        scale: as in `pixel_propagation`.

    Returns:
        bool (N, S, H, W).
    """
    return row_shapes(correlation_rows(query, key, index, scale), size)
