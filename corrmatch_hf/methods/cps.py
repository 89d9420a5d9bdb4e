"""CPS: semi-supervised semantic segmentation with cross pseudo supervision (CVPR 2021).

Two networks f1 and f2 teach each other. They have the same architecture, encoder weights and images; only their heads
are drawn independently. Of labelled images x and weak views u of unlabelled ones, each in a forward pass of its own:

    Y1 = argmax f1([x; u])        Y2 = argmax f2([x; u])        no threshold, padding included
    L_s   = CE(f1(x), y) + CE(f2(x), y)
    L_cps = CE(f1([x; u]), Y2) + CE(f2([x; u]), Y1)             each a mean over all pixels of x and u
    total = L_s + lambda L_cps                                  lambda: 1.5 on VOC, 6 on Cityscapes

With CutMix, on the unlabelled images only:

    u_mix = (1 - m) u + m u'                                    m: three boxes whose overlaps cancel
    Yi    = argmax ((1 - m) fi(u) + m fi(u'))                   no gradient, but batch statistics in BatchNorm
    L_cps = CE(f1(u_mix), Y2) + CE(f2(u_mix), Y1)               lambda: 1 on VOC, 5 on Cityscapes

u' is the next image of the total batch, whatever the number of processes; a single image is rejected. The published
runs draw a second batch for u'. Here fi(u') is the next row of fi(u), which saves two of eight forward passes.

With --inter_pixel_loss (see `inter_pixel.py`), its weighted terms on the unlabelled images are added to the total: f1
against f2's logits without gradient and f2 against f1's, on u or, with CutMix, on u_mix against the mixed logits. CPS
has no measure of confidence, so all pixels that are not padding are compared.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import world_size
from ..errors import InputError
from ..ops.losses import soft_cross_entropy
from ..ops.random_masks import cutmix_mask, next_rows
from ..options import option
from .base import Logs, Method, loss_logs
from .citations import Citation
from .class_statistics import STEP
from .inter_pixel import InterPixelOptions, inter_pixel_terms
from .pseudo_labels import PseudoLabels

Pair = list[Tensor]  # one of f1, one of f2


@dataclass
class CPSOptions(InterPixelOptions):
    """The defaults are those of the published runs on VOC without CutMix."""

    cps_weight: float = option(
        1.5,
        "lambda: weight of the cross supervision (VOC 1.5, with CutMix 1; Cityscapes 6 and 5).",
        at_least=0,
    )
    cps_cutmix: bool = option(
        False, "Cross supervision on unlabelled images mixed with CutMix, and on them alone."
    )
    cps_supervision: Literal["hard", "soft"] = option(
        "hard", "Target of the other network: labels, or probabilities (the paper's comparison, CPC)."
    )
    cps_on_labeled: bool = option(True, "Cross supervision on labelled images; never with --cps_cutmix.")
    cps_on_unlabeled: bool = option(True, "Cross supervision on unlabelled images.")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.cps_cutmix and not self.cps_on_unlabeled:
            found.append(
                "--cps_cutmix mixes unlabelled images, but --cps_on_unlabeled is off; switch one of them"
            )
        if self.inter_pixel_loss != "none" and not self.cps_on_unlabeled:
            found.append(
                f"--inter_pixel_loss {self.inter_pixel_loss} compares predictions for unlabelled images, but "
                "--cps_on_unlabeled is off; switch one of them"
            )
        if not self.cps_on_labeled and not self.cps_on_unlabeled:
            found.append(
                "--cps_on_labeled and --cps_on_unlabeled are both off; leave one on, or use --method supervised"
            )
        return found


@dataclass
class Supervision:
    """N images on which the networks teach each other."""

    logits: Pair  # (N, K, H, W), with gradient
    targets: Pair  # what each network teaches the other: (N, H, W) labels or, if soft, (N, K, H, W) logits
    teachers: Pair | None = None  # for the inter-pixel loss, (N, K, H, W) logits whose gradient is not used
    valid: Tensor | None = None  # for the inter-pixel loss, (N, H, W) bool, not padding


class CPS(Method):
    """Cross pseudo supervision of two networks; the head of this file has the equations.

    Args:
        model: f1, which is evaluated and saved. f2 is a copy of it with another decoder, drawn from the seed.
        options, seed: as for every method.

    Raises:
        InputError: the two networks would start equal, and then stay equal because they get the same gradients.
    """

    name = "cps"
    Options = CPSOptions
    options: CPSOptions
    citation = Citation(
        "[Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision](https://arxiv.org/abs/2106.01226) "
        "(CVPR 2021)",
        """\
@inproceedings{chen2021cps,
  title={Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision},
  author={Chen, Xiaokang and Yuan, Yuhui and Zeng, Gang and Wang, Jingdong},
  booktitle={CVPR},
  year={2021}
}""",
    )
    strong_views = 0

    def __init__(self, model: nn.Module, options: CPSOptions | None = None, seed: int = 0):
        super().__init__(model, options, seed)
        self.second = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{seed}/second network".encode()))
            drawn = type(model)(copy.deepcopy(model.config))
        self.second.decoder.load_state_dict(drawn.decoder.state_dict())
        pairs = zip(model.decoder.parameters(), self.second.decoder.parameters(), strict=True)
        if all(torch.equal(one, other) for one, other in pairs):
            raise InputError(
                "The two networks of method 'cps' start with equal heads and would stay equal; give another --seed."
            )

    def check_batch(self, unlabeled: int) -> None:
        if self.options.cps_cutmix and unlabeled == 1:
            raise InputError(
                "--cps_cutmix mixes each unlabelled image with the next one of the total batch, which has only one; "
                "raise --per_device_unlabeled_batch_size (or --per_device_batch_size) to 2, or switch --cps_cutmix off."
            )

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        o = self.options
        # The pass with every gradient comes first: under autocast the others reuse its cast weights.
        x = self._logits(batch.image)
        if o.cps_cutmix:
            parts = [self._mixed(batch)]
        else:
            parts = [Supervision(x, self._targets(x))] if o.cps_on_labeled else []
            if o.cps_on_unlabeled:
                weak = self._logits(batch.weak)
                self._observe(weak[0], batch)
                parts.append(Supervision(weak, self._targets(weak), weak, batch.valid))
        return self.losses(x, parts, batch)

    def losses(self, x: Pair, parts: list[Supervision], batch: SemiBatch) -> tuple[Tensor, Logs]:
        """The total and all terms.

        Args:
            x: logits (B_l, K, H, W) of the labelled images.
            parts: of the batch under cross supervision; the last one is of unlabelled images if any are.
            batch: gives labels and step.
        """
        # Every process has equally many pixels, so the mean over the total batch is the processes' mean.
        of_1 = torch.cat([self._supervised(part.logits[0], part.targets[1]) for part in parts]).mean()
        of_2 = torch.cat([self._supervised(part.logits[1], part.targets[0]) for part in parts]).mean()
        terms = {
            "x1": self.labeled_loss(x[0], batch.label),
            "x2": self.labeled_loss(x[1], batch.label),
            "cps": of_1 + of_2,
        }
        total = terms["x1"] + terms["x2"] + self.options.cps_weight * terms["cps"]
        if self.options.inter_pixel_loss != "none":
            students, teachers, valid = parts[-1].logits, parts[-1].teachers, parts[-1].valid
            views = [(students[0], teachers[1], valid), (students[1], teachers[0], valid)]
            # The sum of both networks' terms, as of the other losses.
            terms["inter_pixel"] = 2 * inter_pixel_terms(self, views, batch.step)["inter_pixel"]
            total = total + terms["inter_pixel"]

        agree = [self._labels(part.targets[0]) == self._labels(part.targets[1]) for part in parts]
        return total, loss_logs(terms) | {"agreement": torch.cat(agree).float().mean()}

    def _observe(self, logits: Tensor, batch: SemiBatch) -> None:
        """Count f1's labels from logits (N, K, H, W) for the log: all of them count."""
        labels = PseudoLabels.of(logits[:, :, ::STEP, ::STEP], batch.valid[:, ::STEP, ::STEP])
        truth = None if batch.unlabeled_truth is None else batch.unlabeled_truth[:, ::STEP, ::STEP]
        self.class_statistics.observe(
            labels.labels, labels.confidence, labels.valid, labels.valid, truth=truth, thinned=True
        )

    def _logits(self, images: Tensor) -> Pair:
        return [self.model(images).logits, self.second(images).logits]

    def _targets(self, logits: Pair) -> Pair:
        """What each network teaches the other, without gradient."""
        hard = self.options.cps_supervision == "hard"
        return [one.argmax(1) if hard else one.detach() for one in logits]

    def _mixed(self, batch: SemiBatch) -> Supervision:
        """The mixed images, with targets mixed in the same way: mixing labels is mixing logits before the argmax."""
        rows, _, *size = batch.weak.shape
        self.check_batch(rows * world_size())
        mask = cutmix_mask(rows, size, batch.weak.device, seed=self.seed, step=batch.step)

        def mix(own: Tensor) -> Tensor:
            return torch.where(mask if own.ndim == 3 else mask.unsqueeze(1), next_rows(own), own)

        with torch.no_grad():
            plain = self._logits(batch.weak)
        self._observe(plain[0], batch)
        targets = [mix(target) for target in self._targets(plain)]
        teachers: Pair | None = None
        valid = None
        if self.options.inter_pixel_loss != "none":
            teachers, valid = [mix(logits) for logits in plain], mix(batch.valid)
        del plain  # otherwise it would keep its memory during the passes with gradient
        return Supervision(self._logits(mix(batch.weak)), targets, teachers, valid)

    def _supervised(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per pixel, (N, H, W)."""
        if self.options.cps_supervision == "hard":
            return F.cross_entropy(logits.float(), target, reduction="none")
        return soft_cross_entropy(logits, target)

    def _labels(self, target: Tensor) -> Tensor:
        return target if self.options.cps_supervision == "hard" else target.argmax(1)
