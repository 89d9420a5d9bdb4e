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

u' is the next image of the total batch, whatever the number of processes; an image alone is refused. The published runs
draw a second batch for u'. Here fi(u') is fi(u), one row on, which saves two of eight forward passes.

With --inter_pixel_loss (see `inter_pixel.py`), its weighted terms on the unlabelled images join the total: f1 against
f2's logits without gradient and f2 against f1's, on u or, with CutMix, on u_mix against the mixed logits. CPS knows no
confidence, so all pixels that are not padding are compared.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import world_size
from ..errors import InputError
from ..ops.losses import soft_cross_entropy
from ..ops.random_masks import cutmix_mask, next_rows
from .base import Logs, Method, Weight, choice
from .inter_pixel import InterPixelOptions, inter_pixel_term

Pair = list[Tensor]  # one of f1, one of f2


@dataclass
class CPSOptions(InterPixelOptions):
    """The defaults are those of the published runs on VOC without CutMix."""

    cps_weight: Weight = field(
        default=1.5,
        metadata={
            "help": "lambda: weight of the cross supervision (VOC 1.5, with CutMix 1; Cityscapes 6 and 5)."
        },
    )
    cps_cutmix: bool = field(
        default=False,
        metadata={"help": "Cross supervision on unlabelled images mixed with CutMix, and on them alone."},
    )
    cps_supervision: str = choice(
        "hard",
        ("hard", "soft"),
        "What a network learns from the other: its labels, or its probabilities (the paper's comparison, CPC).",
    )
    cps_on_labeled: bool = field(
        default=True, metadata={"help": "Cross supervision on labelled images; never with --cps_cutmix."}
    )
    cps_on_unlabeled: bool = field(default=True, metadata={"help": "Cross supervision on unlabelled images."})

    def problems(self) -> list[str]:
        found = super().problems()
        if self.cps_cutmix and not self.cps_on_unlabeled:
            found.append(
                "--cps_cutmix mixes unlabelled images, but --cps_on_unlabeled is off; switch one of them"
            )
        if self.inter_pixel_loss != "none" and not self.cps_on_unlabeled:
            found.append(
                f"--inter_pixel_loss {self.inter_pixel_loss} compares what the networks say of unlabelled images, but "
                "--cps_on_unlabeled is off; switch one of them"
            )
        if not self.cps_on_labeled and not self.cps_on_unlabeled:
            found.append(
                "--cps_on_labeled and --cps_on_unlabeled are both off; leave one on, or train with --method supervised"
            )
        return found


class CPS(Method):
    """Cross pseudo supervision of two networks. See the file's head for the equations.

    Args:
        model: f1, which is evaluated and saved. f2 is a copy of it with another decoder, drawn from the seed.
        options, seed: as for every method.

    Raises:
        InputError: the two networks would start equal. Both would then get the same gradients for ever.
    """

    name = "cps"
    Options = CPSOptions
    strong_views = 0
    options: CPSOptions

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
            mixed, targets, compared = self._mixed(batch)
            learnt = [(mixed, targets)]
        else:
            seen = [x] if o.cps_on_labeled else []
            if o.cps_on_unlabeled:
                seen.append(self._logits(batch.weak))
            learnt = [(logits, self._targets(logits)) for logits in seen]
            compared = (seen[-1], seen[-1], batch.valid)
        return self.losses(x, batch.label, learnt, compared, batch.step)

    def losses(
        self,
        x: Pair,
        label: Tensor,
        learnt: list[tuple[Pair, Pair]],
        compared: tuple[Pair, Pair, Tensor] | None = None,
        step: int = 0,
    ) -> tuple[Tensor, Logs]:
        """All terms and their total, from the networks' outputs.

        Args:
            x: logits (B_l, K, H, W) of the labelled images.
            label: (B_l, H, W) int64, ids or ignore_index.
            learnt: for each part of the batch under cross supervision, its logits (N, K, H, W) and the targets that
                the networks give: labels (N, H, W) or, with soft supervision, logits (N, K, H, W).
            compared: for the inter-pixel loss, what the networks say of the unlabelled images as students and as
                teachers, logits (N, K, H, W) each, and which pixels are not padding, (N, H, W) bool.
            step: of the loss's random choice of pixels.
        """
        # Every process has as many pixels, so the mean over the total batch is the processes' mean.
        of_1 = torch.cat([self._supervised(logits[0], targets[1]) for logits, targets in learnt]).mean()
        of_2 = torch.cat([self._supervised(logits[1], targets[0]) for logits, targets in learnt]).mean()
        terms = {
            "x1": self.labeled_loss(x[0], label),
            "x2": self.labeled_loss(x[1], label),
            "cps": of_1 + of_2,
        }
        total = terms["x1"] + terms["x2"] + self.options.cps_weight * terms["cps"]
        if self.options.inter_pixel_loss != "none":
            students, teachers, valid = compared
            terms["inter_pixel"] = sum(
                # Another draw of pixels for each network.
                inter_pixel_term(
                    self.options, students[i], teachers[1 - i], valid, seed=self.seed + i, step=step
                )
                for i in range(2)
            )
            total = total + terms["inter_pixel"]

        logs = {f"loss/{name}": value.detach() for name, value in terms.items()}
        agree = [self._labels(targets[0]) == self._labels(targets[1]) for _, targets in learnt]
        logs["agreement"] = torch.cat(agree).float().mean()
        return total, logs

    def _logits(self, images: Tensor) -> Pair:
        return [self.model(images).logits, self.second(images).logits]

    def _targets(self, logits: Pair) -> Pair:
        """What each network gives the other to learn, without gradient."""
        hard = self.options.cps_supervision == "hard"
        return [one.argmax(1) if hard else one.detach() for one in logits]

    def _mixed(self, batch: SemiBatch) -> tuple[Pair, Pair, tuple[Pair, Pair, Tensor] | None]:
        """Logits of the mixed images, targets mixed alike, and what `losses` compares; None where nothing is compared.

        Mixing labels is mixing logits before the argmax.
        """
        rows, _, *size = batch.weak.shape
        self.check_batch(rows * world_size())
        mask = cutmix_mask(rows, size, batch.weak.device, seed=self.seed, step=batch.step)

        def mix(own: Tensor) -> Tensor:
            return torch.where(mask if own.ndim == 3 else mask.unsqueeze(1), next_rows(own), own)

        with torch.no_grad():
            plain = self._logits(batch.weak)
        targets = [mix(target) for target in self._targets(plain)]
        teachers = [mix(logits) for logits in plain] if self.options.inter_pixel_loss != "none" else None
        del plain  # or it would take its memory during the passes with gradient, too
        logits = self._logits(mix(batch.weak))
        return logits, targets, teachers and (logits, teachers, mix(batch.valid))

    def _supervised(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy per pixel, (N, H, W)."""
        if self.options.cps_supervision == "hard":
            return F.cross_entropy(logits.float(), target, reduction="none")
        return soft_cross_entropy(logits, target)

    def _labels(self, target: Tensor) -> Tensor:
        return target if self.options.cps_supervision == "hard" else target.argmax(1)
