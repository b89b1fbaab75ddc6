"""LoRA stem to live module: every name by which ComfyUI's loader would find a module of an SD1.x base."""

from __future__ import annotations

from torch import nn

from ...families._names import TEXT_LAYERS, comfy_text_stems, comfy_unet_stems, unet_modules, unet_to_ldm


def unet_stems(unet: nn.Module) -> dict[str, nn.Module]:
    """Stems of the linear and convolution layers of a diffusers UNet, in diffusers, LDM and dotted namings."""
    config = unet.config
    attention = ["CrossAttn" in block for block in config["down_block_types"]]
    table = unet_modules(attention, config["layers_per_block"])
    stems: dict[str, nn.Module] = {}
    for path, layer in _layers(unet).items():
        ldm = unet_to_ldm(path, table)
        keys = [] if ldm is None else [f"{ldm}.weight"]
        stems.update(dict.fromkeys(comfy_unet_stems(keys, [path]), layer))
    return stems


def text_stems(text_encoder: nn.Module) -> dict[str, nn.Module]:
    """Stems of the linear layers of a CLIP text encoder."""
    layers = _layers(text_encoder)
    stems: dict[str, nn.Module] = {}
    for number in range(text_encoder.config.num_hidden_layers):
        for dotted, flat in TEXT_LAYERS.items():
            path = f"encoder.layers.{number}.{dotted}"
            layer = next(found for name, found in layers.items() if name == path or name.endswith(f".{path}"))
            full = f"text_model.{path}.weight"
            tail = f"layers_{number}_{flat}"
            named = comfy_text_stems(number + 1, [full])
            mine = {stem for stem in named if stem.endswith((tail, full[: -len(".weight")]))}
            stems.update(dict.fromkeys(mine, layer))
    return stems


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    return {path: layer for path, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
