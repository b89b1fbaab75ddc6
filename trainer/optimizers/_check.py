"""What is refused, and warned of, before a run: learning rates, schedules, and the limits of adaptive optimizers."""

from ...core.errors import InputError
from ..schedules._spec import Course
from ..schedules._stairs import parse_rates
from ._spec import Optimizer, OptimizerParams, ScheduledParams, Trained

SMALLEST_ADAPTIVE_LR = 0.1


def check_optimizer(optimizer: Optimizer, params: OptimizerParams, trained: Trained) -> list[str]:
    """Refuses settings that do not fit and returns warnings for a person.

    Raises:
        InputError: the message says what to change.
        MissingLibraryError: the optimizer's library is not installed.
    """
    check_learning_rates(params, train_unet=trained.unet, train_text_encoder=trained.text_encoder)
    if params.warmup_steps >= trained.steps:
        raise InputError(
            f"warmup_steps is {params.warmup_steps} and the run has {trained.steps} steps: the warm-up must be shorter "
            "than the run."
        )
    return [*check_schedule(params, trained), *optimizer.check(params, trained)]


def check_learning_rates(params: OptimizerParams, *, train_unet: bool, train_text_encoder: bool) -> None:
    """Refuses a part that is to be trained with a learning rate of 0.

    Raises:
        InputError: a trained part's learning rate is 0.
    """
    wanted = (("unet", train_unet, params.lr_unet), ("text_encoder", train_text_encoder, params.lr_text_encoder))
    for part, trained, lr in wanted:
        if trained and lr <= 0.0:
            raise InputError(
                f"lr_{part} is {lr:g}, but train_{part} is on: give a learning rate above 0, or switch train_{part} "
                "off."
            )


def check_schedule(params: OptimizerParams, trained: Trained) -> list[str]:
    """Refuses a schedule whose settings are missing or belong to another one.

    Raises:
        InputError: see above.
    """
    if not isinstance(params, ScheduledParams):
        return []
    if params.rates.strip() and params.schedule != "step_list":
        raise InputError(
            f"rates is {params.rates!r}, but the schedule is {params.schedule}: choose the schedule step_list, or "
            "leave rates empty."
        )
    if params.schedule == "step_list":
        return _step_list_warnings(params, trained)
    if params.schedule == "warmup_stable_decay":
        if params.decay_steps == 0:
            raise InputError(
                "decay_steps is 0, but the schedule is warmup_stable_decay: give the length of the fall, such as a "
                f"tenth of the run ({max(1, trained.steps // 10)})."
            )
        if params.warmup_steps + params.decay_steps > trained.steps:
            raise InputError(
                f"warmup_steps is {params.warmup_steps} and decay_steps is {params.decay_steps}, together more than "
                f"the {trained.steps} steps of the run: shorten one of them."
            )
    elif params.decay_steps > 0:
        raise InputError(
            f"decay_steps is {params.decay_steps}, but the schedule is {params.schedule}: only warmup_stable_decay "
            "uses it; choose that, or set it to 0."
        )
    return []


def _step_list_warnings(params: ScheduledParams, trained: Trained) -> list[str]:
    stairs = parse_rates(params.rates)
    if all(rate == 0.0 for rate, _ in stairs):
        raise InputError(f"rates is {params.rates!r}: every rate is 0, so nothing would be learned.")
    last = stairs[-1][1]
    if last is not None and last < trained.steps:
        return [f"The rates end at step {last}; the last one is kept until step {trained.steps}."]
    if len(stairs) > 1 and (stairs[-2][1] or 0) >= trained.steps:
        return [f"The run ends at step {trained.steps}, before the last of the rates is reached."]
    return []


def course_of(params: OptimizerParams, trained: Trained) -> Course:
    """Returns the course of the schedule; a step list's rates are divided by the base rate they stand for."""
    if not isinstance(params, ScheduledParams):
        return Course(total_steps=trained.steps, warmup_steps=params.warmup_steps, cycles=params.cycles)
    base = params.lr_unet if trained.unet else params.lr_text_encoder
    listed = parse_rates(params.rates) if params.schedule == "step_list" else ()
    return Course(
        total_steps=trained.steps,
        warmup_steps=params.warmup_steps,
        cycles=params.cycles,
        decay_steps=params.decay_steps,
        min_factor=params.min_factor,
        power=params.power,
        stairs=tuple((rate / base, until) for rate, until in listed),
    )


def check_adaptive(params: OptimizerParams, trained: Trained, *, title: str) -> list[str]:
    """Enforces what optimizers need that find their step size themselves: a rate of about 1, the same everywhere.

    Source: Defazio and Mishchenko 2023, section 7 ("set lr to 1"); their single estimate d holds for all groups.

    Raises:
        InputError: the learning rates are not of that kind.
    """
    rates = {
        f"lr_{part}": lr
        for part, is_trained, lr in (
            ("unet", trained.unet, params.lr_unet),
            ("text_encoder", trained.text_encoder, params.lr_text_encoder),
        )
        if is_trained
    }
    if len(set(rates.values())) > 1:
        raise InputError(
            f"lr_unet is {params.lr_unet:g} and lr_text_encoder is {params.lr_text_encoder:g}, but {title} finds one "
            "step size for everything and would follow only the first: set both to 1."
        )
    name, lr = next(iter(rates.items()))
    if lr < SMALLEST_ADAPTIVE_LR:
        raise InputError(
            f"{name} is {lr:g}, but {title} finds the step size itself and takes the learning rate as a factor on it: "
            "set it to 1, not to a rate such as AdamW's."
        )
    if params.schedule == "step_list":
        raise InputError(f"The schedule is step_list, but {title} finds the step size itself: use constant or cosine.")
    warnings = []
    if lr != 1.0:
        warnings.append(f"{title} finds the step size itself; {name} is {lr:g}, and 1 is what it is made for.")
    if params.schedule not in ("constant", "cosine", "linear"):
        warnings.append(f"{title} is usually run with the schedule constant or cosine, not {params.schedule}.")
    return warnings
