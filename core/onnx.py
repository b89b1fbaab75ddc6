"""One wrapper around onnxruntime, imported only when a session is opened."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FormatError, StorageError, missing_library

if TYPE_CHECKING:
    import numpy as np

_GPU_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider")
CPU_PROVIDER = "CPUExecutionProvider"
_OPSET_WORDS = ("opset", "ai.onnx.ml", "unsupported model ir version")
_NEWER_ONNXRUNTIME = "1.17"
"""What the WD14 files of generation 3 need (opset 17, ai.onnx.ml 4)."""


@dataclass(frozen=True, kw_only=True)
class OnnxValue:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        shape: Its axes; a free axis is None.
        dtype: Its type in onnxruntime's words, e.g. ``"tensor(float)"``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class OnnxSession:
    """An opened graph; see :func:`open_session`."""

    def __init__(self, session: Any, *, fallback: str = "") -> None:
        """Wraps an ``onnxruntime.InferenceSession``.

        Args:
            session: The session.
            fallback: One sentence where it computes on the CPU although a GPU was to be had, else empty.
        """
        self._session = session
        self.fallback = fallback
        self.inputs = tuple(_value(node) for node in session.get_inputs())
        self.outputs = tuple(_value(node) for node in session.get_outputs())
        self.providers: tuple[str, ...] = tuple(session.get_providers())

    @property
    def metadata(self) -> dict[str, str]:
        """What the graph says about itself: its metadata properties, such as YOLO's class names."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU alone computes."""
        return self.providers == (CPU_PROVIDER,)

    def run(
        self, feeds: "Mapping[str, np.ndarray[Any, Any]]", outputs: Sequence[str] | None = None
    ) -> "list[np.ndarray[Any, Any]]":
        """Runs the graph.

        Args:
            feeds: An array per input name.
            outputs: Names of the outputs wanted; None means all, in the graph's order.

        Raises:
            FormatError: The graph refused the arrays (names, shapes or types) or failed.
        """
        try:
            return list(self._session.run(None if outputs is None else list(outputs), dict(feeds)))
        except _runtime_errors() as cause:
            raise FormatError(f"the ONNX graph could not run: {_first_line(cause)}") from cause


def open_session(path: Path, *, threads: int | None = None) -> OnnxSession:
    """Opens an ONNX graph on the GPU where the installed onnxruntime has one, else on the CPU.

    Args:
        path: The ``.onnx`` file.
        threads: CPU threads for one operator; None leaves the choice to onnxruntime.

    Raises:
        MissingLibraryError: onnxruntime is not installed.
        StorageError: The file is not there.
        FormatError: The file is not an ONNX graph this onnxruntime can run.
    """
    try:
        import onnxruntime
    except ImportError as cause:
        raise missing_library("onnxruntime", "running a tagger", "pip install onnxruntime") from cause
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"there is no ONNX file {path}; put the tagger's model.onnx there")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Threads that wait for the next picture must not take the cores from those that decode it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    available = onnxruntime.get_available_providers()
    wanted = [name for name in _GPU_PROVIDERS if name in available]
    if "CUDAExecutionProvider" in wanted and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds the CUDA libraries that came with torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a provider could not be loaded is said in `fallback`
            session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=[*wanted, CPU_PROVIDER])
    except _runtime_errors() as cause:
        raise FormatError(_not_a_graph(path, _first_line(cause), str(onnxruntime.__version__))) from cause
    return OnnxSession(session, fallback=_fallback(wanted, session.get_providers()))


def _fallback(wanted: Sequence[str], used: Sequence[str]) -> str:
    """What to say where a GPU was to be had and is not used: onnxruntime itself says nothing."""
    if wanted and not set(wanted) & set(used):
        return (
            f"onnxruntime offers {wanted[0]} but could not load it and computes on the CPU, many times slower; "
            "install the CUDA and cuDNN version it was built for (its page lists them)."
        )
    if not wanted and _torch_sees_cuda():
        return (
            "this computer has a CUDA device but the installed onnxruntime is the one for CPUs; to use the device: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu."
        )
    return ""


def _torch_sees_cuda() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def _not_a_graph(path: Path, cause: str, version: str) -> str:
    if any(word in cause.lower() for word in _OPSET_WORDS):
        return (
            f"{path} needs a newer onnxruntime than {version} (WD14 files of generation 3 need {_NEWER_ONNXRUNTIME}): "
            f"pip install --upgrade onnxruntime ({cause})"
        )
    return f"{path} is not an ONNX graph that can be run here: {cause}"


def _runtime_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel",
        "NoSuchFile", "NotImplemented", "RuntimeException",
    )  # fmt: skip
    found = (getattr(state, name, None) for name in names)
    return (RuntimeError, ValueError, *(kind for kind in found if isinstance(kind, type)))


def _value(node: Any) -> OnnxValue:
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return OnnxValue(name=node.name, shape=shape, dtype=node.type)


def _first_line(cause: BaseException) -> str:
    return str(cause).strip().split("\n")[0][:300]
