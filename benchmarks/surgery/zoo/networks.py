"""The networks of the zoo, of timm, transformers, segmentation_models_pytorch and torchvision (the extra ``zoo``).

Building a network is what needs its library.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """How a network is made and called.

    Attributes:
        name: library, as it is imported, and network: ``timm/resnet18``.
        build: makes it with fresh weights.
        inputs: makes the arguments of a call, the same in both modes: a tuple, or a dictionary of keywords.
        dim: the dimension of the channels, where networks of this kind do not have it at 1.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    dim: int | None = None
    implementations: tuple[str, ...] = ()  # that a benchmark would compare

    @property
    def label(self) -> str:
        return self.name

    @property
    def library(self) -> str:
        return self.name.partition("/")[0]


def cases() -> Sequence[Case]:
    """All networks, by library."""
    return [*_timm(), *_transformers(), *_smp(), *_torchvision()]


# timm: two hundred networks of nearly all families; of each the smaller ones, and those with ReLUs.
_TIMM = """
bat_resnext26ts botnet26t_256 caformer_s18 cait_xxs24_224 coat_tiny coatnet_nano_cc_224 coatnet_rmlp_nano_rw_224
convformer_s18 convit_tiny convmixer_768_32 convnext_zepto_rms convnextv2_atto cpubone_nano crossvit_9_dagger_240
crossvit_tiny_240 cs3darknet_focus_s cs3sedarknet_l cspnext_tiny darknet17
davit_tiny deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 densenet169 densenetblur121d
dla34 dla46_c dla46x_c dla60_res2net dla60_res2next dpn48b dpn68 dpn68b eca_botnext26ts_256 eca_nfnet_l0
eca_resnext26ts eca_vovnet39b ecaresnet26t ecaresnetlight ecaresnext26t_32x4d edgenext_xx_small efficientformer_l1
efficientformer_l3 efficientformerv2_s0 efficientnet_b0 efficientnet_es efficientnet_lite0 efficientvim_m1
efficientvit_b0 efficientvit_b1 efficientvit_m0 ese_vovnet19b_dw ese_vovnet39b eva02_tiny_patch14_224 fasternet_t0
fasternet_t2 fastvit_mci0 fastvit_sa12 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_srf gcresnet33ts gcresnet50t
gcresnext26ts gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100 ghostnetv3_050 gmlp_ti16_224 halonet26t halonet_h1
hardcorenas_a hardcorenas_f hgnet_tiny hgnetv2_b0 hgnetv2_b4 hiera_tiny_224 hieradet_small
hrnet_w18_small hrnet_w18_ssld iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lambda_resnet26t lcnet_035 lcnetv2_small legacy_seresnet18 legacy_seresnet50 legacy_seresnext26_32x4d legacy_xception
levit_128s levit_conv_128s lowformer_b0 mambaout_femto maxvit_rmlp_pico_rw_256 mixer_s32_224 mixnet_s mnasnet_050
mnasnet_small mobilenet_edgetpu_100 mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_035 mobilenetv2_100
mobilenetv3_large_100 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium_075 mobileone_s0
mobileone_s1 mobileone_s4 mobilevit_xxs mobilevitv2_050 mvitv2_tiny nasnetalarge nest_tiny nextvit_small
nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nf_seresnet26 nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12
poolformerv2_s12 pvt_v2_b0 pvt_v2_b2_li rdnet_tiny regnetv_040 regnetx_002 regnetx_016 regnety_002 regnety_008_tv
regnetz_005 regnetz_b16 regnetz_c16 regnetz_d8 repghostnet_050 repvgg_a0 repvgg_b1g4 repvit_m0_9 repvit_m1
res2net50_14w_8s res2net50d res2next50 resmlp_12_224 resnest14d resnest50d_1s4x24d resnet10t resnet18 resnet18d
resnet26t resnet50 resnet50_clip_gap resnet50_gn resnet50s resnet51q resnetaa34d resnetblur18 resnetrs50 resnetv2_18
resnetv2_50 resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnetv2_50x1_bit resnext26ts resnext50_32x4d
rexnet_100 rexnet_150 rexnetr_100 sebotnet33ts_256 sehalonet33ts selecsls42 selecsls60 semnasnet_050
sequencer2d_s seresnet18 seresnet33ts seresnetaa50d seresnext26t_32x4d seresnext26ts shvit_s1 skresnet18 skresnet34
skresnext50_32x4d spnasnet_100 starnet_s050 starnet_s1 swiftformer_s swiftformer_xs swin_tiny_patch4_window7_224
swinv2_cr_tiny_224 swinv2_tiny_window8_256 tf_efficientnetv2_b0 tf_mixnet_s tf_mobilenetv3_small_075
tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_m baselines_svt_small
visformer_tiny vit_relpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
vovnet39a xception41 xception41p xcit_nano_12_p16_224
"""
_TIMM_SIZES = {
    **dict.fromkeys(("bat_resnext26ts", "halonet26t", "halonet_h1", "sehalonet33ts"), 256),
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "inception_v4"), 96),
}


def _timm() -> Sequence[Case]:
    return [Case(f"timm/{name}", partial(_build_timm, name), partial(_timm_inputs, name)) for name in _TIMM.split()]


def _build_timm(name: str) -> nn.Module:
    import timm  # noqa: PLC0415 (optional)

    model: nn.Module = timm.create_model(name, num_classes=10)
    return model


def _timm_inputs(name: str) -> tuple[Tensor]:
    from timm.models import get_pretrained_cfg  # noqa: PLC0415 (optional)

    configuration = get_pretrained_cfg(name)
    size = configuration.input_size[-1] if configuration.fixed_input_size else _TIMM_SIZES.get(name, 64)
    return (torch.randn(2, 3, size, size),)


# transformers: tiny networks from their configurations, with ReLU wherever a configuration names an activation.
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


def _transformers() -> Sequence[Case]:
    # The layers of some texts' networks do not say that (batch, tokens, channels) comes out of them.
    texts = [_transformer(name, dim=-1) for name in _TEXT.split()]
    return [*texts, *(_transformer(name) for name in _IMAGES.split())]


def _transformer(name: str, dim: int | None = None) -> Case:
    return Case(f"transformers/{name}", partial(_build_transformer, name), partial(_transformer_inputs, name), dim)


def _class(name: str) -> Any:
    import transformers  # noqa: PLC0415 (optional)

    return getattr(transformers, name)


def _build_transformer(name: str) -> nn.Module:
    cls = _class(name)
    known = cls.config_class().to_dict()
    # Some have a list, with an element for each stage.
    tiny = {key: value for key, value in _VALUES.items() if key in known and not isinstance(known[key], list | tuple)}
    model: nn.Module = cls(cls.config_class(**{**tiny, **_ALSO.get(name, {})}))
    return model


def _transformer_inputs(name: str) -> dict[str, Tensor]:
    if name in _IMAGES.split():
        return {"pixel_values": torch.randn(2, 3, 64, 64)}
    decoded = (
        {"decoder_input_ids": torch.randint(3, 99, (2, 7))} if _class(name).config_class().is_encoder_decoder else {}
    )
    return {"input_ids": torch.randint(3, 99, (2, 12)), **decoded}


# segmentation_models_pytorch: every kind of encoder in a U-Net, and every decoder on two encoders.
_ENCODERS = """
densenet121 dpn68 efficientnet-b0 inceptionresnetv2 inceptionv4 mit_b0 mobilenet_v2 mobileone_s0 resnet18
resnext50_32x4d se_resnet50 se_resnext50_32x4d timm-efficientnet-b0 timm-skresnet18 timm-tf_efficientnet_lite0 vgg11_bn
xception tu-regnetx_002 tu-repvgg_a0
"""
_DECODERS = "DeepLabV3 DeepLabV3Plus FPN Linknet MAnet PAN PSPNet Segformer UPerNet UnetPlusPlus"


def _smp() -> Sequence[Case]:
    pairs = [("Unet", encoder) for encoder in _ENCODERS.split()]
    pairs += [(decoder, encoder) for decoder in _DECODERS.split() for encoder in ("resnet18", "dpn68")]
    return [
        Case(
            f"segmentation_models_pytorch/{decoder}-{encoder}",
            partial(_build_smp, decoder, encoder),
            partial(_smp_inputs, decoder),
        )
        for decoder, encoder in pairs
    ]


def _build_smp(decoder: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp  # noqa: PLC0415 (optional)

    model: nn.Module = smp.create_model(decoder, encoder, encoder_weights=None)
    return model


def _smp_inputs(decoder: str) -> tuple[Tensor]:
    size = 128 if decoder == "PAN" else 64
    return (torch.randn(2, 3, size, size),)


# torchvision: what is no classifier of pictures: detection, segmentation, video and optical flow.
_SEGMENTATION = "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 fcn_resnet50 lraspp_mobilenet_v3_large"
_DETECTION = """
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn fasterrcnn_resnet50_fpn
fasterrcnn_resnet50_fpn_v2 fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large
"""
_VIDEO = "mc3_18 r2plus1d_18 r3d_18 s3d swin3d_t"


def _torchvision() -> Sequence[Case]:
    kinds: list[tuple[str, Callable[[str], Any]]] = [
        (_SEGMENTATION, lambda _: (torch.randn(2, 3, 64, 64),)),
        (_DETECTION, _scenes),
        (_VIDEO, _clips),
        ("raft_large raft_small", lambda _: (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128), 2)),
    ]
    return [
        Case(f"torchvision/{name}", partial(_build_torchvision, name), partial(inputs, name))
        for names, inputs in kinds
        for name in names.split()
    ]


def _build_torchvision(name: str) -> nn.Module:
    from torchvision import models  # noqa: PLC0415 (optional)

    options: dict[str, Any] = {"weights_backbone": None} if name in _SEGMENTATION + _DETECTION else {}
    if name.endswith(("_fpn", "_fpn_v2")):
        options |= {"min_size": 128, "max_size": 128}
    if "rcnn" in name:
        # The heads look at each proposal, by default at a thousand.
        options |= {f"rpn_post_nms_top_n_{mode}": 20 for mode in ("train", "test")}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def _scenes(name: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    target = {
        "boxes": torch.tensor([[8.0, 8.0, 60.0, 90.0], [30.0, 10.0, 100.0, 80.0]]),
        "labels": torch.tensor([1, 1]),
    }
    if name.startswith("mask"):
        target["masks"] = torch.randint(0, 2, (2, 128, 128), dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.cat([torch.rand(2, 17, 2) * 50 + 30, torch.ones(2, 17, 1)], 2)
    return [torch.rand(3, 128, 128) for _ in range(2)], [target, target]


def _clips(name: str) -> tuple[Tensor]:
    # S3D ends in a pool of 2 x 7 x 7.
    return (torch.randn(1, 3, 16, 224, 224) if name == "s3d" else torch.randn(2, 3, 8, 64, 64),)
