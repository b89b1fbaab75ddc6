"""Runs inside ComfyUI's environment: draws the cases of a JSON file with ComfyUI's own code, writes an npz file.

Arguments: ComfyUI's folder, the pack's folder, the cases, the LoRA file, the npz to write, the tiny base.
"""

import importlib.util
import json
import sys
from pathlib import Path


def main() -> None:
    checkout, pack, cases_path, lora_path, target, base_path = sys.argv[1:]
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, checkout)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.samplers
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
    from lora_atelier.families._spec import Variant
    from lora_atelier.nodes.host.comfy_pico import load_pico
    from lora_atelier.nodes.host.comfy_variant import as_told

    folder_paths.set_temp_directory(str(Path(target).parent))
    results = {}
    with torch.inference_mode():
        model, clip, vae = load_pico(Path(base_path), temp_dir=Path(target).parent)
        sampling = model.get_model_object("model_sampling")
        lora = comfy.utils.load_torch_file(lora_path, safe_load=True)
        for number, case in enumerate(json.loads(Path(cases_path).read_text())):
            m, c = model, clip
            if "variant" in case:
                m = as_told(m, Variant(**case["variant"]))
            if case["kind"] == "sigmas":
                sigmas = comfy.samplers.KSampler(
                    m, case["steps"], torch.device("cpu"), "euler", case["scheduler"], case["denoise"]
                ).sigmas
                results[str(number)] = sigmas.numpy()
                continue
            if case["kind"] == "times":
                table = sampling.sigmas[::37] * case["factor"]
                results[str(number)] = sampling.timestep(table).numpy()
                continue
            if case.get("lora"):
                m, c = comfy.sd.load_lora_for_models(m, c, lora, *case["lora"])
            if case.get("clip_layer"):
                c = nodes.CLIPSetLastLayer().set_last_layer(c, case["clip_layer"])[0]
            positive = nodes.CLIPTextEncode().encode(c, case["positive"])[0]
            if case["kind"] == "text":
                results[str(number)] = positive[0][0].numpy()
                continue
            negative = nodes.CLIPTextEncode().encode(c, case["negative"])[0]
            if case["kind"] == "encode":
                generator = torch.Generator().manual_seed(case["seed"])
                pixels = torch.rand((1, case["height"], case["width"], 3), generator=generator)
                results[str(number)] = vae.encode(pixels).numpy()
                continue
            latent = {"samples": torch.zeros((case.get("batch", 1), 4, case["height"] // 8, case["width"] // 8))}
            if "start" in case:
                generator = torch.Generator().manual_seed(case["start"])
                latent["samples"] = torch.randn(latent["samples"].shape, generator=generator) * 5.0
            if "batch_index" in case:
                latent["batch_index"] = case["batch_index"]
            drawn = nodes.common_ksampler(
                m, case["seed"], case["steps"], case["cfg"], case["sampler"], case["scheduler"],
                positive, negative, latent, denoise=case["denoise"],
            )[0]  # fmt: skip
            results[str(number)] = vae.decode(drawn["samples"]).float().numpy()
    np.savez(target, **results)


if __name__ == "__main__":
    main()
