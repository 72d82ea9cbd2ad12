"""Records of the families that draw videos: a maker for each architecture, then the table.

A record's own value goes before its maker's.
"""

from __future__ import annotations

from functools import partial

from dittools.pipelines.family import ATTN1, DUAL_AND_SINGLE, LINEAR, TEXT, Family, checkpoint

_video = partial(Family, draws="video", grid="video")
# Text in cross-attention
_wan = partial(_video, self_attention=("blocks.*.attn1",))
_ltx = partial(_video, self_attention=ATTN1, grid="packed", guidance_passes="one batch")
_plain = partial(_video, self_attention=ATTN1, way="call")
# Text in one sequence with the picture
_joint = partial(_plain, block_output=0, text_position="first", text=TEXT, guidance_passes="one batch")
_hunyuan = partial(_video, self_attention=DUAL_AND_SINGLE, block_output=0, text_position="last", text=TEXT)

VIDEO = (
    _wan(
        "wan",
        "Wan 2.1 and 2.2, text, image or video to video",
        "WanTransformer3DModel",
        aliases=("wan2.1", "wan2.2", "wan-t2v"),
        text_to=("WanPipeline",),
        repo="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        steps=50,
        guidance=5.0,
        fps=16,
        **checkpoint((81, 480, 832), strides=(4, 8), model=(30, 12, 128), multiple=16, positions=1024),
    ),
    _wan(
        "wan-vace",
        "Wan VACE: Wan led by a control video",
        "WanVACETransformer3DModel",
        aliases=("vace",),
        self_attention=("blocks.*.attn1", "vace_blocks.*.attn1"),
        **checkpoint((81, 480, 832), strides=(4, 8), model=(45, 12, 128), multiple=16, positions=1024),
    ),
    _wan("wan-animate", "Wan 2.2 Animate: a character moved by a video", "WanAnimateTransformer3DModel"),
    _wan(
        "wan-animate-2",
        "Wan Animate 2",
        "WanAnimate2Transformer3DModel",
        why_not="it keeps keys of reference frames and names flex attention with a mask of its own",
    ),
    _wan("chronoedit", "ChronoEdit: image editing as a short Wan video", "ChronoEditTransformer3DModel"),
    _wan(
        "skyreels-v2",
        "SkyReels-V2, also with diffusion forcing",
        "SkyReelsV2Transformer3DModel",
        aliases=("skyreels",),
        notes="dense where frames have timesteps of their own in blocks (its mask is causal)",
        **checkpoint((97, 544, 960), strides=(4, 8), model=(40, 40, 128), multiple=16, positions=1024),
    ),
    _wan("anyflow", "AnyFlow", "AnyFlowTransformer3DModel", grid="frames_first"),
    _wan(
        "anyflow-far",
        "AnyFlow FAR: frame by frame",
        "AnyFlowFARTransformer3DModel",
        grid="frames_first",
        why_not="it is causal over frames and keeps the keys of earlier ones",
    ),
    _wan(
        "helios",
        "Helios: long video with a history at three scales",
        "HeliosTransformer3DModel",
        grid="helios",
        notes="history has budgets of its own",
    ),
    _hunyuan(
        "hunyuan-video",
        "HunyuanVideo, text or image to video",
        "HunyuanVideoTransformer3DModel",
        aliases=("hunyuanvideo", "hunyuan"),
        guidance_passes="none",
        **checkpoint((129, 720, 1280), strides=(4, 8), model=(60, 24, 128), text_tokens=256),
    ),
    _hunyuan(
        "hunyuan-video-1.5",
        "HunyuanVideo 1.5, text or image to video",
        "HunyuanVideo15Transformer3DModel",
        aliases=("hunyuan1.5",),
        self_attention=("transformer_blocks.*.attn",),
        text=("image_embeds", "encoder_hidden_states_2", "encoder_hidden_states"),
        guidance_passes="guider",
        **checkpoint((121, 480, 848), strides=(4, 16), model=(54, 16, 128), patch=(1, 1, 1), text_tokens=1985),
    ),
    _hunyuan(
        "framepack",
        "FramePack: HunyuanVideo with a packed history",
        "HunyuanVideoFramepackTransformer3DModel",
        grid="framepack",
        guidance_passes="none",
        notes="history and the picture it starts from have budgets of their own",
    ),
    _joint(
        "cogvideox",
        "CogVideoX and 1.5, text, image or video to video",
        "CogVideoXTransformer3DModel",
        aliases=("cogvideox1.5", "cogvideo"),
        grid="frames_first",
        text_to=("CogVideoXPipeline",),
        repo="zai-org/CogVideoX-5b",
        steps=50,
        guidance=6.0,
        fps=8,
        **checkpoint((49, 480, 720), strides=(4, 8), model=(42, 48, 64), fills_frames=True, text_tokens=226),
    ),
    _joint("consisid", "ConsisID: CogVideoX that keeps a face", "ConsisIDTransformer3DModel", grid="frames_first"),
    _ltx(
        "ltx",
        "LTX-Video, text, image or video to video",
        "LTXVideoTransformer3DModel",
        aliases=("ltx-video",),
        text_to=("LTXPipeline",),
        repo="Lightricks/LTX-Video",
        steps=50,
        guidance=3.0,
        fps=24,
        **checkpoint((161, 512, 704), strides=(8, 32), model=(28, 32, 64), patch=(1, 1, 1), multiple=32),
    ),
    _ltx(
        "ltx-2",
        "LTX-2, video with sound",
        "LTX2VideoTransformer3DModel",
        aliases=("ltx2", "ltx2.3"),
        latents_beside=("audio_hidden_states",),
        block_output=0,
        notes="video self-attention only; sound and the exchange between both stay dense",
        **checkpoint((121, 512, 768), strides=(8, 32), model=(48, 32, 128), patch=(1, 1, 1)),
    ),
    _joint(
        "mochi",
        "Mochi 1",
        "MochiTransformer3DModel",
        text_position="last",
        **checkpoint((163, 480, 848), strides=(6, 8), model=(48, 24, 128), text_tokens=256),
    ),
    _plain(
        "allegro",
        "Allegro",
        "AllegroTransformer3DModel",
        guidance_passes="one batch",
        **checkpoint((85, 720, 1280), strides=(4, 8), model=(32, 24, 96)),
    ),
    _joint(
        "easyanimate",
        "EasyAnimate 5.1",
        "EasyAnimateTransformer3DModel",
        text=("encoder_hidden_states", "encoder_hidden_states_t5"),
    ),
    _plain(
        "cosmos",
        "Cosmos 1, 2 and 2.5",
        "CosmosTransformer3DModel",
        aliases=("cosmos-predict2", "cosmos2.5"),
        clock="pipeline",
        **checkpoint((121, 704, 1280), strides=(8, 8), model=(28, 32, 128)),
    ),
    _video(
        "cosmos-3",
        "Cosmos 3",
        "Cosmos3OmniTransformer",
        aliases=("cosmos3",),
        self_attention=("layers.*.self_attn",),
        grid="two_streams",
        text_position="keys first",
        latents="vision_tokens",
        latents_beside=("sound_tokens", "action_tokens"),
        timestep="vision_timesteps",
        block_input=1,
        block_output=1,
        notes="text is causal and stays dense, as sound and action do; pictures given beside have budgets of their own",
    ),
    _video(
        "kandinsky-5",
        "Kandinsky 5, video and image",
        "Kandinsky5Transformer3DModel",
        aliases=("kandinsky5",),
        self_attention=("visual_transformer_blocks.*.self_attention",),
        grid="channels_last",
        notes="dense where the checkpoint asks for NABLA, its own sparse mask",
        **checkpoint((121, 512, 768), strides=(4, 8), model=(32, 28, 64)),
    ),
    _hunyuan("motif-video", "Motif-Video", "MotifVideoTransformer3DModel", aliases=("motif",)),
    _plain(
        "latte",
        "Latte",
        "LatteTransformer3DModel",
        self_attention=("transformer_blocks.*.attn1", "temporal_transformer_blocks.*.attn1"),
        why_not="it attends within a frame or along time at one place, never over the video: too short to skip",
    ),
    _video("sana-video", "Sana-Video", "SanaVideoTransformer3DModel", self_attention=ATTN1, why_not=LINEAR),
    _video(
        "minimax-h3",
        "MiniMax H3",
        "MiniMaxH3Transformer3DModel",
        aliases=("h3", "minimaxh3"),
        components=("transformer", "transformer_ref"),
        self_attention=("transformer_blocks.*.attn",),
        grid="document",
        text_position="first",
        text=TEXT,
        latents_beside=("audio_hidden_states",),
        timestep_rows=("timestep_indices", "video_indices"),
        guidance_passes="none",
        notes="keyframes and references have budgets of their own; text and sound stay dense",
        **checkpoint((124, 768, 1344), strides=(4, 16), model=(50, 56, 128), multiple=32, groups=((17, 5), (5, 2))),
    ),
)
