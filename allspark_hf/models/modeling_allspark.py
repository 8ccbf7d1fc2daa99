"""SegFormer for semi-supervised segmentation, and what every such model shares."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SegformerModel, SegformerPreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BackboneOutput, SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.utils.generic import can_return_tuple

from .bottleneck_allspark import MEMORY_KEYS, AllSparkBottleneck, ChannelProjection, SemanticMemory
from .configuration_allspark import AllSparkConfig


FeatureMaps = tuple[torch.Tensor, ...]
METHOD_KEYS = r"^method_modules\."  # what a training method trains beside the model


@dataclass
class SemiSupervisedSegmenterOutput(SemanticSegmenterOutput):
    """
    [`~transformers.modeling_outputs.SemanticSegmenterOutput`] (`loss` of the labeled images, `logits`,
    `hidden_states` and `attentions` of the encoder) and two more fields. In a step with unlabeled images,
    `hidden_states`, `attentions` and `decoder_features` hold the labeled images followed by the unlabeled ones.

    Args:
        unlabeled_logits (`torch.Tensor`, *optional*):
            float (unlabeled_batch, num_labels, logits height, logits width), in a step with unlabeled images.
        decoder_features (`torch.Tensor`, *optional*):
            float (batch, channels, head height, head width), what the classifier gets, before dropout, with
            `output_decoder_features=True`.
    """

    unlabeled_logits: torch.Tensor | None = None
    decoder_features: torch.Tensor | None = None


class SemiSupervisedSegmenter:
    """
    The part of a segmentation model with the AllSpark bottleneck between encoder and decoder that does not depend on
    the encoder.

    To be inherited before a [`~transformers.PreTrainedModel`] whose configuration has [`AllSparkFields`] and whose
    `base_model_prefix` names the encoder. The subclass sets `bottleneck` ([`AllSparkBottleneck`] or None) and has
    `run_encoder`, `decode_features` and `classify`; its configuration has `bottleneck_channels` and `encoder_stride`.
    """

    # The loss is a mean over pixels: Trainer must divide it by the accumulation steps itself.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = [*MEMORY_KEYS, METHOD_KEYS]
    _keys_to_ignore_on_load_unexpected = [METHOD_KEYS]
    _keys_to_ignore_on_load_missing = list(MEMORY_KEYS)

    def run_encoder(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        """
        Runs the encoder.

        Args:
            pixel_values (`torch.Tensor`): float (batch, 3, height, width), normalized.
            kwargs: of the encoder, such as `output_attentions` and `output_hidden_states`.

        Returns:
            [`~transformers.modeling_outputs.BackboneOutput`]: with the `feature_maps` for bottleneck and decoder,
            float (batch, channels, height, width) each, the bottleneck's last.
        """
        raise NotImplementedError

    def decode_features(self, features: FeatureMaps, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What the classifier gets, before dropout: float (batch, channels, head height, head width), from all feature
        maps and, where the decoder looks at them, the images. The map spans the image, padded where the model pads.
        """
        raise NotImplementedError

    def classify(self, decoder_features: torch.Tensor, features: FeatureMaps, size: torch.Size) -> torch.Tensor:
        """
        Logits, float (batch, num_labels, height, width), from the result of `decode_features`, all feature maps and
        the images' size in pixels.
        """
        raise NotImplementedError

    def encode(self, pixel_values: torch.Tensor) -> FeatureMaps:
        """The encoder's feature maps, float (batch, channels, height, width) each, from normalized pixels."""
        return self.run_encoder(pixel_values).feature_maps

    def decode(self, features: FeatureMaps, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Logits, float (batch, num_labels, height, width), of images whose last feature map left the bottleneck.
        """
        return self.classify(self.decode_features(features, pixel_values), features, pixel_values.shape[2:])

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that are trained with the encoder's learning rate."""
        return self.base_model.parameters()

    def train(self, mode: bool = True):
        """As in torch; frozen parts of the encoder stay in eval mode, without dropout and with their statistics."""
        super().train(mode)
        if mode:
            _rest_if_frozen(self.base_model)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, ChannelProjection):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, SemanticMemory):
            module.reset()

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As in transformers, but with today's weight names: Trainer cannot resume from the old ones (#48805)."""
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs):
        """As in transformers; with allspark_hf installed, the card states license and task, and the code goes too."""
        try:  # this file also runs alone, as a repository's code
            from allspark_hf.publishing.publish import push_model_to_hub
        except ImportError:
            return super().push_to_hub(repo_id, **kwargs)
        return push_model_to_hub(self, repo_id, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        unlabeled_pixel_values: torch.Tensor | None = None,
        unlabeled_logits: torch.Tensor | None = None,
        unlabeled_features: torch.Tensor | None = None,
        read_memory: bool = True,
        perturb: Callable[[FeatureMaps], FeatureMaps] | None = None,
        output_decoder_features: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SemiSupervisedSegmenterOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor`): float (batch, 3, height, width), normalized as the image processor does it.
            labels (`torch.Tensor`, *optional*):
                int64 (batch, height, width), in [0, num_labels) or `config.semantic_loss_ignore_index`.
            unlabeled_pixel_values (`torch.Tensor`, *optional*):
                float (unlabeled_batch, 3, height, width), any number of images of the same size; training only.
            unlabeled_logits (`torch.Tensor`, *optional*):
                float (unlabeled_batch, num_labels, any height, any width): the logits of an eval-mode pass over
                unlabeled images. Needed when `config.use_grouping`.
            unlabeled_features (`torch.Tensor`, *optional*):
                float (unlabeled_batch, channels, height, width), the last feature map of unlabeled images, such as a
                teacher's, in place of `unlabeled_pixel_values`. Labeled images are rebuilt from it; it gets no logits.
            read_memory (`bool`, *optional*, defaults to `True`):
                Whether labeled images attend to the memory. If False, as during the memory's warm-up, they attend to
                the unlabeled images of the batch.
            perturb (`Callable`, *optional*):
                Changes the encoder's feature maps, labeled images first, before bottleneck and decoder.
            output_decoder_features (`bool`, *optional*, defaults to `False`): whether to return `decoder_features`.
            output_attentions, output_hidden_states (`bool`, *optional*): whether to return those of the encoder.

        Raises:
            ValueError: if unlabeled images are given in eval mode, twice, or with another size than `pixel_values`, or
                if `unlabeled_logits` is missing or of other images or classes.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        num_unlabeled = 0
        self._check_unlabeled(pixel_values, unlabeled_pixel_values, unlabeled_features)
        if unlabeled_pixel_values is not None:
            num_unlabeled = unlabeled_pixel_values.shape[0]
            pixel_values = torch.cat([pixel_values, unlabeled_pixel_values])
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        encoded = self.run_encoder(pixel_values, **asked, **kwargs)
        features = encoded.feature_maps if perturb is None else perturb(encoded.feature_maps)
        if self.bottleneck is not None:
            last = self._rebuild(features[-1], num_unlabeled, unlabeled_logits, unlabeled_features, read_memory)
            features = (*features[:-1], last)
        decoder_features = self.decode_features(features, pixel_values)
        logits = self.classify(decoder_features, features, pixel_values.shape[2:])
        of_unlabeled = None
        if num_unlabeled:  # no split without need: torch.export would take its place for a constant
            logits, of_unlabeled = logits[:-num_unlabeled], logits[-num_unlabeled:]
        return SemiSupervisedSegmenterOutput(
            loss=None if labels is None else self._labeled_loss(logits, labels),
            logits=logits,
            unlabeled_logits=of_unlabeled,
            decoder_features=decoder_features if output_decoder_features else None,
            hidden_states=encoded.hidden_states if output_hidden_states else None,
            attentions=encoded.attentions,
        )

    def _rebuild(self, last, num_unlabeled, unlabeled_logits, unlabeled_features, read_memory) -> torch.Tensor:
        """The last feature map after the bottleneck; `unlabeled_features` enter it but are not returned."""
        if unlabeled_features is None:
            return self.bottleneck(last, num_unlabeled, unlabeled_logits, read_memory)
        both = torch.cat([last, unlabeled_features.to(last.dtype)])
        num_unlabeled = unlabeled_features.shape[0]
        return self.bottleneck(both, num_unlabeled, unlabeled_logits, read_memory, rebuild_unlabeled=False)

    def _check_unlabeled(self, pixel_values, unlabeled_pixel_values, unlabeled_features):
        given = {"unlabeled_pixel_values": unlabeled_pixel_values, "unlabeled_features": unlabeled_features}
        given = [name for name, value in given.items() if value is not None]
        if given and not self.training:
            raise ValueError(
                f"{given[0]} belongs to training, but the model is in eval mode: call model.train(), or predict "
                "unlabeled images as pixel_values."
            )
        if len(given) == 2:
            raise ValueError("unlabeled_pixel_values and unlabeled_features are both given: give one of them.")
        if unlabeled_pixel_values is not None and pixel_values.shape[2:] != unlabeled_pixel_values.shape[2:]:
            raise ValueError(
                f"Labeled images are {tuple(pixel_values.shape[2:])} and unlabeled ones "
                f"{tuple(unlabeled_pixel_values.shape[2:])} pixels (height, width): crop both to one size."
            )

    def _labeled_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """SegFormer's loss: cross-entropy at label size; binary cross-entropy for a single class."""
        ignore_index = self.config.semantic_loss_ignore_index
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        if self.config.num_labels > 1:
            return F.cross_entropy(logits, labels, ignore_index=ignore_index)
        valid = ((labels >= 0) & (labels != ignore_index)).float()
        loss = F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.float(), reduction="none")
        return (loss * valid).mean()


def _rest_if_frozen(module: nn.Module) -> bool | None:
    """
    Puts the largest parts that have no trained parameter into eval mode. Returns whether the module has a trained
    parameter, or None if it has no parameter at all.
    """
    found = [_rest_if_frozen(part) for part in module.children()]
    found += [parameter.requires_grad for parameter in module.parameters(recurse=False)]
    found = [trained for trained in found if trained is not None]
    if found and not any(found):
        module.eval()
    return any(found) if found else None


class DecodeHead(SegformerDecodeHead):
    """SegFormer's all-MLP head up to the features before dropout and classifier, which the model itself calls."""

    def __init__(self, config: AllSparkConfig):
        super().__init__(config)
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)  # whole channels, as in the paper

    def forward(self, features: FeatureMaps) -> torch.Tensor:
        """Float (batch, channels, height, width), of the first map's size, from one map per stage."""
        size = features[0].shape[2:]
        projected = []
        for maps, project in zip(features, self.linear_projections, strict=True):
            # (batch, tokens, decoder_hidden_size) -> (batch, decoder_hidden_size, height, width)
            maps = project(maps).transpose(1, 2).unflatten(2, maps.shape[2:])
            projected.append(F.interpolate(maps, size=size, mode="bilinear", align_corners=False))
        fused = self.linear_fuse(torch.cat(projected[::-1], dim=1))
        return self.activation(self.batch_norm(fused))


class SegformerForSemiSupervisedSegmentation(SemiSupervisedSegmenter, SegformerPreTrainedModel):
    """
    SegFormer with the AllSpark bottleneck between the Mix Transformer encoder and the all-MLP decode head.

    With `pixel_values` and `labels` alone it works as [`~transformers.SegformerForSemanticSegmentation`]. In training,
    `unlabeled_pixel_values` adds images from which the labeled features are rebuilt.
    """

    config: AllSparkConfig
    config_class = AllSparkConfig
    _auto_class = "AutoModelForSemanticSegmentation"  # by which `save_pretrained` copies this file

    def __init__(self, config: AllSparkConfig):
        super().__init__(config)
        self.segformer = SegformerModel(config)
        self.bottleneck = None
        if config.use_cross_attention:
            self.bottleneck = AllSparkBottleneck(config, config.bottleneck_channels)
        self.decode_head = DecodeHead(config)
        for name, module in self.segformer.named_modules():
            # transformers leaves the norms of blocks and stage ends at 1e-5, whatever the configuration says.
            if isinstance(module, nn.LayerNorm) and "patch_embeddings" not in name and "sequence_red" not in name:
                module.eps = config.layer_norm_eps
        self.post_init()

    def run_encoder(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        encoded = self.segformer(pixel_values, **{**kwargs, "output_hidden_states": True, "return_dict": True})
        maps = encoded.hidden_states
        return BackboneOutput(feature_maps=maps, hidden_states=maps, attentions=encoded.attentions)

    def decode_features(self, features: FeatureMaps, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.decode_head(features)

    def classify(self, decoder_features: torch.Tensor, features: FeatureMaps, size: torch.Size) -> torch.Tensor:
        return self.decode_head.classifier(self.decode_head.dropout(decoder_features))


# Keyed by class name, because a configuration loaded from a SegFormer checkpoint says model_type "segformer".
CLASS_NAME = SegformerForSemiSupervisedSegmentation.__name__
RENAMING = WeightRenaming("decode_head.linear_c", "decode_head.linear_projections")
register_checkpoint_conversion_mapping(CLASS_NAME, [RENAMING], overwrite=True)
# pipeline("image-segmentation") logs an error for a class that it does not find in this table.
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[AllSparkConfig.model_type] = CLASS_NAME
