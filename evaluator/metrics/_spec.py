"""What a metric file exports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The export ``METRIC`` of a file in this folder.

    Attributes:
        name: Title in tables.
        summary: One sentence.
        source: Where the measure comes from.
        measure: The pure function.
    """

    name: str
    summary: str
    source: str
    measure: Callable[..., Any]
