"""Everything odd on the wire, by name."""

from typing import Annotated, NamedTuple


class Anomaly(NamedTuple):
    """One odd thing, named (a row of `anomalies`)."""

    ts: Annotated[int | None, "when it was seen"]
    source: Annotated[str, "capture file or interface"]
    session_id: Annotated[str | None, "the session it happened in"]
    trace_id: Annotated[str | None, "the message it belongs to"]
    name: Annotated[str, "what it is; `mailhop schema anomalies` explains each name"]
    detail: Annotated[str, "the particulars, in words"]
    frame: Annotated[int | None, "frame number within the source"]


NAMES: dict[str, str] = {
    # slug: one sentence.  Each room has its own table; tables/ joins them.
    "no_mail": "Nothing of mail and no DNS question was seen; the ports with most packets are named.",
    "damaged_capture": "The capture file is cut or corrupt here; what could be read around the damage was used.",
    "decompression_limit": "A compressed capture unpacks to more than the stated limit; it was read up to there.",
    "clock_jump": "The capture's clock was set back by more than a second; times are shown as captured.",
    "secrets_dropped": "A pcapng file holds more TLS secrets than the stated limit; the rest was left.",
    "headers_cut": "Frames captured so short that their headers cannot be read; they were skipped.",
    "malformed_frame": "Frames too short for the link layer they claim; they were skipped.",
    "malformed_ip": "IP headers whose version or lengths cannot be; the frames were skipped.",
    "malformed_tcp": "TCP headers that are too short or longer than their packet (RFC 9293 3.1); the frames were skipped.",
    "malformed_udp": "UDP lengths below 8 or beyond the packet (RFC 768); the frames were skipped.",
    "malformed_tunnel": "Encapsulation headers that cannot be; the frames were skipped.",
    "ip_length_beyond_frame": "IP packets that claim more octets than their frame had; what is missing counts as not captured.",
    "link_type_unsupported": "Frames of a link type that cannot be read; they were skipped.",
    "wireless_opaque": "802.11 data frames that are encrypted, aggregated or fragmented; they were skipped.",
    "encrypted_below": "Frames encrypted below TCP (IPsec ESP, MACsec, WireGuard, CAPWAP): what is in them cannot be seen.",
    "tunnel_too_deep": "Frames with more encapsulations than the stated limit; they were skipped.",
    "fragments_incomplete": "IP packets of which fragments are missing; they were skipped.",
    "fragments_dropped": "IP packets given up because more incomplete ones were held than the stated limit.",
    "fragments_conflict": "Fragments of one IP packet disagree about its octets or its end; the first copy was used.",
    "fragments_malformed": "Fragments that are empty or end beyond 65535 octets; they were skipped.",
    "conflicting_data": "Two copies of the same octets of a TCP stream differ (RFC 9293 3.10.7.4); the first was used.",
    "reorder_limit": "More TCP segments were held behind a hole than the stated limit; the hole was given up as lost.",
    "late_data": "Octets that had been given up as lost came after all; they were ignored.",
    "out_of_window": "TCP data too far from where its stream is to be of it; ignored.",
    "data_past_fin": "TCP data beyond the end that FIN announced; ignored.",
    "data_after_reset": "TCP data sent after the other side had reset the connection; it cannot have been received.",
    "forged_reset": "An RST that cannot be its sender's: wrong sequence number, or the sender went on (RFC 5961 3); ignored.",
    "stray_syn": "A SYN inside a connection that went on as if nothing had been (RFC 5961 4); ignored.",
    "capture_skew": "One direction was captured later than the other: its octets come after their acknowledgement.",
    "urgent_data": "TCP urgent data (RFC 9293 3.8.5); it was kept in line, as mail servers read it.",
    "connect_unanswered": "Connection attempts to mail ports that nothing answered, counted.",
    "connect_refused": "Connection attempts to mail ports that were answered with RST, counted.",
    "connect_silent": "Connections to mail ports that were opened and closed without a word, counted.",
    "seen_twice": "Connections and lookups that another capture of the analysis shows too, counted; they are told once.",
    "connections_dropped": "Connections closed early because more were open than the stated limit, counted.",
    "capture_drops": "Packets that the kernel or the capturing program had no room for; they were never seen.",
    "analysis_shed": "Packets came faster than live analysis could take: they are in the capture file (-w), not in the tables.",
}
