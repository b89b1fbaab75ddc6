"""What each experiment of the trainer's settings claims, as a rule over its figures, and whether it has shown."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Figures: TypeAlias = Mapping[str, Mapping[str, float]]
"""Figures by arm, of one seed or in the mean of the seeds."""

NUM_SEEDS = 3
"""With fewer there is no verdict."""
AS_GOOD = 0.10
"""Recall or traits that are no more than this lower count as the same: a sixth to a tenth of a picture set is noise."""
AS_FAST = 0.05
"""Speed that is no more than this higher counts as no faster."""
LEARNED_NOTHING = 0.15
"""At most this share of the traits seen at the end, of which a base that never saw the character shows some too."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A direction that is expected.

    Attributes:
        experiment: Whose lines it is about.
        says: In words.
        arms: That it needs.
        holds: Whether it does.
    """

    experiment: str
    says: str
    arms: tuple[str, ...]
    holds: Callable[[Figures], bool]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a claim has shown.

    Attributes:
        word: reproduced (in the mean and with every seed), weak (in the mean only), not reproduced, or not run (in all
            arms with fewer than three seeds).
        by_seed: Whether it holds with each seed that was run in all its arms.
    """

    word: str
    by_seed: Mapping[int, bool]


def _higher(figure: str, arm: str, other: str) -> Callable[[Figures], bool]:
    return lambda of: of[arm][figure] > of[other][figure]


def _as_high(figure: str, arm: str, other: str, margin: float) -> Callable[[Figures], bool]:
    return lambda of: of[arm][figure] >= of[other][figure] - margin


def _act_alike(of: Figures) -> bool:
    low, alpha, lr = (of[arm]["speed"] for arm in ("low", "alpha up", "lr up"))
    return min(alpha, lr) > low and abs(alpha - lr) < min(alpha, lr) - low


def _learns_nothing(arm: str) -> Callable[[Figures], bool]:
    return lambda of: of[arm]["traits_end"] <= LEARNED_NOTHING


CLAIMS: Mapping[str, Claim] = {
    "alpha and lr": Claim(
        experiment="d",
        says="alpha x 4 and learning rates x 4 are both faster, and nearer to each other than to what they come from",
        arms=("low", "alpha up", "lr up"),
        holds=_act_alike,
    ),
    "cosine": Claim(
        experiment="e",
        says="cosine is slower than constant",
        arms=("constant", "cosine"),
        holds=_higher("speed", "constant", "cosine"),
    ),
    "text rate": Claim(
        experiment="f",
        says="half the text encoder's rate is slower",
        arms=("whole", "halved"),
        holds=_higher("speed", "whole", "halved"),
    ),
    "blocks": Claim(
        experiment="g",
        says="OUT03-06 keeps the concept",
        arms=("all blocks", "OUT03-06"),
        holds=_as_high("traits_end", "OUT03-06", "all blocks", AS_GOOD),
    ),
    **{
        arm: Claim(
            experiment="g-more",
            says=f"{arm} keeps the concept",
            arms=("all blocks", arm),
            holds=_as_high("traits_end", arm, "all blocks", AS_GOOD),
        )
        for arm in ("IN04-07, OUT03-06", "OUT03-06, 480 steps")
    },
    "kept": Claim(
        experiment="h",
        says="with regularisation pictures more of the known shapes are drawn as asked",
        arms=("with", "without"),
        holds=_higher("kept_240", "with", "without"),
    ),
    "false": Claim(
        experiment="h",
        says="without them the character's traits show more where nobody asked for them",
        arms=("with", "without"),
        holds=_higher("false_240", "without", "with"),
    ),
    "shared word": Claim(
        experiment="i",
        says="triggers that share a word show more of each other's traits",
        arms=("shared word", "no shared word"),
        holds=_higher("other_end", "shared word", "no shared word"),
    ),
    **{
        name: Claim(
            experiment="j",
            says=f"{name} reaches AdamW's recall",
            arms=("AdamW", name),
            holds=_as_high("recall_240", name, "AdamW", AS_GOOD),
        )
        for name in ("D-Adaptation Lion", "Prodigy")
    },
    "9/8": Claim(
        experiment="k",
        says="72 px learns no faster per step than 64 px",
        arms=("64 px", "72 px"),
        holds=_as_high("speed", "64 px", "72 px", AS_FAST),
    ),
    "between": Claim(
        experiment="k",
        says="72 px is not faster than both 64 and 80 px",
        arms=("64 px", "72 px", "80 px"),
        holds=lambda of: of["72 px"]["speed"] <= max(of["64 px"]["speed"], of["80 px"]["speed"]),
    ),
    "mixed": Claim(
        experiment="l",
        says="mixed bf16 learns as fp32 does",
        arms=("fp32", "mixed bf16"),
        holds=_as_high("traits_end", "mixed bf16", "fp32", AS_GOOD),
    ),
    **{
        name: Claim(experiment="l", says=f"{name} learns nothing", arms=(name,), holds=_learns_nothing(name))
        for name in ("pure bf16", "pure fp16")
    },
}


def judge(claim: Claim, lines: Iterable[Mapping[str, Any]]) -> Verdict:
    """Applies a claim's rule to every seed that was run in all its arms, and to their mean."""
    found: dict[int, dict[str, Mapping[str, float]]] = {}
    for line in lines:
        if line["experiment"] == claim.experiment and line["arm"] in claim.arms:
            found.setdefault(line["seed"], {})[line["arm"]] = line["figures"]
    whole = {seed: arms for seed, arms in sorted(found.items()) if len(arms) == len(claim.arms)}
    if len(whole) < NUM_SEEDS:
        return Verdict(word="not run", by_seed={seed: claim.holds(arms) for seed, arms in whole.items()})
    by_seed = {seed: claim.holds(arms) for seed, arms in whole.items()}
    if not claim.holds(_mean(list(whole.values()))):
        return Verdict(word="not reproduced", by_seed=by_seed)
    return Verdict(word="reproduced" if all(by_seed.values()) else "weak", by_seed=by_seed)


def _mean(seeds: list[dict[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        arm: {
            figure: statistics.fmean(arms[arm][figure] for arms in seeds)
            for figure in figures
            if all(figure in arms[arm] for arms in seeds)
        }
        for arm, figures in seeds[0].items()
    }


def told(lines: Iterable[Mapping[str, Any]]) -> str:
    """Every claim with its verdict, one line each."""
    lines = list(lines)
    rows = []
    for claim in CLAIMS.values():
        verdict = judge(claim, lines)
        seeds = ", ".join(f"seed {seed} {'yes' if held else 'no'}" for seed, held in verdict.by_seed.items())
        rows.append(f"{claim.experiment}: {claim.says}: {verdict.word}" + (f" ({seeds})" if seeds else ""))
    return "\n".join(rows)
