"""Tiny random models of the transformers library, by architecture, with a batch for each; and a small model of each
family of timm. What capture.py runs over. Both libraries are optional: pip install timm transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Case = tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]

TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
PAIR = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": 99,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
IMAGE = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "vocab_size": 40,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}

# One small model of each family: of each module of timm.models that has one of at most 50 million parameters.
TIMM = """
    halonet_h1 mobileone_s0 cait_xxs24_224 coat_lite_tiny convit_tiny convmixer_768_32 convnext_atto
    cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_s davit_tiny deit3_small_patch16_224
    densenet121 dla60x_c dpn48b edgenext_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
    efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t12
    focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_a hgnetv2_b0 hiera_tiny_224 hrnet_w18_small
    iformer_s inception_next_atto adv_inception_v3 inception_v4 lcnetv2_base levit_128s lowformer_b0
    mambaout_femto coatnet_pico_rw_224 poolformer_s12 gmlp_ti16_224 lcnet_035 mobilevit_s mvitv2_tiny
    jx_nest_tiny nextvit_small nf_ecaresnet26 pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050
    repvit_m0_9 res2next50 resnest14d resnet18 resnetv2_101 rexnet_100 selecsls42 legacy_seresnet18
    sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_s swin_tiny_patch4_window7_224
    swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m
    twins_svt_small visformer_tiny test_vit vit_small_r26_s32_224 test_vit_relpos vitamin_small_224 volo_d1_224
    ese_vovnet19b_dw legacy_xception xception41p xcit_nano_12_p16_224
""".split()

# architecture: (configuration, model, what the configuration is given, kind of batch)
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "albert": ("AlbertConfig", "AlbertForMaskedLM", TEXT | {"embedding_size": 16}, "labels"),
    "bart": ("BartConfig", "BartForConditionalGeneration", PAIR, "labels"),
    "beit": ("BeitConfig", "BeitForImageClassification", IMAGE, "image"),
    "bert": ("BertConfig", "BertForMaskedLM", TEXT, "labels"),
    "bigbird": ("BigBirdConfig", "BigBirdForMaskedLM", TEXT | {"attention_type": "original_full"}, "labels"),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "labels",
    ),
    "clip": (
        "CLIPConfig",
        "CLIPModel",
        {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 16},
        "clip",
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        "image",
    ),
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2ForMaskedLM",
        TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        "labels",
    ),
    "deit": ("DeiTConfig", "DeiTForImageClassification", IMAGE, "image"),
    "detr": (
        "DetrConfig",
        "DetrForObjectDetection",
        PAIR | {"num_queries": 5, "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None},
        "detr",
    ),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", IMAGE, "image"),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
        "labels",
    ),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", TEXT | {"embedding_size": 16}, "labels"),
    "falcon": ("FalconConfig", "FalconForCausalLM", TEXT, "labels"),
    "funnel": (
        "FunnelConfig",
        "FunnelForMaskedLM",
        {"vocab_size": 99, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1]},
        "labels",
    ),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", TEXT | {"num_key_value_heads": 2, "head_dim": 8}, "labels"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT, "labels"),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "vocab_size": 99,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
        "labels",
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT, "labels"),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", GPT | {"rotary_dim": 4}, "labels"),
    "hubert": ("HubertConfig", "HubertForCTC", SPEECH, "speech"),
    "led": ("LEDConfig", "LEDForConditionalGeneration", PAIR | {"attention_window": 4}, "labels"),
    "llama": ("LlamaConfig", "LlamaForCausalLM", TEXT, "labels"),
    "longformer": (
        "LongformerConfig",
        "LongformerForMaskedLM",
        TEXT | {"attention_window": 4, "pad_token_id": 1},
        "labels",
    ),
    "mamba": (
        "MambaConfig",
        "MambaForCausalLM",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        "labels",
    ),
    "marian": ("MarianConfig", "MarianMTModel", PAIR, "labels"),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", PAIR, "labels"),
    "mistral": ("MistralConfig", "MistralForCausalLM", TEXT | {"num_key_value_heads": 2}, "labels"),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        TEXT | {"num_key_value_heads": 2, "num_local_experts": 4, "output_router_logits": True},
        "labels",
    ),
    "mpt": ("MptConfig", "MptForCausalLM", {"vocab_size": 99, "d_model": 32, "n_heads": 4, "n_layers": 2}, "labels"),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", T5, "labels"),
    "opt": ("OPTConfig", "OPTForCausalLM", TEXT | {"ffn_dim": 64, "word_embed_proj_dim": 32}, "labels"),
    "pegasus": ("PegasusConfig", "PegasusForConditionalGeneration", PAIR, "labels"),
    "phi": ("PhiConfig", "PhiForCausalLM", TEXT, "labels"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", TEXT | {"num_key_value_heads": 2}, "labels"),
    "resnet": (
        "ResNetConfig",
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
        "image",
    ),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", TEXT | {"max_position_embeddings": 66}, "labels"),
    "segformer": (
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [8, 8, 16, 16],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 16,
            "num_attention_heads": [1, 2, 2, 2],
        },
        "image",
    ),
    "siglip": ("SiglipConfig", "SiglipModel", {"text_config": TEXT, "vision_config": IMAGE}, "clip"),
    "swin": (
        "SwinConfig",
        "SwinForImageClassification",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
        "image",
    ),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5, "labels"),
    "vit": ("ViTConfig", "ViTForImageClassification", IMAGE, "image"),
    "wav2vec2": ("Wav2Vec2Config", "Wav2Vec2ForCTC", SPEECH, "speech"),
    "whisper": (
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        PAIR | {"num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20},
        "whisper",
    ),
    "xlnet": (
        "XLNetConfig",
        "XLNetLMHeadModel",
        {"vocab_size": 99, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64},
        "labels",
    ),
}


def transformers(name: str) -> Case:
    """A tiny model of an architecture, in train mode, and a batch of two."""
    import transformers

    config, model, given, kind = TRANSFORMERS[name]
    torch.manual_seed(0)
    if kind == "detr":
        backbone = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], out_features=["stage4"]
        )
        given = given | {"backbone_config": backbone}
    built = getattr(transformers, model)(getattr(transformers, config)(**given))
    return built.train(), (), BATCHES[kind]()


def timm(name: str) -> Case:
    """A model of timm's with random weights, in train mode, and a batch of two of its own size."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name).train()
    return model, (torch.randn(2, *model.default_cfg["input_size"]),), {}


def _text() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, 99, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}


def _labels() -> dict[str, Any]:
    batch = _text()
    return batch | {"labels": batch["input_ids"].clone()}


def _clip() -> dict[str, Any]:
    return _text() | {"pixel_values": torch.randn(2, 3, 32, 32)}


def _image() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def _speech() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 2000)}


def _whisper() -> dict[str, Any]:
    return {"input_features": torch.randn(2, 8, 40), "decoder_input_ids": torch.randint(3, 99, (2, 7))}


BATCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "labels": _labels,
    "image": _image,
    "clip": _clip,
    "detr": lambda: {"pixel_values": torch.randn(2, 3, 64, 64)},
    "speech": _speech,
    "whisper": _whisper,
}
