"""A style: nothing goes, so that nothing but the style is left for the LoRA to learn."""

from ._spec import ConceptPreset

PRESET = ConceptPreset(
    name="style",
    title="Style",
    summary="Takes out nothing: what is tagged does not stick to the style",
    source="Records 003 and 004: a style trained without tags was the worst of all",
    first="nothing, or the name of the style",
    keep_tokens=0,
    advice=("Every picture needs tags; run a tagger over those that have none.",),
)
