"""transformers: tiny networks from their configurations, with ReLU wherever a configuration names an activation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.surgery.zoo.case import Case

_TEXT = """
AlbertModel BartForConditionalGeneration BertForSequenceClassification BlenderbotModel DebertaV2Model DistilBertModel
FSMTModel FunnelModel GPT2LMHeadModel LEDModel LongT5Model M2M100Model MBartModel MT5Model MarianModel MobileBertModel
NemotronModel NllbMoeModel OPTForCausalLM PegasusModel PersimmonModel ProphetNetModel RwkvModel SwitchTransformersModel
T5ForConditionalGeneration XGLMForCausalLM XLMModel
"""
_IMAGES = """
BitModel ConditionalDetrForObjectDetection DPTForDepthEstimation DeformableDetrForObjectDetection
DetrForObjectDetection GLPNForDepthEstimation MobileNetV1Model MobileNetV2Model
RTDetrForObjectDetection RegNetModel ResNetForImageClassification SegformerForSemanticSegmentation
SuperPointForKeypointDetection TableTransformerForObjectDetection UperNetForSemanticSegmentation ViTModel
"""
# Sizes and activations, by the names that configurations have for them.
_TINY = {
    2: "num_hidden_layers encoder_layers decoder_layers num_layers n_layers n_layer num_encoder_layers "
    "num_decoder_layers num_attention_heads encoder_attention_heads decoder_attention_heads num_heads n_heads n_head "
    "num_key_value_heads attention_heads num_encoder_attention_heads num_decoder_attention_heads",
    16: "d_kv d_head",
    32: "hidden_size d_model n_embd emb_dim dim word_embed_proj_dim embedding_size",
    64: "image_size intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff hidden_dim d_inner "
    "max_position_embeddings",
    99: "vocab_size",
    False: "use_cache gelu_activation",
    "relu": "hidden_act activation_function activation feed_forward_proj dense_act_fn",
}
_VALUES = {name: value for value, names in _TINY.items() for name in names.split()}
_ALSO: dict[str, dict[str, Any]] = {
    "DPTForDepthEstimation": {
        "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
    },
    "MarianModel": {"pad_token_id": 0},
    "RTDetrForObjectDetection": {"num_queries": 10},
}  # fmt: skip


def cases() -> Sequence[Case]:
    # The layers of some texts' networks do not say that (batch, tokens, channels) comes out of them.
    texts = [_case(name, dim=-1) for name in _TEXT.split()]
    return [*texts, *(_case(name) for name in _IMAGES.split())]


def _case(name: str, dim: int | None = None) -> Case:
    return Case(f"transformers/{name}", partial(_build, name), partial(_inputs, name), dim)


def _class(name: str) -> Any:
    import transformers  # noqa: PLC0415 (optional)

    return getattr(transformers, name)


def _build(name: str) -> nn.Module:
    cls = _class(name)
    known = cls.config_class().to_dict()
    # Some have a list, with an element for each stage.
    tiny = {key: value for key, value in _VALUES.items() if key in known and not isinstance(known[key], list | tuple)}
    model: nn.Module = cls(cls.config_class(**{**tiny, **_ALSO.get(name, {})}))
    return model


def _inputs(name: str) -> dict[str, Tensor]:
    if name in _IMAGES.split():
        return {"pixel_values": torch.randn(2, 3, 64, 64)}
    decoded = (
        {"decoder_input_ids": torch.randint(3, 99, (2, 7))} if _class(name).config_class().is_encoder_decoder else {}
    )
    return {"input_ids": torch.randint(3, 99, (2, 12)), **decoded}
