"""AllSpark inside UniMatch V2: labeled features are rebuilt from the teacher's while the strong views learn."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from ..data.views import STRONG_1, STRONG_2, WEAK
from ..utils.arguments import documented
from .allspark import AllSparkMethodArguments
from .base import StepLosses
from .pseudo_labels import pseudo_label_pass
from .strong_views import complementary_dropout, cutmix, in_drawn_order, unpack_channel_bits
from .teacher import TeacherArguments, TeacherMethod


@documented
@dataclass
class AllSparkUniMatchArguments(TeacherArguments, AllSparkMethodArguments):
    """What UniMatch V2 and the memory of AllSpark need."""


class AllSparkUniMatch(TeacherMethod):
    """
    L = ((L_x + L_self) / 2 + (L_s1 + L_s2) / 2) / 2: the step of UniMatch V2, with labeled images read twice. For L_x
    the bottleneck rebuilds their features from the memory, which the teacher's weak unlabeled features fill
    (AllSpark). For L_self their features attend to themselves, as in inference; no other term trains this on clean
    images.
    """

    arguments_class = AllSparkUniMatchArguments
    labeled_views = (WEAK,)
    unlabeled_views = (WEAK, STRONG_1, replace(STRONG_2, channel_bits=True))
    title = "AllSpark with UniMatch V2"
    description = "the step of unimatch_v2, with labeled features also rebuilt from the memory of weak unlabeled ones"
    needs_bottleneck = True
    trains_unlabeled_branch = False

    def step(self, model, batch, pixels, epoch):
        weak, labeled = batch["unlabeled_pixel_values"], batch["pixel_values"]
        predicted = pseudo_label_pass(self.teacher, weak, self.threshold, keep_features=True)
        pseudo_labels = self.confident_labels(predicted, batch)
        strong_1, labels_1 = cutmix(batch, "strong_1", batch["unlabeled_pixel_values_strong_1"], pseudo_labels)
        strong_2, labels_2 = cutmix(batch, "strong_2", batch["unlabeled_pixel_values_strong_2"], pseudo_labels)
        drawn, kept = unpack_channel_bits(batch["unlabeled_channel_bits_strong_2"])

        rebuilt = model(
            pixel_values=labeled,
            unlabeled_features=in_drawn_order(predicted.features),
            unlabeled_logits=None if predicted.logits is None else in_drawn_order(predicted.logits),
            read_memory=self.is_over(self.args.memory_warmup_epochs, epoch),
        ).logits
        images = torch.cat([labeled, strong_1, strong_2])
        logits = model(pixel_values=images, perturb=partial(complementary_dropout, drawn=drawn, kept=kept)).logits
        own, logits_1, logits_2 = logits.split([len(labeled), len(weak), len(weak)])

        loss_x, used_x = self.labeled_loss(rebuilt, batch["labels"], pixels)
        loss_self, _ = self.labeled_loss(own, batch["labels"], pixels)
        loss_1, _ = self.unlabeled_loss(logits_1, labels_1, pixels)
        loss_2, _ = self.unlabeled_loss(logits_2, labels_2, pixels, view=1)
        loss_u = (loss_1 + loss_2) / 2
        terms = {"loss_x": loss_x, "loss_self": loss_self, "loss_u": loss_u}
        terms |= {"used_x": used_x, "used_u": self.kept(pseudo_labels, batch)}
        terms["pseudo_confidence"] = self.confidence(predicted.confidence, pseudo_labels)
        return StepLosses(self.total((loss_x + loss_self) / 2, loss_u, epoch), terms, pseudo_labels)
