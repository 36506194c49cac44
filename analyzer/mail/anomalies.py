"""Everything odd in the story of a message, by name."""

NAMES: dict[str, str] = {
    # slug: one sentence
    "hosts_dropped": "There are more hosts without a message than the limit; the others have no row.",
    "lookups_dropped": "There are more DNS lookups than the limit; the later ones are bound to no hop.",
    "attempts_dropped": "There are more connections without a transaction than the limit; the later ones are in no timeline.",
    "mailbox_events_dropped": "There are more mailbox events than the limit; the later ones are in no timeline.",
    "told_apart": "More crossings than the limit go with DNS, mailbox events or failed connections; the later ones lack these.",
    "hop_seen_twice": "Two captures show the same crossing; it is one hop, told from the one that shows more.",
    "clock_offset": "Two captures that show the same crossings disagree about the time; it is taken off only by --align.",
    "message_id_reused": "A Message-ID stands in messages with different bodies and no common past; they are told apart.",
    "authentication_differs": "A server wrote another SPF, DKIM, DMARC or ARC result than the captured message and answers give.",
    "authentication_results_forged": "A message came to a server with results under the server's own name: not believed.",
    "direct_to_mx": "A client hands a message of its own to an exchanger, without a login, past its own domain's servers.",
    "mail_loop": "A message came again to a server that had passed it on before, for the same recipient (RFC 5321 6.3).",
    "sent_again": "A client sent a message again for a recipient for whom a server had taken it, or was about to.",
    "delivered_twice": "A message was put in a mailbox more than once for the same recipient.",
    "open_relay": "A server passes on mail from a stranger to a stranger's domain for a client that has not logged in.",
    "received_forged": "A user's program hands in trace fields that only a server writes (RFC 5321 4.4); they may be forged.",
    "received_time_impossible": "A trace field says that the message was received after the hand-over that followed it.",
    "received_contradicted": "A trace field names another client than the packets of that hand-over show.",
    "received_time_odd": "A Received field's time is far from the time at which the hand-over was captured.",
    "hosts_finished_early": "More hosts were seen in a live capture than the limit: rows of the longest silent were finished.",
    "traces_finished_early": "More messages were open in a live capture than the limit; the longest silent were finished.",
}
