"""Everything odd in a dialogue, by name."""

NAMES: dict[str, str] = {
    # slug: one sentence
    "line_too_long": "A line is longer than the limit; its rest was skipped.",
    "reply_not_seen": "A reply that the dialogue needs is not in the capture.",
}
