"""Runs inside ComfyUI's environment: applies LoRA files with ComfyUI's own loader and draws with its sampler.

Arguments: ComfyUI's folder, the pack's folder, a JSON list of cases, the npz to write, the base, tiny or not. A case
names a LoRA file ("" for none), two strengths, the factors of single stems and the steps; what ComfyUI logs is written
beside the pictures. Of a full-size base the UNet stays in fp16, and every layer computes in fp32.
"""

import importlib.util
import json
import logging
import sys
from pathlib import Path

FULL_SIZE_BYTES = 2**30


class Keep(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def main() -> None:
    checkout, pack, cases_path, target, base_path = sys.argv[1:]
    is_full_size = Path(base_path).stat().st_size > FULL_SIZE_BYTES
    sys.argv = [sys.argv[0], "--cpu", *(["--fp16-unet"] if is_full_size else [])]
    sys.path.insert(0, checkout)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.utils
    import folder_paths
    import numpy as np
    import torch

    import nodes

    spec = importlib.util.spec_from_file_location(
        "lora_atelier", Path(pack) / "__init__.py", submodule_search_locations=[pack]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules["lora_atelier"] = package
    spec.loader.exec_module(package)
    from lora_atelier.nodes.host.comfy import ComfyHost
    from lora_atelier.nodes.host.comfy_pico import load_pico

    keep = Keep()
    logging.getLogger().addHandler(keep)
    folder_paths.set_temp_directory(str(Path(target).parent))
    results, host = {}, ComfyHost()
    with torch.inference_mode():
        if is_full_size:
            model, clip = comfy.sd.load_checkpoint_guess_config(base_path, output_vae=False, output_clip=True)[:2]
        else:
            model, clip, _ = load_pico(Path(base_path), temp_dir=Path(target).parent)
        for number, case in enumerate(json.loads(Path(cases_path).read_text())):
            lora = comfy.utils.load_torch_file(case["lora"], safe_load=True) if case["lora"] else {}
            factors = case["factors"]
            if factors:
                m, c = host.apply_lora(
                    model, clip, lora, strength_model=case["unet"], strength_clip=case["text"], stem_strengths=factors
                )
            else:
                m, c = comfy.sd.load_lora_for_models(model, clip, lora, case["unet"], case["text"])
            positive = nodes.CLIPTextEncode().encode(c, case["prompt"])[0]
            negative = nodes.CLIPTextEncode().encode(c, "")[0]
            latent = {"samples": torch.zeros((1, 4, 8, 8))}
            drawn = nodes.common_ksampler(
                m, 1, case.get("steps", 3), 3.0, "euler", "normal", positive, negative, latent
            )[0]
            results[str(number)] = drawn["samples"].float().numpy()
    np.savez(target, **results)
    Path(target).with_suffix(".log.json").write_text(json.dumps(keep.lines))


if __name__ == "__main__":
    main()
