"""Diffusers pipelines of every layout that is supported, with random weights, small enough for a slow core."""

import functools

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fcs_lab.training.fashion import make_tokenizer
from fcs_lab.zoo import quiet

with quiet():
    from diffusers import (
        FluxPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
    )

SD15 = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
WIDTH = 16  # of the text's embeddings

tokenizer = functools.cache(make_tokenizer)


def text_encoder(kind: type = CLIPTextModel, width: int = WIDTH, seed: int = 1):
    torch.manual_seed(seed)
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return kind(config).eval()


def vae(channels: int = 3, latent_channels: int = 4, **config):
    torch.manual_seed(2)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.7,
        **config,
    ).eval()


def unet(in_channels: int = 4, width: int = WIDTH, **config):
    torch.manual_seed(3)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    ).eval()


def sd(scheduler=None, channels: int = 3, **parts) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's layout: 32×32 images, 4×8×8 latents."""
    parts = {"vae": vae(channels), "unet": unet(), "text_encoder": text_encoder()} | parts
    return _silent(
        StableDiffusionPipeline(
            **parts,
            tokenizer=tokenizer(),
            scheduler=scheduler or PNDMScheduler(**SD15, skip_prk_steps=True, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def sd21() -> StableDiffusionPipeline:
    """Stable Diffusion 2.1's: v-prediction."""
    return sd(DDIMScheduler(**SD15, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False))


def sdxl(scheduler=None, **config) -> StableDiffusionXLPipeline:
    """SDXL's: two text encoders, the sizes as added conditions."""
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    return _silent(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=text_encoder(),
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, seed=4),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet(width=2 * WIDTH, projection_class_embeddings_input_dim=WIDTH + 6 * 4, **conditions),
            scheduler=scheduler or EulerDiscreteScheduler(**SD15, timestep_spacing="leading"),
            add_watermarker=False,
            **config,
        )
    )


def sd3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's: a transformer and a rectified flow, here without T5."""
    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()
    with torch.no_grad():  # they begin at zero, and a velocity of zero would test nothing
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return _silent(
        StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(latent_channels=4, shift_factor=0.1),
            text_encoder=text_encoder(CLIPTextModelWithProjection),
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, seed=4),
            text_encoder_3=None,
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            tokenizer_3=None,
        )
    )


def controlnet() -> StableDiffusionControlNetPipeline:
    """SD 1.5's, with a ControlNet that does something."""
    base = sd()
    torch.manual_seed(6)
    control = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(4, 8, 8))
    with torch.no_grad():  # it begins at zero, and would test nothing
        for parameter in control.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    return _silent(StableDiffusionControlNetPipeline(**parts, controlnet=control.eval(), requires_safety_checker=False))


def flux() -> FluxPipeline:
    """Flux's: packed latents; text comes as embeddings (`flux_text`), so that no T5 is needed."""
    torch.manual_seed(7)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return _silent(FluxPipeline(scheduler, vae(shift_factor=0.1), transformer=transformer, **parts))


def flux_text(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {
        "prompt_embeds": torch.randn(n, 6, WIDTH, generator=generator),
        "pooled_prompt_embeds": torch.randn(n, WIDTH, generator=generator),
    }


def _silent(pipeline):
    """Without a progress bar, and frozen, as a loaded one is."""
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipeline
