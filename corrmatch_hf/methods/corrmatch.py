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

With `teacher ema`, a moving average of the network says in evaluation mode what u_w and u_m show: pseudo-labels, their
confidence, the threshold and the soft target are its. The correlation shapes stay the network's own, and the average is
what is evaluated and saved. With `feature_perturbation complementary`, two copies of u_w's features are decoded, each
with the channels that the other lacks, and fp is the mean of both losses. Both come from UniMatch V2.

Where the paper and the published runs differ, the runs' behaviour is the default and the difference is an option.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import per_process
from ..model.correlation_corrmatch import correlation_rows, pixel_propagation
from ..model.modeling_corrmatch import resize
from ..ops.losses import cosine_distance, kl_divergence, masked_cross_entropy, masked_mean, soft_cross_entropy
from ..ops.random_masks import stacked_channel_mask, step_generator
from ..ops.region_propagation.rows import propagate_rows, row_shapes
from .base import BelowOne, Logs, Method, Share, Weight, choice
from .dynamic_threshold import UPDATES, DynamicThreshold
from .feature_perturbation import with_complementary_channels, with_dropped_channels
from .inter_pixel import InterPixelOptions, inter_pixel_term
from .pseudo_labels import PseudoLabels, partner_logits, taught_logits
from .teacher import Teacher

SOFT_LOSSES = {"kl": kl_divergence, "cross_entropy": soft_cross_entropy, "cosine": cosine_distance}


@dataclass
class CorrMatchOptions(InterPixelOptions):
    """The paper's choices; the defaults are those of the published runs."""

    threshold_initial: Share = field(
        default=0.85, metadata={"help": "Confidence threshold at the start (table 13)."}
    )
    threshold_momentum: Share = field(
        default=0.999, metadata={"help": "Share of the old threshold kept by a step (table 12)."}
    )
    threshold_update: str = choice(
        "class_max", UPDATES, "What the threshold follows; 'fixed' keeps --threshold_initial."
    )
    propagation: str = choice(
        "region", ("region", "none"), "Spread confident labels along correlation shapes, or not (table 5)."
    )
    num_shapes: int = field(default=128, metadata={"help": "Correlation shapes sampled per image."})
    shape_sampling: str = choice(
        "random", ("random", "uniform"), "Rows of the correlation map drawn at random, or evenly spaced."
    )
    hard_weight: Weight = field(
        default=0.5, metadata={"help": "lambda1: losses against hard pseudo-labels (table 11)."}
    )
    soft_weight: Weight = field(
        default=0.25, metadata={"help": "lambda2: soft loss between weak and strong view (table 11)."}
    )
    correlation_weight: Weight = field(
        default=0.25, metadata={"help": "lambda3: losses of the correlation logits (table 11)."}
    )
    labeled_correlation_weight: Share = field(
        default=0.5, metadata={"help": "Share of the correlation logits in the labelled loss."}
    )
    unlabeled_weight: Share = field(
        default=0.5,
        metadata={"help": "Share of the unlabelled losses in the total; the labelled get the rest."},
    )
    soft_loss: str = choice("kl", tuple(SOFT_LOSSES), "Soft loss between weak and strong view (table 10).")
    mix_soft_targets: bool = field(
        default=False,
        metadata={
            "help": "Inside the CutMix box, compare the strong view with the partner's probabilities (the paper) "
            "instead of those of the image below the box (the published runs)."
        },
    )
    feature_perturbation: str = choice(
        "dropout",
        ("none", "dropout", "complementary"),
        "Loss on features with dropped channels (published runs; the paper's equations lack it), or on two copies that "
        "have the channels which the other lacks.",
    )
    feature_dropout: BelowOne = field(
        default=0.5, metadata={"help": "Share of channels dropped by the feature perturbation 'dropout'."}
    )
    teacher: str = choice(
        "none", ("none", "ema"), "Who gives the pseudo-labels: the student itself, or its moving average."
    )
    teacher_decay: BelowOne = field(
        default=0.996, metadata={"help": "teacher ema: share of the average kept by a step."}
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if self.num_shapes < 1:
            found.append(
                f"--num_shapes is {self.num_shapes}; give at least 1, or switch shapes off with --propagation none"
            )
        return found


@dataclass
class Predictions:
    """Everything the network says in one step, at full resolution: logits (N, K, H, W).

    `weak` and `partner` (of the CutMix partner; read inside the box only) are targets, and a teacher's if there is one.
    `weak_perturbed` is None without perturbation and (2N, K, H, W), one copy after the other, with two perturbed ones.
    """

    x: Tensor
    x_corr: Tensor
    weak: Tensor
    weak_corr: Tensor
    weak_perturbed: Tensor | None
    strong: Tensor
    strong_corr: Tensor
    partner: Tensor


class CorrMatch(Method):
    """CorrMatch's training step around a model with a correlation head. See the file's head for the equations."""

    name = "corrmatch"
    Options = CorrMatchOptions
    uses_correlation_head = True
    options: CorrMatchOptions

    def __init__(self, model: nn.Module, options: CorrMatchOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.threshold = DynamicThreshold(
            model.config.num_labels,
            self.options.threshold_initial,
            self.options.threshold_momentum,
            self.options.threshold_update,
        )
        self.teacher = Teacher(model, self.options.teacher_decay) if self.options.teacher == "ema" else None

    @property
    def segmentation_model(self) -> nn.Module:
        """The teacher where there is one."""
        return self.model if self.teacher is None else self.teacher.network

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.model)

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        box, valid = batch.box[:, 0], batch.valid
        weak = None  # the student's own, where there is no teacher
        if self.teacher is None:
            partner, partner_valid = partner_logits(self.model, batch)
        else:
            weak, partner, partner_valid = taught_logits(self.teacher.network, batch)
        predictions, rows = self._predict(batch, partner)
        if weak is not None:
            predictions.weak = weak
        mixed_valid = torch.where(box, partner_valid, valid)
        return self.losses(predictions, batch.label, valid, mixed_valid, box, rows, step=batch.step)

    def losses(
        self,
        predictions: Predictions,
        label: Tensor,
        valid: Tensor,
        mixed_valid: Tensor,
        box: Tensor,
        rows: Tensor | None,
        step: int = 0,
    ) -> tuple[Tensor, Logs]:
        """All terms, their total, and the threshold's update, from the network's outputs.

        Args:
            predictions: logits of the step.
            label: (N, H, W) int64, ids or ignore_index.
            valid, mixed_valid: (N, H, W) bool, not padding; in `mixed_valid` the partner's validity inside the box.
            box: (N, H, W) bool, the CutMix box.
            rows: (N, S, h, w) float from `correlation_rows`, of the weak views; None without propagation.
        """
        o, p = self.options, predictions
        weak = PseudoLabels.of(p.weak)
        mixed = weak.pasted(PseudoLabels.of(p.partner), box)

        self.threshold.update(weak.confidence, weak.labels, mixed_valid)
        weak_confident = self.threshold.confident(weak.confidence, weak.labels) & valid
        confident = self.threshold.confident(mixed.confidence, mixed.labels) & mixed_valid

        labels, propagated = mixed.labels, confident
        if rows is not None:
            labels, propagated = propagate_rows(
                rows,
                labels,
                confident,
                mixed_valid & ~box,
                self.threshold.scalar(),
                num_labels=p.weak.shape[1],
            )

        n0, n1 = per_process(valid.sum()), per_process(mixed_valid.sum())
        soft_target = torch.where(box.unsqueeze(1), p.partner, p.weak) if o.mix_soft_targets else p.weak
        terms = {
            "x": self.labeled_loss(p.x, label),
            "x_corr": self.labeled_loss(p.x_corr, label),
            "s": masked_cross_entropy(p.strong, labels, propagated, n1),
            "corr_s": masked_cross_entropy(p.strong_corr, labels, propagated, n1),
            "corr_w": masked_cross_entropy(p.weak_corr, weak.labels, weak_confident, n0),
            "kl": masked_mean(SOFT_LOSSES[o.soft_loss](p.strong, soft_target), confident, n1),
        }
        hard = terms["s"]
        if p.weak_perturbed is not None:
            # All copies have as many pixels that count, so the mean of their losses is that over all of them.
            copies = p.weak_perturbed.chunk(len(p.weak_perturbed) // len(p.weak))
            terms["fp"] = sum(
                masked_cross_entropy(copy, weak.labels, weak_confident, n0) for copy in copies
            ) / len(copies)
            hard = (terms["s"] + terms["fp"]) / 2
        labeled = torch.lerp(terms["x"], terms["x_corr"], o.labeled_correlation_weight)
        unlabeled = (
            o.hard_weight * hard
            + o.soft_weight * terms["kl"]
            + o.correlation_weight * (terms["corr_s"] + terms["corr_w"]) / 2
        )
        if o.inter_pixel_loss != "none":  # off by default: then nothing is pasted for it
            teacher = torch.where(box.unsqueeze(1), p.partner, p.weak.detach().float())
            terms["inter_pixel"] = inter_pixel_term(
                o, p.strong, teacher, confident, seed=self.seed, step=step
            )
            unlabeled = unlabeled + terms["inter_pixel"]
        total = torch.lerp(labeled, unlabeled, o.unlabeled_weight)

        logs = {f"loss/{name}": value.detach() for name, value in terms.items()}
        logs["threshold"] = self.threshold.scalar().clone()
        logs["kept_ratio"] = confident.sum() / n1
        logs["propagated_ratio"] = propagated.sum() / n1
        return total, logs

    def _predict(self, batch: SemiBatch, partner: Tensor) -> tuple[Predictions, Tensor | None]:
        """Passes 2 and 3, and rows of the weak views' correlation maps."""
        o, model = self.options, self.model
        size = batch.weak.shape[-2:]
        labeled, unlabeled = len(batch.image), len(batch.weak)

        def correlation(features, decoded, logits, use, rows) -> tuple[Tensor, Tensor, Tensor]:
            config = model.config
            dropout = stacked_channel_mask(
                rows, config.correlation_channels, config.correlation_dropout, batch.weak.device,
                seed=self.seed, step=batch.step, use=use,
            )  # fmt: skip
            query, key = model.correlate(features, decoded, channel_mask=dropout)
            # Detached: the correlation losses train the encoder and the correlation head, not the classifier.
            source = resize(logits.detach(), query.shape[-2:])
            return query, key, resize(pixel_propagation(query, key, source, config.correlation_scale), size)

        features = model.encode(torch.cat([batch.image, batch.weak]))
        rows = (labeled, unlabeled)
        count = labeled + unlabeled
        both, perturbed = features, count + labeled  # where the perturbed unlabelled images begin
        if o.feature_perturbation == "dropout":
            # Labelled images are decoded perturbed, too: the decoder's batch statistics are taken over both halves.
            both = with_dropped_channels(features, o.feature_dropout, rows, seed=self.seed, step=batch.step)
        elif o.feature_perturbation == "complementary":
            copies = type(features)(*(torch.cat([level[labeled:]] * 2) for level in features))
            # A pair that stayed whole would only repeat the weak view.
            copies = with_complementary_channels(copies, seed=self.seed, step=batch.step, whole=False)
            both = type(features)(*map(torch.cat, zip(features, copies, strict=True)))
            perturbed = count
        decoded_both = model.decode(both)
        decoded = type(decoded_both)(*(part if part is None else part[:count] for part in decoded_both))
        logits = resize(decoded.logits, size)
        query, key, corr = correlation(features, decoded, logits, "weak correlation", rows)

        strong_features = model.encode(batch.strong[:, 0])
        strong_decoded = model.decode(strong_features)
        strong = resize(strong_decoded.logits, size)
        _, _, strong_corr = correlation(
            strong_features, strong_decoded, strong, "strong correlation", (unlabeled,)
        )

        shape_rows = None
        if o.propagation == "region":
            index = self._shape_index(query.shape[-2] * query.shape[-1], batch.step, query.device)
            shape_rows = correlation_rows(
                query[labeled:].detach(), key[labeled:].detach(), index, model.config.correlation_scale
            )
        return (
            Predictions(
                x=logits[:labeled],
                x_corr=corr[:labeled],
                weak=logits[labeled:],
                weak_corr=corr[labeled:],
                weak_perturbed=resize(decoded_both.logits[perturbed:], size)
                if both is not features
                else None,
                strong=strong,
                strong_corr=strong_corr,
                partner=partner,
            ),
            shape_rows,
        )

    def _shape_index(self, positions: int, step: int, device: torch.device) -> Tensor:
        """(S,) rows of the correlation map, the same for all images and processes of a step."""
        count = self.options.num_shapes
        if self.options.shape_sampling == "uniform":
            return torch.linspace(0, positions - 1, count, device=device).long()
        generator = step_generator(device, self.seed, step, "shapes")
        # With replacement and never the last position, as in the published runs.
        return torch.randint(max(positions - 1, 1), (count,), generator=generator, device=device)


# -------------------- The shapes that region propagation paints along, from the correlation head's query and key.


def correlation_shapes(
    query: Tensor, key: Tensor, index: Tensor, size: tuple[int, int], scale: str = "scores"
) -> Tensor:
    """The regions that look like the pixels `index`, as binary shapes (equation 7). No gradient.

    Only the rows of the correlation map that are asked for are computed. `propagate_rows` paints along the same shapes
    and never holds them all.

    Args:
        query, key: (N, D, h, w), any floating dtype.
        index: (S,) integers in 0..h*w-1, the pixels p of the rows, the same for every image.
        size: (H, W) of the shapes.
        scale: as in `pixel_propagation`.

    Returns:
        bool (N, S, H, W).
    """
    return row_shapes(correlation_rows(query, key, index, scale), size)
