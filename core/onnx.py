"""One wrapper around onnxruntime, imported only when a session is opened."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import FormatError, StorageError, missing_library

if TYPE_CHECKING:
    import numpy as np

_GPU_PROVIDERS = ("CUDAExecutionProvider", "ROCMExecutionProvider", "DmlExecutionProvider")


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

    def __init__(self, session: Any) -> None:
        """Wraps an ``onnxruntime.InferenceSession``."""
        self._session = session
        self.inputs = tuple(_value(node) for node in session.get_inputs())
        self.outputs = tuple(_value(node) for node in session.get_outputs())
        self.providers: tuple[str, ...] = tuple(session.get_providers())

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
    if threads is not None:
        options.intra_op_num_threads = threads
    available = onnxruntime.get_available_providers()
    providers = [name for name in _GPU_PROVIDERS if name in available] + ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), sess_options=options, providers=providers)
    except _runtime_errors() as cause:
        raise FormatError(f"{path} is not an ONNX graph that can be run here: {_first_line(cause)}") from cause
    return OnnxSession(session)


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
