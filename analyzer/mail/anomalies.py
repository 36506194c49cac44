"""Everything odd in the story of a message, by name."""

NAMES: dict[str, str] = {
    # slug: one sentence
}
