"""The detector's network and the ONNX file it becomes: the layout of YOLOv8's export, two classes, under 0.5 MB."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

INPUT_PX = 96
STRIDE_PX = 4
CELLS = INPUT_PX // STRIDE_PX
CLASSES = ("body", "head")
PAD_GREY = 114
"""Grey around a picture that is not square, as the YOLO programs pad."""
_TABLE = ((3, 16, 2), (16, 28, 2), (28, 48, 2), (48, 56, 2), (56, 56, 1))
_MERGED = 28
_BATCH_NORM_EPS = 1e-5


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS)
    )


class DetectorNet(nn.Module):
    """A small CNN with one grid of cells; takes [n, 3, 96, 96] (RGB, 0..1), gives [n, 4 + classes, 24, 24] raw."""

    def __init__(self) -> None:
        """Build the layers; (in, out, stride) of each downward convolution is the table above."""
        super().__init__()
        self.down = nn.ModuleList(_block(*row) for row in _TABLE)
        self.from_quarter = nn.Conv2d(28, _MERGED, 1)
        self.from_eighth = nn.Conv2d(48, _MERGED, 1)
        self.from_sixteenth = nn.Conv2d(56, _MERGED, 1)
        self.head = nn.ModuleList([_block(_MERGED, _MERGED), _block(_MERGED, _MERGED)])
        self.out = nn.Conv2d(_MERGED, 4 + len(CLASSES), 1)
        with torch.no_grad():
            self.out.get_parameter("bias")[4:] = -4.0  # nearly all cells are empty

    def forward(self, pixels: Tensor) -> Tensor:
        """Raw outputs of every cell: log distances to the four sides in cells, then class logits."""
        x, levels = pixels, []
        for block in self.down:
            x = torch.relu(block(x))
            levels.append(x)
        merged = self.from_eighth(levels[2]) + functional.interpolate(self.from_sixteenth(levels[4]), scale_factor=2.0)
        x = torch.relu(self.from_quarter(levels[1]) + functional.interpolate(merged, scale_factor=2.0))
        for block in self.head:
            x = torch.relu(block(x))
        raw: Tensor = self.out(x)
        return raw


def cell_centres() -> tuple[Tensor, Tensor]:
    """Both x and y in px of every cell's centre, each [cells of all rows]."""
    middle = (torch.arange(CELLS) + 0.5) * STRIDE_PX
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def sides(raw: Tensor) -> Tensor:
    """[n, 4, cells]: left, top, right, bottom in px out of the raw outputs."""
    x, y = cell_centres()
    left, top, right, bottom = (raw[:, :4].flatten(2).clamp(-6, 4).exp() * STRIDE_PX).unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=1)


def write_onnx(net: DetectorNet, path: Path) -> None:
    """Write the network as `images` [batch, 3, 96, 96] to `output0` [batch, 4 + classes, cells].

    The rows of the output are centre x, centre y, width, height in px of the input, then a score 0..1 per class; class
    names, stride and size stand in the metadata, as YOLOv8 exports have it.
    """
    from onnx import TensorProto, checker, helper, numpy_helper, save

    x, y = cell_centres()
    weights: dict[str, Tensor] = {
        "centres": torch.stack([x, y]).unsqueeze(0),
        "stride": torch.tensor(float(STRIDE_PX)),
        "half": torch.tensor(0.5),
        "low": torch.tensor(-6.0),
        "high": torch.tensor(4.0),
        "twice": torch.tensor([1.0, 1.0, 2.0, 2.0]),
    }
    nodes = []

    def conv(source: str, target: str, kernel: Tensor, bias: Tensor, stride: int, relu: bool) -> None:
        weights[f"{target}_k"], weights[f"{target}_b"] = kernel, bias
        side = kernel.shape[-1]
        shape = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [side // 2] * 4}
        made = f"{target}_sum" if relu else target
        nodes.append(helper.make_node("Conv", [source, f"{target}_k", f"{target}_b"], [made], **shape))
        if relu:
            nodes.append(helper.make_node("Relu", [made], [target]))

    def plain(name: str, source: str) -> None:
        layer = net.get_submodule(name)
        conv(source, name, layer.get_parameter("weight"), layer.get_parameter("bias"), 1, relu=False)

    def doubled(source: str, target: str) -> None:
        nodes.append(helper.make_node("Resize", [source, "", "twice"], [target], mode="nearest"))

    source = "images"
    for index, block in enumerate(net.down):
        conv(source, f"down{index}", *_folded(block), _TABLE[index][2], relu=True)
        source = f"down{index}"
    plain("from_quarter", "down1")
    plain("from_eighth", "down2")
    plain("from_sixteenth", "down4")
    doubled("from_sixteenth", "coarse")
    nodes.append(helper.make_node("Add", ["from_eighth", "coarse"], ["merged"]))
    doubled("merged", "finer")
    nodes.append(helper.make_node("Add", ["from_quarter", "finer"], ["joined"]))
    nodes.append(helper.make_node("Relu", ["joined"], ["head_in"]))
    source = "head_in"
    for index, block in enumerate(net.head):
        conv(source, f"head{index}", *_folded(block), 1, relu=True)
        source = f"head{index}"
    plain("out", source)
    nodes += [
        helper.make_node("Reshape", ["out", "flat_shape"], ["flat"]),
        helper.make_node("Split", ["flat", "parts"], ["near_raw", "far_raw", "logits"], axis=1),
        helper.make_node("Clip", ["near_raw", "low", "high"], ["near_log"]),
        helper.make_node("Clip", ["far_raw", "low", "high"], ["far_log"]),
        helper.make_node("Exp", ["near_log"], ["near_cells"]),
        helper.make_node("Exp", ["far_log"], ["far_cells"]),
        helper.make_node("Mul", ["near_cells", "stride"], ["near"]),
        helper.make_node("Mul", ["far_cells", "stride"], ["far"]),
        helper.make_node("Sub", ["far", "near"], ["lean"]),
        helper.make_node("Mul", ["lean", "half"], ["shift"]),
        helper.make_node("Add", ["centres", "shift"], ["middle"]),
        helper.make_node("Add", ["near", "far"], ["size"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("Concat", ["middle", "size", "scores"], ["output0"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(value.detach().float().contiguous().numpy(), name) for name, value in weights.items()
    ]
    constants += [
        numpy_helper.from_array(torch.tensor([0, 4 + len(CLASSES), CELLS * CELLS]).numpy(), "flat_shape"),
        numpy_helper.from_array(torch.tensor([2, 2, len(CLASSES)]).numpy(), "parts"),
    ]
    graph = helper.make_graph(
        nodes,
        "pico-detector",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, INPUT_PX, INPUT_PX])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, ["batch", 4 + len(CLASSES), CELLS * CELLS])],
        constants,
    )
    model = helper.make_model(
        graph, producer_name="lora-atelier", opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    facts = {"names": repr(dict(enumerate(CLASSES))), "stride": str(STRIDE_PX), "imgsz": json.dumps([INPUT_PX] * 2)}
    helper.set_model_props(model, facts)
    checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save(model, str(temporary))
    os.replace(temporary, path)


def _folded(block: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of a convolution with its batch norm folded in."""
    conv, norm = block.get_submodule("0"), block.get_submodule("1")
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    gain = norm.get_parameter("weight") / (var + _BATCH_NORM_EPS).sqrt()
    return conv.get_parameter("weight") * gain[:, None, None, None], norm.get_parameter("bias") - mean * gain
