"""timm: two hundred networks of nearly all families; of each the smaller ones, and those with ReLUs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.surgery.zoo.case import Case

_NAMES = """
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
_SIZES = {
    "bat_resnext26ts": 256,
    "halonet26t": 256,
    "halonet_h1": 256,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
    "sehalonet33ts": 256,
}


def cases() -> Sequence[Case]:
    return [Case(f"timm/{name}", partial(_build, name), partial(_inputs, name)) for name in _NAMES.split()]


def _build(name: str) -> nn.Module:
    import timm  # noqa: PLC0415 (optional)

    model: nn.Module = timm.create_model(name, num_classes=10)
    return model


def _inputs(name: str) -> tuple[Tensor]:
    from timm.models import get_pretrained_cfg  # noqa: PLC0415 (optional)

    configuration = get_pretrained_cfg(name)
    size = configuration.input_size[-1] if configuration.fixed_input_size else _SIZES.get(name, 64)
    return (torch.randn(2, 3, size, size),)
