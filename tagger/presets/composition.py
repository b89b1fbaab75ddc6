"""A composition or situation: who is shown goes, everything else stays."""

from ._spec import ABSTRACT, NAMES, ConceptPreset, Removal

PRESET = ConceptPreset(
    name="composition",
    title="Composition, Situation",
    summary="Takes out names of characters and works and what says nothing; everything else stays",
    source="A LoRA trainer's published table of what to prune per concept",
    first="the name of the composition",
    removals=(
        Removal(reason="says nothing that can be seen", entries=ABSTRACT),
        Removal(reason="name of a character or work", entries=NAMES),
    ),
    advice=("Names can only be told where tags have categories: open site metadata, or name them in 'remove'.",),
)
