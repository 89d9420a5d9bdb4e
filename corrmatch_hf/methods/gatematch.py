"""GateMatch: supervised burn-in, then consistency with an EMA teacher; CorrMatch's propagation behind gates.

The package's own recipe. Every ingredient is an option, so that each can be measured alone (benchmarks/promise.py).
With f the network, g its moving average, t the share of the run that is done and b the burn-in's share:

    t < b     L = L_x                                                one pass: f on x, the labelled images
    t >= b    L = l L_x + r(t) u L_u      r rises from 0 to 1 during the ramp-up, then stays 1

    1. g on u_w, weak views, in evaluation mode without gradient: probabilities p, Y = argmax p, c = max p
       (with `teacher_flip` p is the mean over the view and its mirror image); CutMix pastes the partner's Y and c
    2. f on x
    3. f on u_s, strong views (with `paste_probability`, objects of the labelled images with their true labels are
       pasted into some of them: every class of a labelled crop with chance 1/2, but for the most frequent class;
       with `paste_while` "untaught" only while `teacher_recall` leaves out a class, which is seen more often so;
       with feature perturbation "dropout", some channels of the features are dropped; "complementary": two strong
       views, each with the channels that the other lacks)

    L_x = sum of w_y CE(f(x), y) / sum of w_y                        w: class weights frequency^-p (class_weights.py)
    L_u = sum of v_Y k CE(f(u_s), Y) / sum over valid pixels of v_Y  v: w or 1; k: how much a pixel counts

With `soft_labels`, CE(f(u_s), Y) is the cross-entropy with p itself, which CutMix pastes as well: what the teacher
holds possible is taught, too, so that pixels that it is unsure of need not be left out (tau is 0 unless given). With
`sharpening` s, p^s normalised over the classes is taught (MixMatch, equation 7, with T = 1 / s).

With `teacher_rounds` n > 0, step 1 uses a copy of g that is renewed n times, first at the end of the burn-in:
self-training in rounds, where wrong labels cannot feed on themselves within a round.

With `teacher_recall` r > 0, classes of which g finds less than a share r of the labelled pixels when its copy is
renewed (without rounds: by the last measurements, every `gate_interval` steps; class_recall.py) are left to the
labelled images. In L_u the softmax is then over the other classes, and p counts for those alone: what the teacher does
not know, unlabelled images neither teach nor make the student forget.

With `alignment` a > 0 (distribution alignment) p is first brought towards the labelled images' class frequencies q:
p_c <- p_c (q_c / n_c)^a, normalised, with n the moving mean of p over the unlabelled pixels. A class that the teacher
predicts too often loses confidence, one that it begins to forget gains it: wrong labels breed fewer of their kind.

What a pixel counts, by `threshold`, with tau the `confidence_threshold` and m_Y, s_Y the moving mean and deviation of
the confidence of the pixels predicted as class Y:

    fixed        k = [c >= tau]
    global       k = [c >= CorrMatch's dynamic threshold]            (equations 11 and 13; dynamic_threshold.py)
    class_mean   k = [c >= min(m_Y, tau)]                            the better half of every class
    soft         k = exp(-min(c - m_Y, 0)^2 / (2 (s_Y / 2)^2))        SoftMatch's truncated Gaussian for every class

CorrMatch's ideas, off by default. Pixel propagation (`correlation_weight` a > 0) adds a times the losses of the
propagated logits z on x and on u_s. Region propagation paints Y along correlation shapes of g, with a ratio of its own;
with `propagation_accuracy` > 0 it is only used while the pixels that it adds are at least that accurate on the labelled
images, measured every `gate_interval` steps (moving average).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.batch import SemiBatch
from ..distributed import all_reduce, per_process, rank, world_size
from ..evaluation.inference import evaluating
from ..model import CorrMatchFeatures, correlation_rows, pixel_propagation, resize
from ..ops.per_class import sums_per_class
from ..ops.random_masks import stacked_channel_mask, step_generator
from ..ops.region_propagation import propagate_rows
from ..options import option
from .base import Logs, Method, MethodOptions
from .class_recall import ClassRecall
from .class_weights import ClassWeights
from .dynamic_threshold import DynamicThreshold
from .feature_perturbation import with_complementary_channels
from .teacher import Teacher


@dataclass
class GateMatchOptions(MethodOptions):
    """Every ingredient of the recipe."""

    burn_in: float = option(
        0.4, "Share of the steps that are supervised only, at the start.", at_least=0, at_most=1
    )
    teacher_decay: float = option(0.99, "Share of the teacher kept by a step.", at_least=0, below=1)
    teacher_rounds: int = option(
        0,
        "Labels come from a copy of the teacher, renewed so many times; 0: from the teacher itself.",
        at_least=0,
    )
    teacher_flip: bool = option(False, "Average the teacher's prediction with that of the mirror image.")
    soft_labels: bool = option(
        False, "Teach the teacher's probabilities of all classes instead of its label of each pixel."
    )
    sharpening: float = option(
        1.0, "soft_labels: power that probabilities are raised to, then normalised; 1: none.", at_least=1
    )
    teacher_recall: float = option(
        0.0,
        "Share of a class's labelled pixels that the teacher must find to teach that class; 0: it teaches all.",
        at_least=0,
        at_most=1,
    )
    labeled_weight: float = option(1.0, "Weight of the labelled loss.", at_least=0)
    unlabeled_weight: float = option(1.0, "Weight of the unlabelled loss.", at_least=0)
    ramp_up: float = option(
        0.0, "Share of the steps over which the unlabelled weight rises.", at_least=0, at_most=1
    )
    alignment: float = option(
        0.0,
        "How far predictions are brought to the labelled class frequencies; 0: not at all.",
        at_least=0,
        at_most=1,
    )
    threshold: Literal["fixed", "global", "class_mean", "soft"] = option(
        "fixed", "Which pseudo-labels count; see the method's description."
    )
    confidence_threshold: float | None = option(
        None,
        "fixed: the threshold; class_mean: its largest value; soft: the means at the start (0.95; fixed with "
        "soft_labels: 0).",
        at_least=0,
        at_most=1,
        only_with=("threshold=fixed", "threshold=class_mean", "threshold=soft"),
    )
    statistics_momentum: float = option(
        0.99,
        "class_mean, soft, alignment: share of old statistics kept by a step.",
        at_least=0,
        below=1,
        only_with=("threshold=class_mean", "threshold=soft", "alignment"),
    )
    class_weight_power: float = option(
        0.0, "Class weights frequency^-power in the labelled loss; 0: none.", at_least=0
    )
    unlabeled_class_weights: bool = option(False, "Use the class weights in the unlabelled loss, too.")
    paste_probability: float = option(
        0.0, "Chance that objects of a labelled image are pasted into a strong view.", at_least=0, at_most=1
    )
    paste_while: Literal["always", "untaught"] = option(
        "always",
        "Paste always, or only while teacher_recall leaves out a class.",
        only_with="paste_probability",
    )
    feature_perturbation: Literal["none", "dropout", "complementary"] = option(
        "none", "Drop channels of the strong view's features, or share them out to two strong views."
    )
    feature_dropout: float = option(
        0.5,
        "dropout: share of channels dropped.",
        at_least=0,
        below=1,
        only_with="feature_perturbation=dropout",
    )
    correlation_weight: float = option(
        0.0, "Pixel propagation: weight of the propagated logits' losses; 0: off.", at_least=0
    )
    region_propagation: bool = option(False, "Spread confident labels along correlation shapes.")
    region_ratio: float = option(
        0.85,
        "Share of a shape that must be confident, and of one class.",
        at_least=0,
        at_most=1,
        only_with="region_propagation",
    )
    num_shapes: int = option(
        128, "Correlation shapes sampled per image.", at_least=1, only_with="region_propagation"
    )
    propagation_accuracy: float = option(
        0.0, "Accuracy on labelled images that added pixels need; 0: no such gate.", at_least=0, at_most=1
    )
    gate_interval: int = option(
        10,
        "Steps between measurements on labelled images, for propagation_accuracy and teacher_recall.",
        at_least=1,
        only_with=("propagation_accuracy", "teacher_recall"),
    )

    @property
    def tau(self) -> float:
        """`confidence_threshold` or, where it is not given, its default."""
        if self.confidence_threshold is not None:
            return self.confidence_threshold
        return 0.0 if self.soft_labels and self.threshold == "fixed" else 0.95

    @property
    def needs_correlation(self) -> bool:
        """Whether the correlation head is trained."""
        return self.correlation_weight > 0 or self.region_propagation

    def problems(self) -> list[str]:
        found = super().problems()
        if self.region_propagation and not self.correlation_weight:
            found.append(
                "--region_propagation needs a trained correlation head: give --correlation_weight, e.g. 0.5"
            )
        if self.region_propagation and self.soft_labels:
            found.append("--region_propagation spreads whole labels: give --soft_labels False")
        if self.class_weight_power and self.labeled_loss != "ce":
            found.append(f"--labeled_loss {self.labeled_loss} has no class weights: give --labeled_loss ce")
        if self.paste_while == "untaught" and self.paste_probability and not self.teacher_recall:
            found.append(
                "--paste_while untaught pastes while --teacher_recall leaves out a class: give --teacher_recall, "
                "e.g. 0.7, or --paste_while always"
            )
        if self.sharpening != 1 and not self.soft_labels:
            found.append("--sharpening changes soft labels alone: leave it out, or give --soft_labels")
        if self.unlabeled_class_weights and not self.class_weight_power:
            found.append("--unlabeled_class_weights needs class weights: give --class_weight_power, e.g. 0.5")
        if self.propagation_accuracy and not self.region_propagation:
            found.append(
                "--propagation_accuracy gates region propagation: leave it out, or give --region_propagation "
                "--correlation_weight 0.5 --soft_labels False"
            )
        if self.teacher_recall and self.teacher_rounds and not self.burn_in:
            found.append(
                "--teacher_recall judges a teacher that has learnt something: give --burn_in, e.g. 0.3333"
            )
        return found


class Targets(NamedTuple):
    """Pseudo-labels of N views: labels (N, H, W) int64, how much each pixel counts, (N, H, W) float32, and with
    `soft_labels` the probabilities that are taught, (N, K, H, W) float32."""

    labels: Tensor
    weight: Tensor
    probability: Tensor | None = None

    def of(self, views: slice | Tensor) -> Targets:
        """Those of some of the views."""
        return Targets(*(part if part is None else part[views] for part in self))

    def pasted(self, other: Targets, box: Tensor) -> Targets:
        """These with `other`'s inside the box (N, H, W)."""
        labels, weight = (
            torch.where(box, other.labels, self.labels),
            torch.where(box, other.weight, self.weight),
        )
        if self.probability is None:
            return Targets(labels, weight)
        return Targets(labels, weight, torch.where(box.unsqueeze(1), other.probability, self.probability))


class GateMatch(Method):
    """GateMatch's training step. See the file's head for the equations."""

    name = "gatematch"
    advice = "a higher --confidence_threshold, a lower --unlabeled_weight"
    advice_for_starving = "--threshold class_mean, or --class_weight_power 0.5"
    Options = GateMatchOptions
    options: GateMatchOptions
    renewed = ("labeler.", "class_recall.taught")

    def __init__(self, model: nn.Module, options: GateMatchOptions | None = None, seed: int = 0):
        options = options if options is not None else self.Options()
        super().__init__(model, options, seed)
        classes = model.config.num_labels
        self.strong_views = 2 if options.feature_perturbation == "complementary" else 1
        self.teacher = Teacher(model, options.teacher_decay)
        self.labeler = copy.deepcopy(self.teacher.network) if options.teacher_rounds else None
        self.class_weights = ClassWeights(classes, options.class_weight_power)
        self.class_recall = ClassRecall(classes) if options.teacher_recall else None
        self.dynamic = DynamicThreshold(classes)  # at CorrMatch's values; used by threshold "global" alone
        self.register_buffer("confidence_mean", torch.full((classes,), options.tau))
        self.register_buffer("confidence_variance", torch.full((classes,), 0.01))
        self.register_buffer("prediction_mean", torch.zeros(classes))  # zero until it is measured
        # Accuracy of the pixels that propagation adds, on labelled images: 0 until it is measured.
        self.register_buffer("added_accuracy", torch.zeros(()))
        if self.labeler is not None:
            self.register_buffer("labeler_is_taught", torch.zeros((), dtype=torch.bool))
        self._labeler_is_taught = False  # what is known of it on the host
        self.total_steps: int | None = None
        if options.soft_labels:
            self.advice = "a longer training, a lower --unlabeled_weight"
        elif not options.region_propagation:
            rounds = "--threshold fixed --soft_labels --teacher_rounds 2 --teacher_flip --lr_restart 1"
            heard = options.threshold in ("fixed", "class_mean")
            self.advice = f"{rounds}, {GateMatch.advice if heard else 'a lower --unlabeled_weight'}"
        if options.threshold == "class_mean" or options.class_weight_power:
            self.advice_for_starving = Method.advice_for_starving

    @classmethod
    def needs_correlation_head(cls, options: Any) -> bool:
        return options.needs_correlation

    def plan(self, total_steps: int) -> None:
        self.total_steps = total_steps

    @property
    def supervised_passes(self) -> int:
        """The burn-in."""
        return round(self.options.burn_in * (self.total_steps or 0))

    @property
    def rate_restarts(self) -> set[int]:
        """The burn-in's end, and each round of soft labels: a student must be able to leave where its teacher is."""
        return self.renewals if self.options.soft_labels else {self.supervised_passes}

    @property
    def renewals(self) -> set[int]:
        """The burn-in's end, and evenly over the rest of the run: when the copy of the teacher is renewed."""
        start, rounds = self.supervised_passes, max(self.options.teacher_rounds, 1)
        rest = (self.total_steps or 0) - start
        return {start + round(rest * i / rounds) for i in range(rounds)}

    def ramp(self, step: int) -> float:
        """r(t): what the unlabelled weight is multiplied by."""
        length = self.options.ramp_up * (self.total_steps or 0)
        return min(1.0, (step - self.supervised_passes + 1) / length) if length else 1.0

    def forward(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        self.class_weights.update(batch.label)
        x, x_corr = self._student(batch.image, batch.step, "labelled")
        labeled = self.labeled_loss(x, batch.label)
        logs = {"loss/x": labeled.detach()}
        if x_corr is not None:
            correlation = self.labeled_loss(x_corr, batch.label)
            labeled = labeled + self.options.correlation_weight * correlation
            logs["loss/x_corr"] = correlation.detach()
        if self.class_recall is not None:
            self._measure_recall(batch)
        if batch.step < self.supervised_passes:
            return labeled, logs | self._nothing_unlabeled()
        renewed = self.labeler is None or batch.step in self.renewals or not self._knows_labels()
        if renewed and self.labeler is not None:
            self.labeler.load_state_dict(self.teacher.network.state_dict())
            self.labeler_is_taught.fill_(True)
        if renewed and self.class_recall is not None:
            self.class_recall.decide(self.options.teacher_recall)
        if self.options.propagation_accuracy and batch.step % self.options.gate_interval == 0:
            self._measure_propagation(batch)
        unlabeled, more = self._unlabeled(batch)
        total = self.options.labeled_weight * labeled
        total = total + self.options.unlabeled_weight * self.ramp(batch.step) * unlabeled
        return total, logs | more

    def _knows_labels(self) -> bool:
        """Whether the labelling copy was ever renewed: not where a run is resumed with an earlier end of the burn-in.

        Read from the device once.
        """
        self._labeler_is_taught = self._labeler_is_taught or bool(self.labeler_is_taught)
        return self._labeler_is_taught

    def _nothing_unlabeled(self) -> Logs:
        """What the burn-in logs of the unlabelled part: the names are the same in every step of a run."""
        names = ["loss/u", "kept_ratio"]
        if self.options.region_propagation:
            names += ["propagated_ratio", "added_accuracy"]
        return dict.fromkeys(names, torch.zeros_like(self.added_accuracy))

    # ------------------------------------------------------------------------------------------------- losses

    def labeled_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with class weights; without weights the loss that the options choose."""
        if not self.options.class_weight_power:
            return super().labeled_loss(logits, labels)
        weights, ignored = self.class_weights.weights(), self.model.config.ignore_index
        summed = F.cross_entropy(
            logits.float(), labels, weight=weights, ignore_index=ignored, reduction="sum"
        )
        counted = labels != ignored
        return summed / per_process((weights[torch.where(counted, labels, 0)] * counted).sum())

    def unlabeled_loss(self, logits: Tensor, target: Targets, valid: Tensor) -> Tensor:
        """Weighted cross-entropy of logits (N, K, H, W) against pseudo-labels, over all valid pixels (N, H, W)."""
        taught = target.labels if target.probability is None else target.probability
        logits = logits.float()
        if self.class_recall is not None:
            logits = self._among_taught_classes(logits, target)
        loss = F.cross_entropy(logits, taught, reduction="none")
        weight = valid.float()
        if self.options.unlabeled_class_weights:
            weight = weight * self.class_weights.weights()[target.labels]
        return (loss * target.weight * weight).sum() / per_process(weight.sum())

    def _among_taught_classes(self, logits: Tensor, target: Targets) -> Tensor:
        """Logits (N, K, H, W) without the classes that unlabelled images do not teach: their pixels are neither given
        to another class nor taken from one. A pasted object's true class stays where it is."""
        left = ~self.class_recall.taught[:, None, None]
        if target.probability is not None:
            absent = left & (target.probability == 0)
        else:
            classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
            absent = left & (classes != target.labels.unsqueeze(1))
        return logits.masked_fill(absent, -1e9)

    def _unlabeled(self, batch: SemiBatch) -> tuple[Tensor, Logs]:
        o, count = self.options, len(batch.weak)
        # Weak views and the partners that are not among them, in one pass of the teacher.
        seen = batch.partner_places or [-1] * len(batch.partner_rows)
        unseen = [i for i, place in enumerate(seen) if place < 0]
        views = torch.cat([batch.weak, *(batch.partner_weak[i : i + 1] for i in unseen)])
        views_valid = torch.cat([batch.valid, *(batch.partner_valid[i : i + 1] for i in unseen)])
        plain, propagated = self.targets(views, views_valid, batch.step, update=True, batch=batch)

        pixels = per_process(views_valid.sum())
        logs = {"kept_ratio": (self._counted(plain) * views_valid).sum() / pixels}
        if o.region_propagation:
            logs["propagated_ratio"] = (self._counted(propagated) * views_valid).sum() / pixels
            logs["added_accuracy"] = self.added_accuracy.clone()

        # Where each row's partner stands among the views; a row without a box points to itself.
        place = list(range(count))
        for i, row in enumerate(batch.partner_rows):
            place[row] = seen[i] if seen[i] >= 0 else count + unseen.index(i)
        place = torch.tensor(place).to(views.device, non_blocking=True)
        own, partner = propagated.of(slice(count)), propagated.of(place)

        views_strong, mixed_targets = [], []
        for view, box in enumerate(batch.box.unbind(1)):
            mixed, mixed_valid = own.pasted(partner, box), torch.where(box, views_valid[place], batch.valid)
            image = batch.strong[:, view]
            if o.paste_probability:
                object_pixels, rows = self.pasted_objects(batch, view)
                image = torch.where(object_pixels.unsqueeze(1), batch.image[rows], image)
                true = self.true_targets(batch.label[rows])
                mixed, mixed_valid = mixed.pasted(true, object_pixels), mixed_valid | object_pixels
            views_strong.append(image)
            mixed_targets.append((mixed, mixed_valid))

        del plain, propagated, own, partner, mixed  # soft labels are as large as logits
        strong, strong_corr = self._student(
            torch.cat(views_strong), batch.step, "strong", o.feature_perturbation
        )
        terms = []
        for view, (mixed, mixed_valid) in enumerate(mixed_targets):
            part = slice(view * count, (view + 1) * count)
            loss = self.unlabeled_loss(strong[part], mixed, mixed_valid)
            if strong_corr is not None:
                loss = loss + o.correlation_weight * self.unlabeled_loss(
                    strong_corr[part], mixed, mixed_valid
                )
            terms.append(loss)
        unlabeled = sum(terms) / len(terms)
        return unlabeled, {"loss/u": unlabeled.detach()} | logs

    def true_targets(self, labels: Tensor) -> Targets:
        """Labels (N, H, W) that all count. Ignored pixels have class 0: they are pasted nowhere."""
        classes = self.model.config.num_labels
        labels = torch.where((labels >= 0) & (labels < classes), labels, 0)
        weight = torch.ones_like(labels, dtype=torch.float32)
        if not self.options.soft_labels:
            return Targets(labels, weight)
        shape = (len(labels), classes, *labels.shape[1:])
        return Targets(labels, weight, weight.new_zeros(shape).scatter_(1, labels.unsqueeze(1), 1))

    def pasted_objects(self, batch: SemiBatch, view: int) -> tuple[Tensor, Tensor]:
        """Pixels of strong view `view` that show objects of labelled images: (B_u, H, W) bool, and the row of the
        labelled image that each of the B_u views takes them from, (B_u,) int64."""
        count, classes, device = len(batch.weak), len(self.class_weights.counts), batch.weak.device
        # The same pairs on one process or several.
        rows = torch.arange(count, device=device) * len(batch.image) // count
        generator = step_generator(device, self.seed, batch.step, f"paste {view}")
        draw = torch.rand(count * world_size(), classes + 1, generator=generator, device=device)
        draw = draw[rank() * count : (rank() + 1) * count]
        taken = draw[:, :-1] < 0.5  # (B_u, K)
        taken &= torch.arange(classes, device=device) != self.class_weights.counts.argmax()
        if self.options.paste_while == "untaught":
            taken &= ~self.class_recall.taught.all()
        taken &= draw[:, -1:] < self.options.paste_probability
        label = batch.label[rows]
        inside = (label >= 0) & (label < classes)
        chosen = taken.gather(1, torch.where(inside, label, 0).flatten(1)).view_as(label)
        return chosen & inside, rows

    # ----------------------------------------------------------------------------------------------- networks

    def _student(
        self, images: Tensor, step: int, use: str, perturbation: str = "none"
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (N, K, H, W) and, where the correlation head is trained, propagated logits of that size."""
        model, size = self.model, images.shape[-2:]
        features = model.encode(images)
        if perturbation == "complementary":
            features = with_complementary_channels(features, seed=self.seed, step=step, whole=True)
        elif perturbation == "dropout":
            features = CorrMatchFeatures(
                level * self._mask(level, self.options.feature_dropout, step, f"{use} features {i}")
                for i, level in enumerate(features)
            )
        decoded = model.decode(features)
        logits = model.upsample(decoded.logits, size)
        if not self.options.needs_correlation:
            return logits, None
        config = model.config
        shape = images.new_empty(len(images), config.correlation_channels)
        mask = self._mask(shape, config.correlation_dropout, step, f"{use} correlation")
        query, key = model.correlate(features, decoded, channel_mask=mask.flatten(1))
        source = resize(logits.detach(), query.shape[-2:])
        return logits, resize(pixel_propagation(query, key, source, config.correlation_scale), size)

    def _mask(self, level: Tensor, probability: float, step: int, use: str) -> Tensor:
        """Channel dropout for a level (N, C, ...): (N, C, 1, 1)."""
        rows, channels = level.shape[:2]
        mask = stacked_channel_mask(
            (rows,), channels, probability, level.device, seed=self.seed, step=step, use=use
        )
        return mask.to(level.dtype)[:, :, None, None]

    @torch.no_grad()
    def targets(
        self,
        views: Tensor,
        valid: Tensor,
        step: int,
        update: bool = False,
        gated: bool = True,
        batch: SemiBatch | None = None,
    ) -> tuple[Targets, Targets]:
        """The teacher's pseudo-labels for views (N, 3, H, W): before and after region propagation.

        Args:
            views: normalised images.
            valid: (N, H, W) bool, False on padding.
            step: of the draw of correlation shapes.
            update: let the threshold's statistics follow these views.
            gated: whether the gate decides about propagation; else it is done where it is switched on.
            batch: whose weak views are the first of `views`; they are counted for the log.
        """
        o, size = self.options, views.shape[-2:]
        network = self.teacher.network if self.labeler is None else self.labeler
        with evaluating(network):
            features = network.encode(views)
            decoded = network.decode(features)
            probability = network.upsample(decoded.logits, size).float().softmax(1)
            if o.teacher_flip:
                probability = (probability + network(views.flip(-1)).logits.float().softmax(1).flip(-1)) / 2
            if o.alignment:
                probability = self._aligned(probability, valid, update)
            confidence, labels = probability.max(1)
            if update:
                self._follow(confidence, labels, valid)
            weight = self.weight(confidence, labels) * valid
            taught = self._taught(probability) if o.soft_labels else None
            if self.class_recall is not None:
                if taught is None:
                    weight = weight * self.class_recall.taught[labels]
                else:
                    taught = taught * self.class_recall.taught[:, None, None]
            plain = Targets(labels, weight, taught)
            if not o.region_propagation or (gated and not self.gate_is_open):
                self._observe(batch, confidence, plain, plain, valid)
                return plain, plain
            query, key = network.correlate(features, decoded)
            generator = step_generator(views.device, self.seed, step, "shapes")
            index = torch.randint(
                query[0, 0].numel(), (o.num_shapes,), generator=generator, device=views.device
            )
            rows = correlation_rows(query, key, index, network.config.correlation_scale)
        labels, kept = propagate_rows(
            rows, labels, weight > 0.5, valid, o.region_ratio, num_labels=network.config.num_labels
        )
        propagated = Targets(labels, torch.maximum(weight, kept.float()))
        self._observe(batch, confidence, plain, propagated, valid)
        return plain, propagated

    def _observe(
        self, batch: SemiBatch | None, confidence: Tensor, plain: Targets, after: Targets, valid: Tensor
    ) -> None:
        """Count the pseudo-labels of the weak views of `batch` for the log."""
        if batch is None:
            return
        views = slice(len(batch.weak))
        self.class_statistics.threshold = self.class_thresholds
        if self.class_recall is not None:
            self.class_statistics.taught = self.class_recall.taught
        self.class_statistics.observe(
            plain.labels[views],
            confidence[views],
            self._counted(plain)[views] > 0.5,
            valid[views],
            (after.labels[views], after.weight[views] > 0.5) if self.options.region_propagation else None,
            batch.unlabeled_truth,
        )

    def _counted(self, target: Targets) -> Tensor:
        """How much each pixel counts for the class that it is predicted as, (N, H, W)."""
        return (
            target.weight
            if self.class_recall is None
            else target.weight * self.class_recall.taught[target.labels]
        )

    def _measure_recall(self, batch: SemiBatch) -> None:
        """Of the teacher on labelled images, now and then, and right before it is judged."""
        if batch.step % self.options.gate_interval and batch.step not in self.renewals:
            return
        with evaluating(self.teacher.network):
            self.class_recall.update(self.teacher.network(batch.image).logits, batch.label)

    @property
    def class_thresholds(self) -> Tensor | None:
        """(K,) where each class has a threshold of its own."""
        if self.options.threshold != "class_mean":
            return None
        return self.confidence_mean.clamp(max=self.options.tau)

    # --------------------------------------------------------------------------------------------- thresholds

    def weight(self, confidence: Tensor, labels: Tensor) -> Tensor:
        """k, (N, H, W) float32: how much each pseudo-label counts."""
        o = self.options
        if o.threshold == "global":
            return self.dynamic.confident(confidence, labels).float()
        if o.threshold == "class_mean":
            return (confidence >= self.confidence_mean.clamp(max=o.tau)[labels]).float()
        if o.threshold == "soft":
            below = (confidence - self.confidence_mean[labels]).clamp(max=0)
            return torch.exp(-2 * below.square() / self.confidence_variance[labels].clamp(min=1e-6))
        return (confidence >= o.tau).float()

    def _follow(self, confidence: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Let the statistics of the chosen threshold follow one batch; a class without a pixel keeps its own."""
        if self.options.threshold == "global":
            self.dynamic.update(confidence, labels, valid)
        if self.options.threshold not in ("class_mean", "soft"):
            return
        classes = len(self.confidence_mean)

        def per_class(values: Tensor) -> Tensor:
            return all_reduce(sums_per_class(values, labels, classes, valid))

        count = per_class(torch.ones_like(confidence))
        mean = per_class(confidence) / count.clamp(min=1)
        variance = per_class((confidence - mean[labels]).square()) / count.clamp(min=1)
        kept = torch.where(count > 0, self.options.statistics_momentum, 1.0)
        self.confidence_mean.mul_(kept).add_((1 - kept) * mean)
        self.confidence_variance.mul_(kept).add_((1 - kept) * variance)

    def _taught(self, probability: Tensor) -> Tensor:
        """Probabilities (N, K, H, W) sharpened, with 0 where the teacher is not finite (what counts there is 0)."""
        if self.options.sharpening != 1:
            probability = (probability.log() * self.options.sharpening).softmax(1)
        return probability.nan_to_num()

    def _aligned(self, probability: Tensor, valid: Tensor, update: bool) -> Tensor:
        """Probabilities (N, K, H, W) brought towards the labelled class frequencies."""
        pixels = all_reduce((probability * valid.unsqueeze(1)).sum((0, 2, 3)))
        batch_mean = pixels / pixels.sum().clamp(min=1)
        mean = torch.where(self.prediction_mean.sum() > 0, self.prediction_mean, batch_mean)
        if update:
            momentum = self.options.statistics_momentum
            self.prediction_mean.copy_(momentum * mean + (1 - momentum) * batch_mean)
            mean = self.prediction_mean
        share = self.class_weights.counts.clamp(min=1)
        share = (share / share.sum()).float()
        aligned = probability * (share / mean.clamp(min=1e-6)).pow(self.options.alignment)[:, None, None]
        return aligned / aligned.sum(1, keepdim=True)

    @property
    def gate_is_open(self) -> bool:
        """Whether region propagation has been accurate enough on labelled images."""
        return not self.options.propagation_accuracy or bool(
            self.added_accuracy >= self.options.propagation_accuracy
        )

    def _measure_propagation(self, batch: SemiBatch) -> None:
        """Accuracy, on labelled images, of the pixels that propagation adds or changes (moving average)."""
        valid = batch.label != self.model.config.ignore_index
        plain, after = self.targets(batch.image, valid, batch.step, gated=False)
        added = (after.weight > 0.5) & ((plain.weight <= 0.5) | (after.labels != plain.labels)) & valid
        right, count = all_reduce(
            torch.stack([((after.labels == batch.label) & added).sum(), added.sum()])
        ).float()
        first = self.added_accuracy == 0
        followed = torch.where(
            first, right / count.clamp(min=1), 0.8 * self.added_accuracy + 0.2 * right / count
        )
        self.added_accuracy.copy_(torch.where(count > 0, followed, self.added_accuracy))
