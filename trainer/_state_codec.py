"""An optimizer's state as tensors and plain JSON values, whatever it is made of, and back without a bit of difference.

A state is nested: numbers, texts, tuples, queues and tensors, in the groups as well as beside the parameters. What
JSON cannot say is put into an object with one key that names its kind.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch

from ..core.errors import FormatError, TrainingError

_TENSOR, _TUPLE, _DEQUE, _DICT, _FLOAT, _DTYPE = "$tensor", "$tuple", "$deque", "$dict", "$float", "$dtype"
_VALUE = "$value"


def take_tensors(state_dict: Mapping[str, Any], tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Moves the tensors of an optimizer's ``state_dict`` into ``tensors`` and returns the rest as JSON values.

    Args:
        state_dict: of the optimizer.
        tensors: gets the tensors by a path that begins with ``prefix``.
        prefix: of the paths.

    Raises:
        TrainingError: the state holds something that cannot be written down.
    """
    rest: dict[str, Any] = {"state": {}}
    for index, values in state_dict["state"].items():
        if not isinstance(values, Mapping):  # some keep a number of all parameters beside the parameters' states
            rest["state"][str(index)] = {_VALUE: _encoded(values, f"{prefix}nested/state/{index}", tensors)}
            continue
        plain: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{prefix}{index}/{name}"] = value
            else:
                plain[str(name)] = _encoded(value, f"{prefix}nested/state/{index}/{name}", tensors)
        rest["state"][str(index)] = plain
    rest["param_groups"] = [
        {name: _encoded(value, f"{prefix}nested/group/{number}/{name}", tensors) for name, value in group.items()}
        for number, group in enumerate(state_dict["param_groups"])
    ]
    return rest


def give_tensors(rest: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Returns the ``state_dict`` that ``take_tensors`` took apart.

    Raises:
        FormatError: a tensor is missing, or belongs to nothing.
    """
    state: dict[Any, Any] = {
        _index(index): _decoded(values[_VALUE], tensors)
        if _VALUE in values
        else {name: _decoded(value, tensors) for name, value in values.items()}
        for index, values in rest["state"].items()
    }
    for path, value in tensors.items():
        name = path.removeprefix(prefix)
        if not path.startswith(prefix) or name.startswith("nested/"):
            continue
        index, _, field = name.partition("/")
        if _index(index) not in state:
            raise FormatError(f"The optimizer state {name!r} of the checkpoint belongs to no parameter.")
        state[_index(index)][field] = value
    groups = [
        {name: _group_value(name, _decoded(value, tensors)) for name, value in group.items()}
        for group in rest["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def _group_value(name: str, value: Any) -> Any:
    # checkpoints of the first version held the betas as a list
    return tuple(value) if name == "betas" and isinstance(value, list) else value


def _index(name: str) -> int | str:
    return int(name) if name.isdigit() else name


def _encoded(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_FLOAT: repr(float(value))}
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return {_TENSOR: path}
    if isinstance(value, torch.dtype):
        return {_DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple, deque)):
        inner = [_encoded(item, f"{path}/{number}", tensors) for number, item in enumerate(value)]
        if isinstance(value, list):
            return inner
        return {_TUPLE: inner} if isinstance(value, tuple) else {_DEQUE: inner, "maxlen": value.maxlen}
    if isinstance(value, Mapping):
        pairs = [
            [_encoded(key, f"{path}/{number}/key", tensors), _encoded(item, f"{path}/{number}", tensors)]
            for number, (key, item) in enumerate(value.items())
        ]
        return {_DICT: pairs}
    raise TrainingError(f"The optimizer keeps a {type(value).__name__} in its state, which no checkpoint can hold.")


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, Mapping):
        return value
    if _TENSOR in value:
        if value[_TENSOR] not in tensors:
            raise FormatError(f"The optimizer state {value[_TENSOR]!r} is missing from the checkpoint.")
        return tensors[value[_TENSOR]]
    if _FLOAT in value:
        return float(value[_FLOAT])
    if _DTYPE in value:
        return getattr(torch, value[_DTYPE])
    if _TUPLE in value:
        return tuple(_decoded(item, tensors) for item in value[_TUPLE])
    if _DEQUE in value:
        return deque((_decoded(item, tensors) for item in value[_DEQUE]), maxlen=value["maxlen"])
    if _DICT in value:
        return {_decoded(key, tensors): _decoded(item, tensors) for key, item in value[_DICT]}
    return {name: _decoded(item, tensors) for name, item in value.items()}
