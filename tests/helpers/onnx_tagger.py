"""A tagger of a few kilobytes in the WD14 contract, whose weights prove how the picture reached it."""

import csv
from pathlib import Path

import numpy as np

ROWS = (
    ("general", 9), ("sensitive", 9), ("questionable", 9), ("explicit", 9),
    ("red", 0), ("green", 0), ("blue", 0), ("white_left", 0), ("white_top", 0), ("bright", 0), ("dark", 0),
    ("hatsune_miku_(vocaloid)", 4), ("^_^", 0), ("(o)_(o)", 0), ('say_"a,b"', 0), ("long_hair", 0), ("spare", 0),
)  # fmt: skip
"""Name and category of each output; the character lies among the general ones on purpose."""


def write_table(path: Path, rows=ROWS, header=("tag_id", "name", "category", "count")) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        values = {"tag_id": 1, "count": 5}
        for name, category in rows:
            values.update(name=name, category=category)
            writer.writerow([values[column] for column in header])


def _weights() -> tuple[np.ndarray, np.ndarray]:
    """Per tag: weights of the nine means (BGR of the whole, the left and the top edge, 0..255) and a bias."""
    names = [name for name, _ in ROWS]
    weights = np.zeros((9, len(names)), np.float32)
    bias = np.full(len(names), -8.0, np.float32)
    for name, blue, green, red in (("red", -1, -1, 2), ("green", -1, 2, -1), ("blue", 2, -1, -1)):
        weights[:3, names.index(name)] = np.array([blue, green, red], np.float32) / 32.0
        bias[names.index(name)] = -4.0
    for name, offset in (("white_left", 3), ("white_top", 6)):
        weights[offset : offset + 3, names.index(name)] = 1.0 / 8.0
        bias[names.index(name)] = -90.0  # only three means near 255 lift it
    weights[:3, names.index("bright")] = 0.02
    bias[names.index("bright")] = -7.0
    weights[:3, names.index("dark")] = -0.1
    bias[names.index("dark")] = 4.0
    for name, value in (("sensitive", 1.0), ("general", 0.0), ("hatsune_miku_(vocaloid)", 3.0), ("^_^", 2.0)):
        bias[names.index(name)] = value
    for name in ("(o)_(o)", 'say_"a,b"', "long_hair"):
        bias[names.index(name)] = 1.0
    return weights, bias


def write_tagger(
    folder: Path,
    *,
    size_px: int | str = 16,
    batch: int | str = "N",
    sigmoid: bool = True,
    layout: str = "NHWC",
    channels: str = "BGR",
    scale: float = 255.0,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0),
    output: str = "predictions_sigmoid",
    before: tuple[str, ...] = (),
    embedding: bool = False,
    model: str = "model.onnx",
    table: bool = True,
) -> Path:
    """Write the graph and selected_tags.csv; return the folder.

    The graph first undoes the preparation it is told of and then judges the picture as BGR, 0..255.

    Args:
        folder: Where to.
        size_px: Side, or the name of a free axis.
        batch: Number of pictures, or the name of a free axis.
        sigmoid: Whether the graph applies it.
        layout: Axes of the input.
        channels: Order of the colours.
        scale: Largest value of a colour.
        mean: Subtracted before.
        deviation: Divided by before.
        output: Name of the scores' output.
        before: Names of outputs as wide as the scores that come before them and hold nonsense.
        embedding: A first output of nine features.
        model: Name of the graph's file.
        table: Whether to write the table.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    weights, bias = _weights()
    constants = {
        "weights": weights,
        "bias": bias,
        "edge_start": np.array([0], np.int64),
        "edge_end": np.array([2], np.int64),
        "left_axis": np.array([2], np.int64),
        "top_axis": np.array([1], np.int64),
        "deviation": np.array(deviation, np.float32),
        "mean": np.array(mean, np.float32),
        "scale": np.array([255.0 / scale], np.float32),
        "swap": np.array([0, 1, 2] if channels == "BGR" else [2, 1, 0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["input_1:0"], ["last"], perm=[0, 2, 3, 1] if layout == "NCHW" else [0, 1, 2, 3]),
        helper.make_node("Mul", ["last", "deviation"], ["spread"]),
        helper.make_node("Add", ["spread", "mean"], ["unit"]),
        helper.make_node("Mul", ["unit", "scale"], ["bytes"]),
        helper.make_node("Gather", ["bytes", "swap"], ["bgr"], axis=3),
        helper.make_node("Slice", ["bgr", "edge_start", "edge_end", "left_axis"], ["left"]),
        helper.make_node("Slice", ["bgr", "edge_start", "edge_end", "top_axis"], ["top"]),
        *(
            helper.make_node("ReduceMean", [source], [f"{name}_mean"], axes=[1, 2], keepdims=0)
            for source, name in (("bgr", "all"), ("left", "left"), ("top", "top"))
        ),
        helper.make_node("Concat", ["all_mean", "left_mean", "top_mean"], ["means"], axis=1),
        helper.make_node("Gemm", ["means", "weights", "bias"], ["raw"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["raw"], [output]),
        *(helper.make_node("Neg", ["raw"], [name]) for name in before),
        *([helper.make_node("Identity", ["means"], ["embedding"])] if embedding else []),
    ]
    shape = [batch, size_px, size_px, 3] if layout == "NHWC" else [batch, 3, size_px, size_px]
    widths = {**({"embedding": 9} if embedding else {}), **dict.fromkeys((*before, output), len(ROWS))}
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input_1:0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]) for name, width in widths.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(made)
    (folder / model).write_bytes(made.SerializeToString())
    if table:
        write_table(folder / "selected_tags.csv")
    return folder
