"""Detector graphs of a few bytes whose output is written into them, in every layout of the YOLO programs."""

from pathlib import Path

import numpy as np


def write_detector(
    path: Path,
    output: np.ndarray,
    *,
    size_px: int | str = 64,
    names: str | None = "{0: 'person', 1: 'head'}",
    dtype: str = "FLOAT",
    channels: int = 3,
) -> Path:
    """A graph that takes [1, channels, size, size] and gives ``output`` whatever it is shown."""
    from onnx import TensorProto, helper, numpy_helper, save

    kind = getattr(TensorProto, dtype)
    nodes = [
        helper.make_node("Cast", ["images"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["seen"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["fixed", "nothing"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", kind, [1, channels, size_px, size_px])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output.shape))],
        [
            numpy_helper.from_array(output.astype(np.float32), "fixed"),
            numpy_helper.from_array(np.array(0.0, dtype=np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if names is not None:
        helper.set_model_props(model, {"names": names})
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, str(path))
    return path


def v8(rows: list[tuple[float, ...]], anchors: int = 20) -> np.ndarray:
    """[1, 4 + classes, anchors] out of rows (cx, cy, w, h, score per class)."""
    values = np.zeros((len(rows[0]), anchors), dtype=np.float32)
    values[:, : len(rows)] = np.array(rows, dtype=np.float32).T
    return values[None]


def v5(rows: list[tuple[float, ...]], anchors: int = 20) -> np.ndarray:
    """[1, anchors, 5 + classes] out of rows (cx, cy, w, h, objectness, score per class)."""
    values = np.zeros((anchors, len(rows[0])), dtype=np.float32)
    values[: len(rows)] = np.array(rows, dtype=np.float32)
    return values[None]
