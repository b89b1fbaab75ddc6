"""Randomness from names alone: the same (seed, step, purpose) gives the same numbers, in any order, after any stop."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive(seed: int, *parts: int | str) -> int:
    """Derives a seed in 0 .. 2**63-1 from a seed and the names of its use.

    Different parts give independent seeds; ``derive(s, "a", "b")`` differs from ``derive(s, "ab")`` and
    ``derive(s, 1)`` from ``derive(s, "1")``. The hash is BLAKE2b (RFC 7693) over a length-prefixed encoding,
    the same on every platform.
    """
    digest = hashlib.blake2b(digest_size=8, person=b"atelier")
    for part in (seed, *parts):
        encoded = str(part).encode("utf-8")
        digest.update(b"%s%d:" % (b"i" if isinstance(part, int) else b"s", len(encoded)))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little") >> 1


def uniform(seed: int, *parts: int | str, count: int) -> list[float]:
    """Derives up to eight numbers of 0 up to 1 from a seed and the names of their use; see :func:`derive`."""
    digest = hashlib.blake2b(digest_size=8 * count, person=b"atelier")
    digest.update(derive(seed, *parts).to_bytes(8, "little"))
    raw = digest.digest()
    return [(int.from_bytes(raw[8 * number : 8 * number + 8], "little") >> 11) / 2.0**53 for number in range(count)]


def generator(seed: int, step: int, purpose: str, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """Returns a fresh generator for one purpose at one step.

    Args:
        seed: The run's seed.
        step: The step it serves.
        purpose: What is drawn, e.g. ``"noise"``; two purposes at one step are independent.
        device: Where the numbers are drawn; CPU numbers are the same everywhere.
    """
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, step, purpose))
