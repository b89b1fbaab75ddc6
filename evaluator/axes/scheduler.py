"""Columns of different schedulers."""

from dataclasses import dataclass

from ...core.params import Params, param
from ..values import split_list
from ._spec import Axis, AxisContext, AxisValue, checked_names, field_values


@dataclass(frozen=True, kw_only=True)
class SchedulerAxisParams(Params):
    """Which schedulers to compare."""

    schedulers: str = param(
        "normal, karras", doc="Names of schedulers, separated by commas or line breaks", multiline=True
    )


def _values(params: SchedulerAxisParams, context: AxisContext) -> list[AxisValue]:
    names = checked_names("scheduler", split_list(params.schedulers, what="scheduler"), context.scheduler_names)
    return field_values("scheduler", names, names)


AXIS = Axis(name="Scheduler", summary="Compares schedulers.", params=SchedulerAxisParams, values=_values)
