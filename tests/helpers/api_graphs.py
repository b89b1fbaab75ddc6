"""Graphs in API format for tests of the runner: training, drawing, core nodes; changes are given by keyword."""

import json


def node(class_type, /, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def filled(graph, specs):
    """The graph with the defaults of all widgets it does not give."""
    for entry in graph.values():
        spec = specs.get(entry.get("class_type"))
        for name, widget in spec.inputs.items() if spec else ():
            if widget.is_widget and name not in entry["inputs"] and widget.required:
                if "default" in widget.options:
                    entry["inputs"][name] = widget.options["default"]
                elif widget.choices:
                    entry["inputs"][name] = widget.choices[0]
    return graph


def train(**changes):
    """A training graph; NODE__INPUT=value changes an input, None takes it out."""
    graph = {
        "base": node("AtelierOpenBase", base_name="tiny.safetensors", dtype="fp32"),
        "data": node("AtelierOpenDataset", folder="good", reg_folder=""),
        "net": node("AtelierNetworkLora", rank=2, alpha=1.0),
        "opt": node("AtelierOptimizerAdamw"),
        "blocks": node("AtelierBlocks", blocks="ALL"),
        "train": node(
            "AtelierTrainLora", base=["base", 0], dataset=["data", 0], network=["net", 0], optimizer=["opt", 0],
            blocks=["blocks", 0], run_name="try", steps=2, resolution_px=64, bucket_min_px=64, bucket_max_px=64,
        ),
    }  # fmt: skip
    return changed(graph, changes)


def draw(**changes):
    """A drawing graph with a LoRA and a grid."""
    graph = {
        "base": node("AtelierOpenBase", base_name="tiny.safetensors", dtype="fp32"),
        "load": node("AtelierBaseToModel", base=["base", 0]),
        "lora": node("AtelierOpenLora", lora_name="good.safetensors"),
        "x": node("AtelierAxisSteps", steps="1, 2"),
        "grid": node(
            "AtelierXYGrid", model=["load", 0], clip=["load", 1], vae=["load", 2], lora=["lora", 0], x=["x", 0],
            prompt="red", steps=2, width_px=64, height_px=64,
        ),
        "score": node("AtelierScoreGrid", grid=["grid", 1], trigger="red", concept_tag="red"),
    }  # fmt: skip
    return changed(graph, changes)


def core(**changes):
    """A graph of core nodes."""
    graph = {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "lora": node("LoraLoader", model=["load", 0], clip=["load", 1], lora_name="good.safetensors"),
        "pos": node("CLIPTextEncode", clip=["lora", 1], text="red"),
        "neg": node("CLIPTextEncode", clip=["lora", 1], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node(
            "KSampler", model=["lora", 0], positive=["pos", 0], negative=["neg", 0], latent_image=["empty", 0], steps=1
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0]),
    }  # fmt: skip
    return changed(graph, changes)


def changed(graph, changes):
    for key, value in changes.items():
        name, _, entry = key.partition("__")
        if not entry:
            if value is None:
                del graph[name]
            else:
                graph[name] = value
        elif value is None:
            del graph[name]["inputs"][entry]
        else:
            graph[name]["inputs"][entry] = value
    return graph


IMAGE = {"load": node("LoadImage", image="x.png"), "save": node("PreviewImage", images=["load", 0])}


def image(name, **changes):
    return changed(json.loads(json.dumps(IMAGE)), {"load__image": name, **changes})


def convert(name):
    return {"convert": node("AtelierConvertCheckpoint", file=name)}
