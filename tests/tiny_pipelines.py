"""Diffusers pipelines of every layout that is supported, with random weights, small enough for a slow core."""

import functools

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaTransformer2DModel,
    CogView4Transformer2DModel,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    PNDMScheduler,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fcs_lab.training.fashion import make_tokenizer
from fcs_lab.zoo import quiet

with quiet():
    from diffusers import (
        AuraFlowPipeline,
        ChromaPipeline,
        CogView4Pipeline,
        Flux2KleinPipeline,
        Flux2Pipeline,
        FluxPipeline,
        Lumina2Pipeline,
        PixArtSigmaPipeline,
        QwenImagePipeline,
        SanaPipeline,
        StableDiffusion3Pipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        ZImagePipeline,
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


def vae(channels: int = 3, latent_channels: int = 4, blocks: int = 3, kind: type = AutoencoderKL, **config):
    torch.manual_seed(2)
    config = {"scaling_factor": 0.7} | config if kind is AutoencoderKL else config
    return kind(
        in_channels=channels,
        out_channels=channels,
        latent_channels=latent_channels,
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
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
    )
    return _silent(
        StableDiffusion3Pipeline(
            transformer=_stirred(transformer),
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
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    return _silent(StableDiffusionControlNetPipeline(**parts, controlnet=_stirred(control), requires_safety_checker=False))


def flux(guidance_embeds: bool = True) -> FluxPipeline:
    """Flux's: packed latents; text comes as embeddings (`flux_text`), so that no T5 is needed. Schnell's has no guidance."""
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
        guidance_embeds=guidance_embeds,
    ).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=guidance_embeds)
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return _silent(FluxPipeline(scheduler, vae(shift_factor=0.1), transformer=transformer, **parts))


def flux_text(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {
        "prompt_embeds": torch.randn(n, 6, WIDTH, generator=generator),
        "pooled_prompt_embeds": torch.randn(n, WIDTH, generator=generator),
    }


def text(
    n: int, mask: str | None = None, guided: bool = True, mask_dtype: torch.dtype = torch.int64
) -> dict[str, torch.Tensor]:
    """Embeddings of n prompts and, to be guided away from, of n others, with a mask where the family takes one."""
    generator = torch.Generator().manual_seed(8)
    arguments: dict[str, torch.Tensor] = {}
    for branch in ("", "negative_") if guided else ("",):
        arguments[f"{branch}prompt_embeds"] = torch.randn(n, 6, WIDTH, generator=generator)
        if mask is not None:
            arguments[f"{branch}{mask}"] = torch.ones(n, 6, dtype=mask_dtype)
    return arguments


def flux2(pipeline: type = Flux2Pipeline) -> Flux2Pipeline | Flux2KleinPipeline:
    """Flux 2's: tokens of 2×2 patches, whose scale is a batch norm's in the VAE."""
    torch.manual_seed(10)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=pipeline is Flux2Pipeline,
    )
    autoencoder = vae(kind=AutoencoderKLFlux2)
    autoencoder.bn.running_mean.normal_(0, 0.3)
    autoencoder.bn.running_var.uniform_(0.3, 2)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    parts = {"scheduler": scheduler, "vae": autoencoder, "transformer": _stirred(transformer)}
    return _silent(pipeline(**parts, **_no_text()))


def klein() -> Flux2KleinPipeline:
    return flux2(Flux2KleinPipeline)


def qwen() -> QwenImagePipeline:
    """Qwen-Image's: packed latents, and a VAE of videos."""
    torch.manual_seed(11)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[-0.3, 0.2, 0.1, 0.4],
        latents_std=[0.7, 1.2, 0.9, 1.5],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return _silent(QwenImagePipeline(scheduler, autoencoder.eval(), transformer=_stirred(transformer), **_no_text()))


def z_image() -> ZImagePipeline:
    """Z-Image's: float32 latents, and a velocity whose sign the pipeline turns."""
    torch.manual_seed(12)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 64, 64],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return _silent(ZImagePipeline(scheduler, vae(shift_factor=0.1), transformer=_stirred(transformer), **_no_text()))


def z_image_text(n: int) -> dict[str, list[torch.Tensor]]:
    return {name: list(x) for name, x in text(n).items()}


def pixart() -> PixArtSigmaPipeline:
    """PixArt-Σ's: a transformer that learned a variance, which the pipeline cuts off; no callback, no interrupt."""
    torch.manual_seed(13)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    scheduler = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    return _silent(PixArtSigmaPipeline(vae=vae(), transformer=_stirred(transformer), scheduler=scheduler, **_no_text()))


def lumina() -> Lumina2Pipeline:
    """Lumina 2's: time runs the other way, two calls an estimate, the velocity's sign turned."""
    torch.manual_seed(14)
    transformer = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 6, 6),
        axes_lens=(32, 32, 32),
        cap_feat_dim=WIDTH,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    # The pipeline takes 8 for the VAE's factor, whatever that has.
    parts = {"vae": vae(blocks=4, shift_factor=0.1), "transformer": _stirred(transformer), "scheduler": scheduler}
    return _silent(Lumina2Pipeline(**parts, **_no_text()))


def cogview() -> CogView4Pipeline:
    """CogView 4's: it gives both timesteps and sigmas, and reads the scheduler's."""
    torch.manual_seed(15)
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(32, 32),
    )
    options = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "time_shift_type": "linear"}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **options)
    return _silent(CogView4Pipeline(vae=vae(), transformer=_stirred(transformer), scheduler=scheduler, **_no_text()))


def sana(sample_size: int = 8) -> SanaPipeline:
    """Sana's: an autoencoder without a posterior, and a multistep solver of a rectified flow."""
    torch.manual_seed(16)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=sample_size,
    )
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.7,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = DPMSolverMultistepScheduler(**flow)
    parts = {"vae": autoencoder.eval(), "transformer": _stirred(transformer), "scheduler": scheduler}
    return _silent(SanaPipeline(**parts, **_no_text()))


def auraflow() -> AuraFlowPipeline:
    torch.manual_seed(17)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=256,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.73)
    return _silent(AuraFlowPipeline(vae=vae(), transformer=_stirred(transformer), scheduler=scheduler, **_no_text()))


def chroma() -> ChromaPipeline:
    """Chroma's: Flux's latents, guided by two calls."""
    torch.manual_seed(18)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return _silent(ChromaPipeline(scheduler, vae(shift_factor=0.1), transformer=_stirred(transformer), **_no_text()))


def _no_text() -> dict[str, None]:
    return {"text_encoder": None, "tokenizer": None}


def _stirred(network: torch.nn.Module) -> torch.nn.Module:
    """Parts of it begin at zero, and an output of zero would test nothing."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return network.eval()


def _silent(pipeline):
    """Without a progress bar, and frozen, as a loaded one is."""
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    return pipeline
