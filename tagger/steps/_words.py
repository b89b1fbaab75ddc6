"""Word lists written as plain text."""


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def phrases(text: str) -> frozenset[str]:
    """The phrases of a text, separated by commas or line ends."""
    return frozenset(" ".join(part.split()) for line in text.splitlines() for part in line.split(",") if part.strip())
