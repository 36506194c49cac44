"""Everything odd in the story of a message, by name."""

NAMES: dict[str, str] = {
    # slug: one sentence
    "hosts_dropped": "There are more hosts without a message than the limit; the others have no row.",
    "lookups_dropped": "There are more DNS lookups than the limit; the later ones are bound to no hop.",
    "attempts_dropped": "There are more connections without a transaction than the limit; the later ones are in no timeline.",
    "mailbox_events_dropped": "There are more mailbox events than the limit; the later ones are in no timeline.",
    "hop_seen_twice": "Two captures show the same crossing; it is one hop, told from the one that shows more.",
    "clock_offset": "Two captures that show the same crossings disagree about the time; it is taken off only by --align.",
    "message_id_reused": "A Message-ID stands in messages with different bodies and no common past; they are told apart.",
    "authentication_differs": "A server wrote another SPF, DKIM, DMARC or ARC result than the captured message and answers give.",
    "authentication_results_forged": "A message came to a server with results under the server's own name: not believed.",
    "received_time_odd": "A Received field's time is far from the time at which the hand-over was captured.",
    "traces_finished_early": "More messages were open in a live capture than the limit; the longest silent were finished.",
}
