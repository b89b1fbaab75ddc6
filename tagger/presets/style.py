"""A style: nothing goes, so that nothing but the style is left for the LoRA to learn."""

from ._spec import ConceptPreset

PRESET = ConceptPreset(
    name="style",
    title="Style",
    summary="Takes out nothing: what is tagged does not stick to the style",
    source="LyCORIS experiments, one variable at a time: a style trained without tags was the worst of all",
    first="nothing, or the name of the style",
    keep_tokens=0,
    advice=("Every picture needs tags; run a tagger over those that have none.",),
)
