"""The texts that pictures are trained with: a new form every time, or a fixed number of forms of each caption."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from ..core.seeds import derive
from .captions import TokenWarmup, captions_vary, split_tags, training_caption
from .views import variant_shown
from .wildcards import drawn, has_wildcards

if TYPE_CHECKING:
    from .table import Dataset

TRIES = 4
"""A form that was there already is drawn again, at most so many times on average."""
FORMS_KEPT = 65_536
"""Pictures whose forms stay in memory."""


def holds_wildcards(dataset: "Dataset") -> bool:
    """Whether any caption, or any folder's prefix, has a word to draw."""
    if any(has_wildcards(subset.caption_prefix) for subset in dataset.subsets):
        return True
    return any(has_wildcards(dataset.caption(row)) for row in range(len(dataset)))


class CaptionForms:
    """Makes the caption of any picture at any time, from the seeds of its batch alone.

    With a fixed number of forms, they follow from the caption and its folder's options, not from the run: another run
    finds them in the cache. Which one is shown follows from the run's seed, and each comes once before any comes again.
    """

    def __init__(
        self, dataset: "Dataset", *, forms: int = 0, wildcards: bool = False, warmup: TokenWarmup | None = None
    ) -> None:
        """Binds to a data set.

        Args:
            dataset: The pictures.
            forms: Forms of every caption; 0 for a new one every time.
            wildcards: Whether ``{a|b}`` draws a word.
            warmup: How many movable tags are shown at first; only without fixed forms.
        """
        self.dataset, self.forms, self.wildcards, self.warmup = dataset, forms, wildcards, warmup
        self._forms_of = lru_cache(maxsize=FORMS_KEPT)(self._made_forms)

    @property
    def vary(self) -> bool:
        """Whether any caption differs from time to time."""
        if captions_vary(self.dataset) or self.warmup is not None:
            return True
        return self.wildcards and holds_wildcards(self.dataset)

    def text(self, picture: int, caption_seed: int, *, run_seed: int = 0, showing: int = 0, step: int = 0) -> str:
        """The text that one picture is trained with this time.

        Args:
            picture: Its place in the data set.
            caption_seed: From the batch; decides the form and whether the caption is dropped.
            run_seed: With fixed forms, decides which form is shown when.
            showing: How often the picture was shown before.
            step: Updates done before, for the warm-up.
        """
        if self.forms == 0:
            return self._form(picture, caption_seed, step=step)
        if random.Random(caption_seed).random() < self.dataset.subset_of(picture).caption_dropout:
            return ""
        forms = self._forms_of(picture)
        return forms[variant_shown(derive(run_seed, "caption forms"), picture, showing, len(forms))]

    def texts(self) -> Iterator[str]:
        """Every text that may come: the empty one and all forms of all pictures, some of them more than once."""
        yield ""
        for picture in range(len(self.dataset)):
            yield from self._forms_of(picture) if self.forms else (self._form(picture, 0),)

    def _made_forms(self, picture: int) -> tuple[str, ...]:
        caption = self.dataset.caption(picture)
        found: dict[str, None] = {}
        for attempt in range(TRIES * self.forms):
            text = self._form(picture, derive(0, "caption form", caption, attempt), keeps=True)
            found.setdefault(text)
            if len(found) == self.forms:
                break
        return tuple(found)

    def _form(self, picture: int, seed: int, *, keeps: bool = False, step: int = 0) -> str:
        """One form; ``keeps`` passes over the dropping of whole captions."""
        tags, options = self.dataset.tags.row(picture), self.dataset.subset_of(picture)
        if self.wildcards:
            draw = random.Random(derive(seed, "wildcards")).random
            tags = tuple(split_tags(drawn(", ".join(tags), draw)))
            if "{" in options.caption_prefix:
                options = replace(options, caption_prefix=drawn(options.caption_prefix, draw))
        if keeps:
            options = replace(options, caption_dropout=0.0)
        return training_caption(tags, options, seed=seed, warmup=self.warmup, step=step)
