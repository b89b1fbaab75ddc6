"""What travels on a wire of merges: what is to be merged, and what the result is to be like; nothing is read yet."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .expression import Merge, Node, models
from .plan import OutputParams
from .recipe._spec import Result

MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class MergeHandle:
    """A merge that has not been done.

    Attributes:
        node: What is merged.
        name: For its file; empty where a recipe gives none.
        output: What the result is like, as far as a recipe or a repair has said.
        results: All results of a recipe with several; empty otherwise.
        notes: Sentences for the report.
    """

    node: Node
    name: str = ""
    output: OutputParams = field(default_factory=OutputParams)
    results: tuple[Result, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, result: Result) -> MergeHandle:
        """Another result of the same recipe."""
        return replace(self, node=result.node, name=result.name, output=replace(self.output, dtype=result.dtype))


def composed_name(node: Node) -> str:
    """A name for a merge that has none: its models and the last method."""
    names = [model.name.rpartition("/")[2].removesuffix(".safetensors") for model in models(node)]
    more = [] if len(names) <= MAX_NAMED else [f"{len(names) - MAX_NAMED}-more"]
    method = [node.method] if isinstance(node, Merge) else []
    return "-".join([*names[:MAX_NAMED], *more, *method])
