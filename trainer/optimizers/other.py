"""Any optimizer class of pytorch_optimizer, or of torch itself, by its name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.errors import InputError, unknown_name
from ...core.params import param
from .._state_codec import give_tensors, take_tensors
from ._check import check_adaptive
from ._library import library_module
from ._spec import Optimizer, ParamGroup, ScheduledParams, Trained, torch_groups

_PROBE_SHAPES = ((4, 3), (5,), (3, 2, 1, 1), (6, 4))
"""As the tensors of adapters are: matrices, vectors, convolutions."""
_PROBE_STEPS, _PROBE_STOP = 5, 3
_ADAPTIVE_KEYS = ("d", "d0")


@dataclass(frozen=True, kw_only=True)
class OtherParams(ScheduledParams):
    """The class and its arguments."""

    class_name: str = param(
        "StableAdamW",
        doc="Name of an optimizer class of pytorch_optimizer or torch.optim, such as ADOPT, AdEMAMix or StableAdamW.",
    )
    arguments: str = param(
        "",
        doc="Its own settings as name=value, separated by spaces, such as: weight_decay=0.1 betas=0.9,0.99",
    )


def parse_arguments(text: str) -> dict[str, Any]:
    """Returns the settings out of ``weight_decay=0.1 betas=0.9,0.99 decouple=True``, the form of kohya's scripts.

    Raises:
        InputError: a part is no ``name=value``, or a value is no number, switch or list of them.
    """
    found: dict[str, Any] = {}
    for word in text.split():
        name, sign, value = word.strip(",;").partition("=")
        if not sign or not name.isidentifier() or not value:
            raise InputError(
                f"arguments has {word!r}: write every setting as name=value, such as weight_decay=0.1 betas=0.9,0.99."
            )
        if name in ("lr", "params"):
            raise InputError(f"arguments has {word!r}: the learning rates are inputs of their own; leave {name} out.")
        found[name] = tuple(map(_value, value.split(","))) if "," in value else _value(value)
    return found


def _value(text: str) -> Any:
    plain = {"true": True, "false": False, "none": None}
    if text.lower() in plain:
        return plain[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text


def find_class(name: str) -> Any:
    """Returns the optimizer class of that name, whatever the case of its letters.

    Raises:
        UnknownNameError: there is none; the nearest are named.
        MissingLibraryError: pytorch_optimizer is not installed.
    """
    known: dict[str, Any] = {}
    for module in (torch.optim, library_module("pytorch_optimizer")):
        for key, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and not key.startswith("_"):
                known[key] = value
    by_lower = {key.lower(): value for key, value in known.items() if value is not torch.optim.Optimizer}
    wanted = name.strip().lower()
    if wanted not in by_lower:
        raise unknown_name("optimizer class", name, sorted(known, key=str.lower))
    return by_lower[wanted]


def build(groups: Sequence[ParamGroup], params: OtherParams) -> torch.optim.Optimizer:
    """Returns the named optimizer over the groups.

    Raises:
        InputError: it does not take these settings, or it needs one learning rate and the groups have several.
    """
    made = _made(params, torch_groups(groups))
    if _is_adaptive(made) and len({group.lr for group in groups}) > 1:
        raise InputError(
            f"{type(made).__name__} finds one step size for everything, but the groups have different learning rates: "
            "set both to 1, and factors of blocks and modules to 0 or 1."
        )
    return made


def _made(params: OtherParams, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    chosen = find_class(params.class_name)
    try:
        made: torch.optim.Optimizer = chosen(groups, lr=params.lr_unet, **parse_arguments(params.arguments))
    except InputError:
        raise
    except Exception as cause:  # whatever a library's class raises at settings that a person typed
        raise InputError(
            f"{chosen.__name__} does not take these settings ({_said(cause)}): check arguments "
            f"{params.arguments!r} against its documentation."
        ) from cause
    if hasattr(made, "train"):
        made.train()
    return made


def _said(cause: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def _is_adaptive(optimizer: torch.optim.Optimizer) -> bool:
    return any(key in optimizer.defaults for key in _ADAPTIVE_KEYS)


def check(params: OtherParams, trained: Trained) -> list[str]:
    """Tries the class on a few small tensors: it must step, and go on after a stop as if there had been none.

    Raises:
        InputError: it does not; the cause is given.
    """
    made = _made(params, _probe_groups(params.lr_unet))
    title, warnings = type(made).__name__, []
    if _is_adaptive(made):
        warnings = check_adaptive(params, trained, title=title)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        try:
            whole = _stepped(params, stop=None)
            resumed = _stepped(params, stop=_PROBE_STOP)
        except Exception as cause:  # it is the person's choice of class that fails, for whatever reason
            raise InputError(f"{title} cannot train a LoRA here ({_said(cause)}): choose another class.") from cause
    if not all(torch.equal(one, other) for one, other in zip(whole, resumed, strict=True)):
        raise InputError(
            f"{title} does not go on bit for bit after a stop, because its state does not hold all it needs: choose "
            "another class."
        )
    return warnings


def _probe_groups(lr: float) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in _PROBE_SHAPES]
    return [
        {"params": parameters[:2], "lr": lr, "name": "unet"},
        {"params": parameters[2:], "lr": lr, "name": "text_encoder"},
    ]


def _stepped(params: OtherParams, *, stop: int | None) -> list[torch.Tensor]:
    """Returns the tensors after some steps, with a stop and a new optimizer on the way."""
    groups = _probe_groups(params.lr_unet)
    optimizer = _made(params, groups)
    for step in range(_PROBE_STEPS):
        if step == stop:
            tensors: dict[str, torch.Tensor] = {}
            rest = json.loads(json.dumps(take_tensors(optimizer.state_dict(), tensors, "")))
            copied = {name: value.detach().clone() for name, value in tensors.items()}
            optimizer = _made(params, groups)
            optimizer.load_state_dict(give_tensors(rest, copied, ""))
        torch.manual_seed(step)
        draw = torch.Generator().manual_seed(step)
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=draw)
        optimizer.step()
    return [parameter.detach() for group in groups for parameter in group["params"]]


OPTIMIZER = Optimizer(
    name="other",
    title="Any Other",
    summary="Any optimizer of pytorch_optimizer or torch by name; tried out before the run.",
    source="the paper of the chosen class, which pytorch_optimizer names",
    params=OtherParams,
    build=build,
    state_floats=4,
    class_path="pytorch_optimizer.{class_name}",
    check=check,
)
