"""Names of the same weight in diffusers/transformers and in the LDM layout of single files.

The tables hold for U-Nets of the LDM kind with `layers_per_block` resnets per level (SD1.x, SDXL, and their relatives
of other widths). Source: the layouts of CompVis' latent-diffusion and diffusers, as listed by both projects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BASIC = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET_PREFIX = re.compile(r"^((?:down_blocks|up_blocks)\.\d+|mid_block)\.resnets\.\d+$")
_MODULE = re.compile(
    r"^((?:down_blocks|up_blocks)\.\d+\.(?:resnets|attentions)\.\d+"
    r"|(?:down_blocks|up_blocks)\.\d+\.(?:downsamplers|upsamplers)\.0\.conv"
    r"|mid_block\.(?:resnets|attentions)\.\d+"
    r"|(?:time|add)_embedding\.linear_[12]|conv_in|conv_norm_out|conv_out)(?:\.(.+))?$"
)


def unet_modules(attention: Sequence[bool], layers_per_block: int) -> dict[str, str]:
    """Diffusers path -> LDM path of every resnet, transformer, sampler and single layer of a U-Net.

    Args:
        attention: per level from the widest picture down, whether it has transformers.
        layers_per_block: resnets per level on the way down; one more on the way up.
    """
    table = dict(_BASIC)
    levels, step = len(attention), layers_per_block + 1
    for i, attends in enumerate(attention):
        for j in range(layers_per_block):
            table[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{1 + step * i + j}.0"
            if attends:
                table[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{1 + step * i + j}.1"
        if i < levels - 1:
            table[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{step * (i + 1)}.0.op"
    table["mid_block.resnets.0"] = "middle_block.0"
    table["mid_block.attentions.0"] = "middle_block.1"
    table["mid_block.resnets.1"] = "middle_block.2"
    for i, attends in enumerate(reversed(attention)):
        for j in range(step):
            table[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{step * i + j}.0"
            if attends:
                table[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{step * i + j}.1"
        if i < levels - 1:
            last = step * i + layers_per_block
            table[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{last}.{2 if attends else 1}.conv"
    return table


def unet_to_ldm(key: str, modules: Mapping[str, str]) -> str | None:
    """The LDM name of a diffusers U-Net key (or module path), without `model.diffusion_model.`; None if unknown."""
    match = _MODULE.match(key)
    if match is None or match[1] not in modules:
        return None
    inner = match[2]
    if inner is None:
        return modules[match[1]]
    if _RESNET_PREFIX.match(match[1]):
        layer, _, rest = inner.partition(".")
        if layer not in _RESNET:
            return None
        inner = f"{_RESNET[layer]}.{rest}" if rest else _RESNET[layer]
    return f"{modules[match[1]]}.{inner}"


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_to_ldm(key: str, levels: int) -> str | None:
    """The LDM name of a diffusers AutoencoderKL key, without `first_stage_model.`; None if unknown."""
    key = re.sub(r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out.", key)
    key = re.sub(
        r"^(encoder|decoder)\.mid_block\.resnets\.([01])\.",
        lambda found: f"{found[1]}.mid.block_{int(found[2]) + 1}.",
        key,
    )
    attention = re.match(r"^(encoder|decoder)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)$", key)
    if attention:
        layer = _VAE_ATTENTION.get(attention[2])
        return f"{attention[1]}.mid.attn_1.{layer}.{attention[3]}" if layer else None
    key = re.sub(r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", key)
    key = re.sub(r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", key)
    key = re.sub(
        r"^decoder\.up_blocks\.(\d+)\.resnets\.",
        lambda found: f"decoder.up.{levels - 1 - int(found[1])}.block.",
        key,
    )
    key = re.sub(
        r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda found: f"decoder.up.{levels - 1 - int(found[1])}.upsample.",
        key,
    )
    key = key.replace(".conv_shortcut.", ".nin_shortcut.")
    return None if ("_blocks." in key or "mid_block" in key) else key


# --- blocks of LoRA stems ----------------------------------------------------------------------------------------

_STEM_PREFIX = re.compile(r"^(lora_unet_|lycoris_unet_|lycoris_|unet_|diffusion_model_|model_diffusion_model_)")
_TEXT_STEM = re.compile(r"^(lora_te\d?_|lycoris_te\d?_|lycoris_text_model_|text_encoders?_|lora_prior_te_|text_model_)")
_DIFFUSERS_STEM = re.compile(r"^(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)(?:_|$)")
_LDM_STEM = re.compile(r"^(input|output)_blocks_(\d+)(?:_|$)")


def block_of_unet_stem(stem: str, *, levels: int, layers_per_block: int) -> str | None:
    """`IN04`, `MID`, `OUT03` ... of a stem in diffusers or LDM naming, dotted or with underscores.

    `TE` for a text-encoder stem, None for an unknown one. The time and size embeddings count as IN00 and the output
    layers as the last OUT block, because no block-weight vector has a place of its own for them.
    """
    name = stem.replace(".", "_")
    if _TEXT_STEM.match(name):
        return "TE"
    name = _STEM_PREFIX.sub("", name)
    step, last = layers_per_block + 1, levels * (layers_per_block + 1) - 1
    if found := _LDM_STEM.match(name):
        number = int(found[2])
        return f"{'IN' if found[1] == 'input' else 'OUT'}{number:02d}" if number <= last else None
    if name.startswith(("mid_block_", "middle_block_")):
        return "MID"
    if found := _DIFFUSERS_STEM.match(name):
        level, inner = int(found[2]), int(found[4])
        if level >= levels or inner > layers_per_block:
            return None
        if found[1] == "down":
            return f"IN{step * (level + 1) if found[3] == 'downsamplers' else 1 + step * level + inner:02d}"
        return f"OUT{step * level + (layers_per_block if found[3] == 'upsamplers' else inner):02d}"
    if name.startswith(("conv_in", "time_embed", "label_emb", "add_embedding", "class_embedding")):
        return "IN00"
    if name.startswith(("conv_out", "conv_norm_out", "out_")):
        return f"OUT{last:02d}"
    return None


# --- stems that ComfyUI accepts ----------------------------------------------------------------------------------

TEXT_LAYERS = {
    "self_attn.k_proj": "self_attn_k_proj",
    "self_attn.v_proj": "self_attn_v_proj",
    "self_attn.q_proj": "self_attn_q_proj",
    "self_attn.out_proj": "self_attn_out_proj",
    "mlp.fc1": "mlp_fc1",
    "mlp.fc2": "mlp_fc2",
}


def comfy_unet_stems(ldm_keys: Iterable[str], diffusers_paths: Iterable[str]) -> set[str]:
    """The stems ComfyUI's loader knows for a U-Net.

    Args:
        ldm_keys: `input_blocks.0.0.weight` ...
        diffusers_paths: `down_blocks.0.attentions.0.proj_in` ... of the modules with a weight.

    Source: research on ComfyUI's key map (`lora_unet_` in both namings, `lycoris_`, dotted with and without `unet.`).
    """
    stems: set[str] = set()
    for key in ldm_keys:
        if key.endswith(".weight"):
            path = key[: -len(".weight")]
            stems.update({f"lora_unet_{path.replace('.', '_')}", f"diffusion_model.{path}"})
        else:
            stems.add(f"diffusion_model.{key}")
    for path in diffusers_paths:
        flat = path.replace(".", "_")
        dotted = path.replace(".to_", ".processor.to_")
        dotted = dotted[:-2] if dotted.endswith(".to_out.0") else dotted
        stems.update({f"lora_unet_{flat}", f"lycoris_{flat}", dotted, f"unet.{dotted}"})
    return stems


def comfy_text_stems(num_layers: int, *, comfy_name: str = "clip_l") -> dict[str, str]:
    """The stems ComfyUI's loader knows for a text encoder, with the transformers path of each one's module.

    Args:
        num_layers: of the encoder.
        comfy_name: `clip_l`, `clip_h` (SD2) or `clip_g` (SDXL's second).
    """
    dotted, flats = ("text_encoder_2", ("lora_te2",)) if comfy_name == "clip_g" else (
        "text_encoder", ("lora_te", "lora_te1"),
    )  # fmt: skip
    stems = {f"text_encoders.{comfy_name}.transformer.{path}": path for path in text_paths(num_layers)}
    if comfy_name != "clip_h":
        stems[f"{flats[-1]}_text_projection"] = "text_projection"
    for layer in range(num_layers):
        for inner, flat in TEXT_LAYERS.items():
            path, tail = f"text_model.encoder.layers.{layer}.{inner}", f"text_model_encoder_layers_{layer}_{flat}"
            stems.update({f"{name}_{tail}": path for name in flats})
            stems[f"{dotted}.{path}"] = path
    return stems


def text_paths(num_layers: int) -> list[str]:
    """The transformers paths of everything in a CLIP text model that has a weight."""
    paths = ["text_model.embeddings.token_embedding", "text_model.embeddings.position_embedding"]
    for layer in range(num_layers):
        inner = (*TEXT_LAYERS, "layer_norm1", "layer_norm2")
        paths += [f"text_model.encoder.layers.{layer}.{name}" for name in inner]
    return [*paths, "text_model.final_layer_norm", "text_projection"]


def diffusers_paths(ldm_keys: Iterable[str], modules: Mapping[str, str]) -> list[str]:
    """The diffusers paths of the modules whose weights are among the LDM keys."""
    inverse = {ldm: path for path, ldm in modules.items()}
    resnet = {ldm: path for path, ldm in _RESNET.items()}
    paths: list[str] = []
    for key in ldm_keys:
        if not key.endswith(".weight"):
            continue
        name = key[: -len(".weight")]
        if name in inverse:
            paths.append(inverse[name])
            if name.startswith("label_emb."):  # ComfyUI knows it by a second name
                paths.append(inverse[name].replace("add_embedding", "class_embedding"))
            continue
        prefix = next((ldm for ldm in inverse if name.startswith(f"{ldm}.")), None)
        if prefix is not None:
            inner = name[len(prefix) + 1 :]
            paths.append(f"{inverse[prefix]}.{resnet.get(inner, inner)}")
    return paths
