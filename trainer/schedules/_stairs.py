"""The text of a step list: `0.005:100, 1e-3:1000, 1e-5`."""

import math

from ...core.errors import InputError

EXAMPLE = "0.005:100, 1e-3:1000, 1e-5"


def parse_rates(text: str) -> tuple[tuple[float, int | None], ...]:
    """Returns (learning rate, last step that has it) of every part; the last part may leave the step out (None).

    Source: the form of AUTOMATIC1111's learning rate schedules for embeddings.

    Raises:
        InputError: a part is malformed, a rate is negative, or the steps do not rise.
    """
    parts = [part.strip() for part in text.replace("\n", ",").split(",") if part.strip()]
    found: list[tuple[float, int | None]] = []
    for number, part in enumerate(parts):
        rate_text, colon, step_text = part.partition(":")
        rate = _number(rate_text.strip(), part)
        if not math.isfinite(rate) or rate < 0.0:
            raise InputError(f"rates has {part!r}: a learning rate must be a number from 0, as in {EXAMPLE!r}.")
        if not colon:
            if number + 1 < len(parts):
                raise InputError(
                    f"rates has {part!r} without a step before other rates: only the last rate may go on without an "
                    f"end, as in {EXAMPLE!r}."
                )
            found.append((rate, None))
            continue
        step = _step(step_text.strip(), part)
        if found and step <= (found[-1][1] or 0):
            raise InputError(f"rates has {part!r} after step {found[-1][1]}: the steps must rise, as in {EXAMPLE!r}.")
        found.append((rate, step))
    if not found:
        raise InputError(f"rates is empty, but the schedule is step_list: give rates and steps, such as {EXAMPLE!r}.")
    return tuple(found)


def _number(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError as cause:
        raise InputError(f"rates has {part!r}: {text!r} is no learning rate; write it as in {EXAMPLE!r}.") from cause


def _step(text: str, part: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"rates has {part!r}: {text!r} is no step, which counts from 1; write it as in {EXAMPLE!r}.")
    return int(text)
