"""The tagger's network and its labels, and the ONNX file with the WD14 contract it becomes."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import world

INPUT_PX = 96
RATINGS = ("general", "sensitive", "questionable", "explicit")
RATING, GENERAL, CHARACTER = 9, 0, 4
_BATCH_NORM_EPS = 1e-5


def _labels() -> tuple[tuple[str, int], ...]:
    tags = (*world.SHAPES, *world.CONCEPT_SHAPES, *world.COLOURS, *world.BACKGROUNDS, *world.COUNTS)
    tags += (*world.SIZES, *world.POSITIONS, *world.ACCESSORIES, world.HATCHED)
    general = [(tag.replace(" ", "_"), GENERAL) for tag in tags]
    concepts = [
        (concept.trigger.replace(" ", "_"), CHARACTER if concept.kind == "character" else GENERAL)
        for concept in world.CONCEPTS.values()
    ]
    return tuple([(name, RATING) for name in RATINGS] + general + concepts)


LABELS = _labels()
"""(name, category) of every output, in order: ratings (9), tags (0), then triggers (characters 4, the style 0)."""


def label_vector(scene: world.Scene) -> Tensor:
    """[labels] of 0 and 1: what is true of the scene's picture."""
    true = {tag.replace(" ", "_") for tag in world.tags_of(scene)} | {"general"}
    true |= {world.CONCEPTS[name].trigger.replace(" ", "_") for name in world.concepts_shown(scene)}
    return torch.tensor([float(name in true) for name, _ in LABELS])


class TaggerNet(nn.Module):
    """A small CNN; takes the WD14 input [n, height, width, 3] (BGR, 0..255), gives logits [n, labels]."""

    def __init__(self) -> None:
        """Build the layers; (in, out, stride) of each convolution is the table below."""
        super().__init__()
        table = ((3, 24, 2), (24, 40, 2), (40, 56, 1), (56, 64, 2), (64, 72, 1), (72, 80, 2))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS)
            )
            for inputs, outputs, stride in table
        )
        self.place = nn.Conv2d(80, 10, 1)
        self.hidden = nn.Linear(80 * 2 + 10 * (INPUT_PX // 16) ** 2, 80)
        self.out = nn.Linear(80, len(LABELS))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of a batch."""
        x = pixels.permute(0, 3, 1, 2) / 127.5 - 1.0
        for block in self.blocks:
            x = torch.relu(block(x))
        placed = torch.relu(self.place(x)).flatten(1)
        pooled = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3)), placed], dim=1)
        logits: Tensor = self.out(torch.relu(self.hidden(pooled)))
        return logits


def prepare(picture: Image.Image, side_px: int = INPUT_PX) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[side, side, 3] float32 as WD14 taggers take it: on white, padded to a square, resized, BGR, 0..255."""
    longest = max(picture.size)
    square = Image.new("RGB", (longest, longest), (255, 255, 255))
    square.paste(picture.convert("RGB"), ((longest - picture.width) // 2, (longest - picture.height) // 2))
    if longest != side_px:
        square = square.resize((side_px, side_px), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, dtype=np.float32)[:, :, ::-1])


def _folded(block: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with its batch norm folded in."""
    conv, norm = block.get_submodule("0"), block.get_submodule("1")
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    gain = norm.get_parameter("weight") / (var + _BATCH_NORM_EPS).sqrt()
    return conv.get_parameter("weight") * gain[:, None, None, None], norm.get_parameter("bias") - mean * gain


def write_onnx(net: TaggerNet, path: Path) -> None:
    """Write the network as an ONNX graph: `input` [batch, 96, 96, 3] to `output` [batch, labels] after a sigmoid."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights: dict[str, Tensor] = {"scale": torch.tensor(1 / 127.5), "shift": torch.tensor(-1.0)}
    nodes = [
        helper.make_node("Transpose", ["input"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["x0"]),
    ]
    for index, block in enumerate(net.blocks):
        weights[f"k{index}"], weights[f"b{index}"] = _folded(block)
        stride = block.get_submodule("0").stride
        sizes = {"kernel_shape": [3, 3], "strides": list(stride), "pads": [1, 1, 1, 1]}  # type: ignore[arg-type]
        nodes.append(helper.make_node("Conv", [f"x{index}", f"k{index}", f"b{index}"], [f"c{index}"], **sizes))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"x{index + 1}"]))
    last = f"x{len(net.blocks)}"
    for name in ("place", "hidden", "out"):
        layer = net.get_submodule(name)
        weights[f"{name}_w"], weights[f"{name}_b"] = layer.get_parameter("weight"), layer.get_parameter("bias")
    nodes += [
        helper.make_node("Conv", [last, "place_w", "place_b"], ["place"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["place"], ["placed"]),
        helper.make_node("Flatten", ["placed"], ["place_flat"]),
        helper.make_node("GlobalAveragePool", [last], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["mean_flat"]),
        helper.make_node("GlobalMaxPool", [last], ["most"]),
        helper.make_node("Flatten", ["most"], ["most_flat"]),
        helper.make_node("Concat", ["mean_flat", "most_flat", "place_flat"], ["pooled"], axis=1),
        helper.make_node("Gemm", ["pooled", "hidden_w", "hidden_b"], ["hidden_sum"], transB=1),
        helper.make_node("Relu", ["hidden_sum"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "out_w", "out_b"], ["logits"], transB=1),
        helper.make_node("Sigmoid", ["logits"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pico-tagger",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", INPUT_PX, INPUT_PX, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(v.detach().float().contiguous().numpy(), k) for k, v in weights.items()],
    )
    model = helper.make_model(
        graph, producer_name="lora-atelier", opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save(model, str(temporary))
    os.replace(temporary, path)


def write_tag_list(path: Path, counts: Sequence[int]) -> None:
    """Write `selected_tags.csv`: tag_id, name, category, count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as opened:
        rows = csv.writer(opened, lineterminator="\n")
        rows.writerow(("tag_id", "name", "category", "count"))
        for index, ((name, category), count) in enumerate(zip(LABELS, counts, strict=True)):
            rows.writerow((index, name, category, count))
