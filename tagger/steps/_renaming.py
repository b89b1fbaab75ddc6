"""What alias and rename share: every occurrence of a tag becomes another one, counted per pair."""

from collections.abc import Mapping, Sequence

import numpy as np

from ...core.errors import InputError
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import matched_nothing, normal, normals
from ._lists import ARROW, Pair
from ._match import file_summary
from ._vectors import captions_and_tags, rows_of, translated_by_name


def rename_all(
    tags: TagColumn, given: Sequence[Pair], targets: Mapping[str, str]
) -> tuple[TagColumn, tuple[RuleCount, ...], tuple[str, ...]]:
    """Renames by normal form; a caption that then has a tag twice keeps the first.

    Args:
        tags: The captions.
        given: The pairs as they were given, for messages.
        targets: Normal form of each tag to what it finally becomes.
    """
    if not given:
        raise InputError(f"there is nothing to rename; write a line such as  old tag {ARROW} new tag")
    column, table, missing = translated_by_name(tags, dict(targets))
    changed = np.flatnonzero(table != np.arange(len(table)))
    rules: list[RuleCount] = []
    result = tags
    if len(changed):
        sources = {normal(name): number for number, name in enumerate(targets)}
        names = normals(column.vocabulary)
        rule_of_tag = np.full(len(table), -1, dtype=np.int64)
        rule_of_tag[changed] = [sources[names[place]] for place in changed.tolist()]
        by_place = rule_of_tag[column.ids]
        places = np.flatnonzero(by_place >= 0)
        touched, occurrences = captions_and_tags(rows_of(column, places), by_place[places], len(sources))
        listed = list(targets.items())
        rules = [
            RuleCount(rule=f"{source} {ARROW} {target}", touched=int(touched[number]), added=int(occurrences[number]))
            for number, (source, target) in enumerate(listed)
            if occurrences[number]
        ]
        result = column.translated(table, column.vocabulary)
        merged = len(tags.ids) - len(result.ids)
        if merged:
            rules.append(RuleCount(rule="tags that a caption then had twice", touched=0, removed=merged))
    return result, tuple(rules), _unmatched(tags, given, frozenset(missing))


def _unmatched(tags: TagColumn, given: Sequence[Pair], missing: frozenset[str]) -> tuple[str, ...]:
    typed = [pair.source for pair in given if pair.typed and normal(pair.source) in missing]
    counts = tags.counts()
    known = [name for name, count in zip(normals(tags.vocabulary), counts.tolist(), strict=True) if count]
    sentences = [matched_nothing(source, known) for source in typed[:40]]
    sentences += [f"entry {source!r} matched 0 images" for source in typed[40:]]
    from_file = [pair for pair in given if not pair.typed]
    quiet = sum(normal(pair.source) in missing for pair in from_file)
    return (*sentences, *file_summary(quiet, len(from_file)))
