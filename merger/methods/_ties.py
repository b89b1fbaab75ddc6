"""Trimming and electing signs: the steps that TIES and DELLA share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BY_SUM, BY_COUNT = "sum", "count"


def trimmed(change: Tensor, keep: float) -> Tensor:
    """The change with only its greatest share ``keep`` by magnitude left, the rest 0."""
    if keep >= 1.0 or change.numel() == 0:
        return change
    place = max(int((1.0 - keep) * change.numel()), 1)
    magnitude = change.abs()
    least = magnitude.reshape(-1).kthvalue(place).values
    return torch.where(magnitude >= least, change, torch.zeros_like(change))


def elected_mean(changes: Sequence[Tensor], vote: str) -> Tensor:
    """The mean of those changes that have the elected sign, 0 where none has."""
    ballot = torch.zeros_like(changes[0])
    for change in changes:
        ballot += change if vote == BY_SUM else change.sign()
    elected = ballot.sign_()
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for change in changes:
        agrees = change.sign() == elected
        total += torch.where(agrees, change, torch.zeros_like(change))
        count += agrees
    return torch.where(count > 0, total / count.clamp(min=1.0), torch.zeros_like(total))
