"""One way of writing: blanks for underscores (faces excepted), plain parentheses, single blanks, ordinary letters."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...core.params import Params, param
from ...dataset.diff import RuleCount
from ...dataset.normal import KAOMOJI, normal, unescaped
from ...dataset.table import Dataset
from ...dataset.words import counted
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import captions_and_tags, rows_of

Rewrite = Callable[[str], str]


@dataclass(frozen=True, kw_only=True)
class NormaliseParams(Params):
    """How tags are written."""

    underscores: str = param(
        "to blanks",
        doc="Underscores between words: written as blanks, or blanks as underscores. Faces such as ^_^ stay",
        choices=("to blanks", "from blanks", "leave"),
    )
    parentheses: str = param(
        "plain",
        doc="Backslashes before parentheses: taken out, as training captions want it, or put in, as prompts do",
        choices=("plain", "escaped", "leave"),
    )
    lower_case: bool = param(False, doc="Write all letters small")
    ordinary_letters: bool = param(True, doc="Full-width and other compatible letters become ordinary ones (NFKC)")


def written(tag: str, params: NormaliseParams) -> str:
    """A tag as the parameters want it."""
    for _, rewrite in _rewrites(params):
        tag = rewrite(tag)
    return tag


def apply(dataset: Dataset, params: NormaliseParams, context: StepContext) -> Outcome:
    """Writes every tag of the vocabulary anew; spellings that become one are merged."""
    tags = dataset.tags
    used = tags.counts() > 0
    names = list(tags.vocabulary)
    rules: list[RuleCount] = []
    for rule, rewrite in _rewrites(params):
        new = [rewrite(name) for name in names]
        changed = used & np.array([left != right for left, right in zip(names, new, strict=True)], dtype=bool)
        if bool(changed.any()):
            places = np.flatnonzero(changed[tags.ids])
            touched, _ = captions_and_tags(rows_of(tags, places), np.zeros(len(places), dtype=np.int64), 1)
            count = int(np.count_nonzero(changed))
            rules.append(
                RuleCount(rule=rule, touched=int(touched[0]), added=len(places), note=counted(count, "spelling"))
            )
        names = new
    if not rules:
        return outcome(dataset, tags, STEP.name, params)
    place: dict[str, int] = {}
    table = np.array([place.setdefault(name, len(place)) if name else -1 for name in names], dtype=np.int32)
    result = tags.translated(table, tuple(place))
    merged = len(tags.ids) - len(result.ids)
    if merged:
        rules.append(RuleCount(rule="tags that a caption then had twice, or empty ones", touched=0, removed=merged))
    return outcome(dataset, result, STEP.name, params, rules)


def _rewrites(params: NormaliseParams) -> list[tuple[str, Rewrite]]:
    rewrites: list[tuple[str, Rewrite]] = []
    if params.ordinary_letters:
        rewrites.append(("ordinary letters", lambda tag: unicodedata.normalize("NFKC", tag)))
    if params.lower_case:
        rewrites.append(("small letters", str.lower))
    rewrites.append(("single blanks", lambda tag: " ".join(tag.split())))
    if params.parentheses != "leave":
        rewrites.append(("plain parentheses", unescaped))
    if params.underscores == "to blanks":
        rewrites.append(("blanks for underscores", _without_underscores))
    elif params.underscores == "from blanks":
        rewrites.append(("underscores for blanks", lambda tag: tag.replace(" ", "_")))
    if params.parentheses == "escaped":
        escape = ("escaped parentheses", lambda tag: unescaped(tag).replace("(", "\\(").replace(")", "\\)"))
        rewrites = [entry for entry in rewrites if entry[0] != "plain parentheses"]
        rewrites.append(escape)
    return rewrites


def _without_underscores(tag: str) -> str:
    return tag if normal(tag) in KAOMOJI else " ".join(tag.replace("_", " ").split())


STEP = Step(
    name="normalise",
    title="Normalise Tags",
    summary="Writes tags one way: blanks or underscores (faces excepted), plain or escaped parentheses",
    source="The kaomoji list of imgutils and TagGUI; parentheses plain, as kohya-ss/sd-scripts reads captions",
    params=NormaliseParams,
    apply=apply,
)
