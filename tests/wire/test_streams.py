"""TCP streams: whatever the capture did to the segments, the octets come out in order, once, or as a gap."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talk import ACK, FIN, MS, PSH, RST, SYN, T0, URG, Segment, Talk, play, said, smtp

from analyzer.limits import Limits
from analyzer.wire import streams
from analyzer.wire.flows import Ends, Flows
from analyzer.wire.types import Connection

S = 1000 * MS


def whole(talk: Talk, segments: list[Segment], **how: object) -> None:
    """Everything that was said comes out, without a gap."""
    heard = play(segments, **how).one  # type: ignore[arg-type]
    assert heard.data(0) == said(talk, 0)
    assert heard.data(1) == said(talk, 1)
    assert heard.gaps(0) == heard.gaps(1) == []
    assert heard.connection.orig_port == 41000


def test_a_delivery_in_order() -> None:
    talk = smtp()
    played = play(talk.segments)
    conn = played.one.connection
    assert (conn.start, conn.end, conn.tcp_stream) == ("handshake", "fin", 0)
    assert (conn.ts_syn, conn.ts_synack, conn.ts_open) == (T0, T0 + MS, T0 + 2 * MS)
    assert (conn.first_frame, conn.last_frame, conn.ts_last) == (1, len(talk.segments), talk.segments[-1].ts)
    assert (conn.orig_bytes, conn.resp_bytes, conn.gap_bytes) == (len(said(talk, 0)), len(said(talk, 1)), 0)
    assert played.anomalies == []
    whole(talk, talk.segments)


def test_the_table_says_when_each_octet_came_and_what_it_acknowledged() -> None:
    talk = Talk().open().s(b"220 mx\r\n").c(b"EHLO c\r\n").s(b"250 mx\r\n")
    heard = play(talk.segments).one
    assert heard.table[1] == [(0, T0 + 3 * MS, 4, 0), (8, T0 + 5 * MS, 6, 8)]
    assert heard.table[0] == [(0, T0 + 4 * MS, 5, 8)]


def test_two_neighbours_swapped() -> None:
    talk = smtp()
    for i in range(3, len(talk.segments) - 4):
        segments = list(talk.segments)
        segments[i], segments[i + 1] = segments[i + 1], segments[i]
        whole(talk, segments)


def test_everything_twice() -> None:
    talk = smtp()
    played = play([s for segment in talk.segments for s in (segment, segment.but(ts=segment.ts + 1))])
    assert played.one.data(0) == said(talk, 0)
    assert played.anomalies == []


def test_a_lost_segment_is_sent_again_much_later() -> None:
    talk = smtp()
    late = next(i for i, s in enumerate(talk.segments) if len(s.data) == 1460)
    segments = talk.segments[:late] + talk.segments[late + 1 : -3] + [talk.segments[late]] + talk.segments[-3:]
    whole(talk, segments)


def test_repacketised_retransmissions() -> None:
    talk = Talk().open().c(b"abcdefghij").c(b"klmnopqrst").s(b"ok")
    base = talk.segments[3]
    segments = [
        *talk.segments[:4],
        base.but(seq=base.seq + 5, data=b"fghijklmno"),
        base.but(data=b"abcdefghijklmnopqrst"),
        *talk.segments[4:],
    ]
    whole(talk, segments)


def test_back_to_front_with_overlaps() -> None:
    talk = Talk().open()
    text = bytes(range(200))
    last = talk.c(text).segments.pop()
    pieces = [last.but(seq=last.seq + at, data=text[at : at + 20]) for at in range(190, -10, -10) if at >= 0]
    heard = play(talk.segments + pieces).one
    assert heard.data(0) == text
    assert heard.gaps(0) == []


def test_sequence_numbers_wrap() -> None:
    talk = smtp(isn=(0xFFFFFFFF - 2000, 0xFFFFFFFC))
    whole(talk, talk.segments)
    whole(talk, talk.segments, cuts=range(0, 100, 2))


def test_conflicting_copies_are_named_and_the_first_stays() -> None:
    talk = Talk().open().c(b"MAIL FROM:<a@example.com>\r\n").s(b"250 ok\r\n")
    good = talk.segments[3]
    bad = good.but(data=good.data.replace(b"a@", b"x@"))
    for segments in ([*talk.segments, bad], [*talk.segments[:4], bad, talk.segments[4]]):
        for cuts in ([], range(9)):
            played = play(segments, cuts=cuts)
            assert played.names == {"conflicting_data"}
            assert played.one.data(0) == good.data


@pytest.mark.parametrize("how", [{"ttl": 1}, {"spoilt": True}])
def test_a_copy_that_cannot_have_been_received_gives_way(how: dict[str, int]) -> None:
    talk = Talk(mss=20).open().c(b"EHLO c\r\n").c(b"MAIL FROM:<a@example.com>\r\n").s(b"250 ok\r\n")
    good = talk.segments[4]
    bad = good.but(data=good.data.replace(b"MAIL", b"XXXX"), **how)
    for cuts in ([], range(9)):
        played = play([*talk.segments[:4], bad, *talk.segments[4:]], cuts=cuts)
        assert played.one.data(0) == said(talk, 0)
        assert played.one.table[0][1] == (8, good.ts, 6, 0)
        assert played.names == {"conflicting_data"}
        assert ("TTL 1 then, 64 now" if "ttl" in how else "wrong checksum") in played.anomalies[0].detail
    played = play([*talk.segments[:4], bad, *talk.segments[5:], good])
    assert played.one.data(0) == said(talk, 0).replace(b"MAIL", b"XXXX"), "it was acknowledged: it was received"
    assert played.names == {"conflicting_data"}


def test_a_wrong_segment_over_several_right_ones_gives_way_to_each() -> None:
    talk = Talk(mss=10).open().c(b"EHLO mail\r\n").s(b"250\r\n").c(b"MAIL FROM:<a@b.example>\r\n")
    lie = talk.segments[5].but(data=b"X" * 25, spoilt=True)
    played = play([*talk.segments[:5], lie, *talk.segments[5:]])
    assert played.one.data(0) == said(talk, 0)
    assert played.names == {"conflicting_data"}


def test_wrong_checksums_all_over_mean_nothing() -> None:
    talk = Talk().open().c(b"EHLO c\r\n")
    first = talk.segments[3].but(spoilt=True)
    played = play([*talk.segments[:3], first, first.but(data=b"EHLO d\r\n")])
    assert played.one.data(0) == b"EHLO c\r\n"


def test_conflicting_copies_behind_a_hole() -> None:
    talk = Talk(mss=10).open().c(b"0123456789abcdefghij")
    first, second = talk.segments[3:]
    played = play([*talk.segments[:3], second, second.but(data=b"ABCDEFGHIJ"), first])
    assert played.one.data(0) == b"0123456789abcdefghij"
    assert played.names == {"conflicting_data"}


def test_keep_alives_are_no_data() -> None:
    talk = Talk().open().c(b"NOOP\r\n").s(b"250 ok\r\n")
    alive = talk.segments[3].but(seq=talk.seq[0] - 1, data=b"\0", ts=talk.ts)
    played = play([*talk.segments, alive, alive.but(data=b"")])
    assert played.one.data(0) == b"NOOP\r\n"
    assert played.anomalies == []
    talk.close()
    after = [alive.but(seq=alive.seq + 1)] * 2
    for place in (-2, len(talk.segments)):
        played = play(talk.segments[:place] + after + talk.segments[place:])
        assert played.one.data(0) == b"NOOP\r\n"
        assert played.anomalies == []


def test_zero_window_probe_octets_come_again_with_the_rest() -> None:
    talk = Talk().open().c(b"abcdef")
    probe = talk.segments[3].but(data=b"a")
    whole(talk, [*talk.segments[:3], probe, probe, talk.segments[3]])


def test_data_on_syn() -> None:
    talk = Talk().add(0, SYN, b"EHLO c\r\n").add(1, SYN | ACK, b"220 mx\r\n").add(0, ACK).c(b"NOOP\r\n")
    whole(talk, talk.segments)
    whole(talk, talk.segments, cuts=[1, 2, 3])


def test_urgent_data_stays_in_line() -> None:
    talk = Talk().open().add(0, ACK | URG, b"NOOP\r\n")
    played = play(talk.segments)
    assert played.one.data(0) == b"NOOP\r\n"
    assert played.names == {"urgent_data"}


# -- beginnings


def test_joined_in_the_middle_the_mail_port_is_the_servers() -> None:
    talk = smtp()
    for start in range(4, len(talk.segments) - 4):
        conn = play(talk.segments[start:]).one.connection
        assert (conn.start, conn.orig_port, conn.resp_port) == ("mid", 41000, 25)


def test_joined_in_the_middle_says_so_and_counts_from_0() -> None:
    talk = Talk().open().s(b"220 mx\r\n").c(b"EHLO c\r\n").s(b"250 mx\r\n")
    heard = play(talk.segments[4:]).one
    assert heard.parts == ([(-1, 0), b"EHLO c\r\n"], [(-1, 0), b"250 mx\r\n"])


def test_a_keep_alive_is_no_beginning() -> None:
    talk = Talk().open().c(b"NOOP\r\n").s(b"250 ok\r\n")
    alive = talk.segments[3].but(seq=talk.seq[0] - 1, data=b"")
    talk.c(b"QUIT\r\n")
    heard = play([alive, talk.segments[-1]]).one
    assert heard.parts[0] == [(-1, 0), b"QUIT\r\n"]


def test_the_whole_server_before_the_whole_client() -> None:
    talk = smtp()
    segments = sorted(talk.segments, key=lambda s: s.src != talk.server)
    whole(talk, segments)
    whole(talk, segments, cuts=range(100))
    conn = play(segments).one.connection
    assert (conn.start, conn.ts_syn, conn.ts_synack) == ("handshake", T0, T0 + MS)


def test_simultaneous_open() -> None:
    talk = Talk()
    ack, syn = talk.isn[1] + 1, talk.isn[0] + 1
    talk.add(0, SYN).add(1, SYN)
    talk.add(0, SYN | ACK, seq=talk.isn[0], ack=ack).add(1, SYN | ACK, seq=talk.isn[1], ack=syn)
    talk.seq = [syn, ack]
    talk.s(b"220 mx\r\n").c(b"QUIT\r\n").close()
    whole(talk, talk.segments)


def test_the_lost_synack_is_known_from_its_ack() -> None:
    talk = smtp()
    heard = play(talk.segments[:1] + talk.segments[2:]).one
    assert heard.data(1) == said(talk, 1)
    assert heard.gaps(1) == []
    assert heard.connection.start == "handshake"


# -- losses


def test_a_hole_that_was_acknowledged() -> None:
    talk = smtp()
    lost = next(i for i, s in enumerate(talk.segments) if len(s.data) == 1460)
    played = play(talk.segments[:lost] + talk.segments[lost + 1 :])
    heard = played.one
    assert heard.gaps(0) == [1460]
    assert heard.connection.gap_bytes == 1460
    assert heard.connection.end == "fin"
    assert len(heard.data(0)) == len(said(talk, 0)) - 1460


def test_a_lost_reply_is_a_gap_where_it_was() -> None:
    talk = Talk().open().s(b"220 mx\r\n").c(b"DATA\r\n").s(b"354 go\r\n").c(b".\r\n").s(b"250 ok\r\n")
    del talk.segments[5]
    assert play(talk.segments).one.parts[1] == [b"220 mx\r\n", (8, 16), b"250 ok\r\n"]


def test_a_direction_never_captured_shows_as_gaps() -> None:
    talk = smtp()
    heard = play([s for s in talk.segments if s.src == talk.client]).one
    assert heard.data(0) == said(talk, 0)
    assert heard.data(1) == b""
    assert sum(heard.gaps(1)) == len(said(talk, 1))
    assert heard.connection.end == "fin"


def test_an_old_hole_is_given_up_while_the_connection_goes_on() -> None:
    limits = replace(Limits(), hole_packets=20, hole_age=1 * S)
    talk = Talk().open().s(b"* OK\r\n").c(b"a NOOP\r\n").s(b"a OK\r\n")
    lost = len(talk.segments) - 1
    for i in range(40):
        talk.pause(100 * MS).c(b"%d NOOP\r\n" % i).s(b"%d OK\r\n" % i)
    segments = talk.segments[:lost] + talk.segments[lost + 1 :]
    late = segments.pop(lost + 2)
    played = play([*segments, late], limits=limits)
    assert played.one.gaps(1) == [6, len(late.data)] or played.one.gaps(1) == [6]
    again = play([*segments, late], limits=limits, cuts=range(200))
    assert again.one.parts == played.one.parts


def test_a_late_copy_of_what_was_given_up_is_named() -> None:
    limits = replace(Limits(), hole_packets=4, hole_age=1)
    talk = Talk(mss=4).open().c(b"0123").c(b"4567").s(b"ok").s(b"ok").s(b"ok").s(b"ok").s(b"ok").s(b"ok")
    lost = talk.segments.pop(3)
    played = play([*talk.segments, lost], limits=limits)
    assert played.one.parts[0] == [(4, 4), b"4567"]
    assert played.names == {"late_data"}


def test_octets_cut_off_by_the_snap_length_are_gaps() -> None:
    talk = Talk().open().add(0, ACK, b"abcd", cut=6).c(b"klm").add(0, ACK, cut=5).c(b"stu").close()
    heard = play(talk.segments).one
    assert heard.parts[0] == [b"abcd", (6, 10), b"klm", (5, 18), b"stu"]


def test_more_behind_a_hole_than_the_bound() -> None:
    limits = replace(Limits(), pending_bytes=5000)
    talk = Talk(mss=1000).open().c(b"x" * 20_000)
    del talk.segments[3]
    played = play(talk.segments, limits=limits)
    assert played.one.gaps(0) == [1000]
    assert len(played.one.data(0)) == 19_000
    assert "reorder_limit" in played.names


def test_a_hole_for_every_octet() -> None:
    talk = Talk(mss=1).open().c(b"x" * 4000)
    segments = talk.segments[:3] + talk.segments[4::2]
    heard = play(segments).one
    assert heard.data(0) == b"x" * 2000
    assert heard.gaps(0) == [1] * 2000


def test_one_octet_segments_in_reverse_order() -> None:
    talk = Talk(mss=1).open().c(bytes(i % 251 for i in range(20_000)))
    whole(talk, talk.segments[:3] + talk.segments[:2:-1])


def test_a_segment_two_gigabytes_ahead_is_no_hole() -> None:
    talk = smtp()
    stray = talk.segments[5].but(seq=(talk.segments[5].seq + (1 << 31) - 1) & 0xFFFFFFFF, data=b"far away")
    played = play([*talk.segments[:6], stray, *talk.segments[6:]])
    assert played.one.data(0) == said(talk, 0)
    assert played.names == {"out_of_window"}


def test_a_stream_that_is_somewhere_else_is_followed_there() -> None:
    talk = Talk(mss=100).open().c(b"a" * 300)
    talk.seq[0] += 1 << 30
    talk.c(b"b" * 3000)
    heard = play(talk.segments).one
    assert heard.gaps(0) == [-1]
    assert heard.data(0).startswith(b"a" * 300 + b"b" * 1000)


# -- ends


def test_half_close() -> None:
    talk = Talk().open().c(b"RETR 1\r\n").add(0, FIN | ACK).s(b"+OK\r\n" + b"x" * 5000 + b".\r\n").add(0, ACK)
    talk.add(1, FIN | ACK).add(0, ACK)
    whole(talk, talk.segments)
    assert play(talk.segments).one.connection.end == "fin"


def test_data_past_fin_is_ignored_and_named() -> None:
    talk = Talk().open().c(b"QUIT\r\n").add(0, FIN | ACK).c(b"MAIL FROM:<>\r\n").add(1, FIN | ACK)
    played = play(talk.segments)
    assert played.one.data(0) == b"QUIT\r\n"
    assert played.names == {"data_past_fin"}
    talk = smtp()
    played = play([*talk.segments, talk.segments[-1].but(data=b"MAIL FROM:<>\r\n")])
    assert played.one.data(0) == said(talk, 0)
    assert played.names == {"data_past_fin"}


def test_reset_ends_the_connection() -> None:
    talk = Talk().open().s(b"220 mx\r\n").c(b"MAIL").add(0, RST | ACK)
    conn = play(talk.segments).one.connection
    assert (conn.end, conn.orig_bytes) == ("reset", 4)


def test_data_after_a_reset_is_named() -> None:
    talk = Talk().open().s(b"220 mx\r\n").c(b"MAIL FROM:<>\r\n").add(1, RST | ACK).c(b"RCPT TO:<>\r\n")
    played = play(talk.segments)
    assert played.one.connection.end == "reset"
    assert played.names == {"data_after_reset"}


def test_a_forged_reset_ends_nothing() -> None:
    talk = smtp()
    at = 10
    rst = talk.segments[at].but(flags=RST, data=b"", ttl=200)
    for forged in (rst.but(seq=(rst.seq + (1 << 30)) & 0xFFFFFFFF), rst):
        played = play([*talk.segments[:at], forged, *talk.segments[at:]])
        assert played.one.data(0) == said(talk, 0)
        assert played.one.connection.end == "fin"
        assert played.names == {"forged_reset"}


def test_late_copies_and_last_acks_open_no_ghost() -> None:
    talk = smtp()
    late = [s.but(ts=talk.ts + i) for i, s in enumerate(talk.segments[-8:])]
    assert len(play(talk.segments + late).heard) == 1
    assert len(play(talk.segments + late, cuts=[len(talk.segments)]).heard) == 1


def test_the_capture_ends_first() -> None:
    talk = smtp()
    conn = play(talk.segments[:15]).one.connection
    assert conn.end == "capture_end"


def test_two_hours_of_silence_are_one_connection() -> None:
    talk = Talk().open().s(b"220 mx\r\n").pause(7200 * S).c(b"QUIT\r\n")
    whole(talk, talk.segments)


def test_silence_beyond_the_limit_ends_it() -> None:
    limits = replace(Limits(), connection_idle=3600 * S)
    talk = Talk().open().s(b"220 mx\r\n").pause(7200 * S).c(b"QUIT\r\n")
    for cuts in ([], [4], range(9)):
        played = play(talk.segments, cuts=cuts, limits=limits)
        assert [(h.connection.start, h.connection.end) for h in played.heard] == [
            ("handshake", "timeout"),
            ("mid", "capture_end"),
        ]


# -- one after the other, side by side


def test_port_reuse_is_two_connections() -> None:
    one = smtp()
    two = smtp(isn=(500, 600), ts=one.ts + 50 * MS)
    played = play(one.segments + two.segments)
    assert [h.connection.tcp_stream for h in played.heard] == [0, 1]
    assert [h.data(0) for h in played.heard] == [said(one, 0), said(two, 0)]


def test_port_reuse_without_a_close_needs_an_answer() -> None:
    one = Talk().open().s(b"220 mx\r\n").c(b"EHLO c\r\n")
    two = smtp(isn=(90_000, 70_000), ts=one.ts)
    played = play(one.segments + two.segments)
    assert [h.data(0) for h in played.heard] == [b"EHLO c\r\n", said(two, 0)]
    assert [h.connection.ts_syn for h in played.heard] == [T0, two.segments[0].ts]
    only_client = play(one.segments + [s for s in two.segments if s.src == two.client])
    assert only_client.heard[1].data(0) == said(two, 0)


def test_a_syn_that_nobody_answers_ends_nothing() -> None:
    talk = smtp()
    syn = talk.segments[0].but(seq=77, ts=talk.segments[8].ts)
    played = play([*talk.segments[:9], syn, *talk.segments[9:]])
    assert played.one.data(0) == said(talk, 0)
    assert played.names == {"stray_syn"}


def test_two_taps_see_one_connection() -> None:
    talk = smtp()
    other = [s.but(ts=s.ts + 3 * MS, ttl=63) for s in talk.segments]
    played = play([talk.segments, other])
    assert played.one.data(0) == said(talk, 0)
    assert played.one.connection.source == "0.pcap"
    much_later = [s.but(ts=s.ts + 3600 * S) for s in talk.segments]
    assert len(play([talk.segments, much_later]).heard) == 1


def test_a_connection_goes_on_in_the_next_file() -> None:
    talk = smtp()
    played = play([talk.segments[:9], talk.segments[9:]])
    assert played.one.data(0) == said(talk, 0)
    conn = played.one.connection
    assert (conn.source, conn.tcp_stream) == ("0.pcap", 0)


def test_numbers_start_anew_in_each_file() -> None:
    first, second = smtp(), smtp(client=(0x0A000009, 5000))
    third = smtp(client=(0x0A000008, 5000), isn=(7, 7))
    played = play([first.segments + second.segments, third.segments])
    assert [h.connection.tcp_stream for h in played.heard] == [0, 1, 0]


def test_equal_ends_in_two_vlans_are_two_connections() -> None:
    one, two = smtp(vlan=10), smtp(vlan=20, isn=(2000, 5001))
    mixed = [s for pair in zip(one.segments, two.segments, strict=True) for s in pair]
    for cuts in ([], range(100), [1], [3], [7]):
        played = play(mixed, cuts=cuts)
        assert [h.connection.tcp_stream for h in played.heard] == [0, 1]
        for heard in played.heard:
            assert heard.data(0) == said(one, 0)
            assert heard.data(1) == said(one, 1)
        assert played.anomalies == []


def test_a_vlan_tag_in_one_direction_only_is_one_connection() -> None:
    talk = smtp()
    whole(talk, [s.but(vlan=10) if s.src == talk.client else s for s in talk.segments])


def test_the_same_packets_in_two_vlans_are_one_connection() -> None:
    talk = smtp()
    whole(talk, [s.but(vlan=vlan) for s in talk.segments for vlan in (10, 20)])


# -- attempts


def test_attempts_on_mail_ports_are_listed_and_counted() -> None:
    segments = []
    for i in range(30):
        talk = Talk(client=(0x0A000100 + i, 2000), server=(0x0A000002, (25, 25, 443)[i % 3]), isn=(i, 9)).add(0, SYN)
        if i % 2:
            talk.add(1, RST | ACK, seq=0)
        segments += talk.segments
    played = play(segments)
    assert played.heard == []
    assert sorted({a.result for a in played.attempts}) == ["refused", "unanswered"]
    assert len(played.attempts) == 20
    assert {(a.name, a.detail.split()[0]) for a in played.anomalies} == {("connect_unanswered", "10"), ("connect_refused", "10")}
    for cuts in ([], range(50), [2, 9, 21]):
        assert sorted(play(segments, cuts=cuts).attempts) == sorted(played.attempts)


def test_retransmitted_syns_are_one_attempt() -> None:
    syn = Talk().add(0, SYN).segments[0]
    segments = [syn.but(ts=T0 + i * S) for i in (0, 1, 3, 7)]
    for cuts in ([], [1], [1, 2, 3]):
        (attempt,) = play(segments, cuts=cuts).attempts
        assert (attempt.syns, attempt.ts, attempt.ts_end) == (4, T0, T0 + 7 * S)


def test_opened_and_nothing_said() -> None:
    talk = Talk().open().close()
    played = play(talk.segments)
    assert [a.result for a in played.attempts] == ["silent"]
    assert play(talk.segments, cuts=range(9)).attempts == played.attempts


def test_a_flood_of_syns_is_a_number() -> None:
    limits = replace(Limits(), attempts=10)
    segments = [Talk(client=(0x0B000000 + i, 1024), isn=(i, 0)).add(0, SYN).segments[0] for i in range(3000)]
    segments[1500:1500] = smtp().segments
    played = play(segments, limits=limits)
    assert len(played.one.data(0)) > 5000
    assert played.one.connection.tcp_stream == 1500
    assert len(played.attempts) == 10
    assert [a.detail.split()[0] for a in played.anomalies] == ["3000"]


def test_flows_beyond_the_bounds_are_forgotten_or_closed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHECK", 40_000)
    limits = replace(Limits(), connections=200, open_connections=100, attempts=10)
    flood = [Talk(client=(0x0B000000 + i, 1024), isn=(i, 0)).add(0, SYN).segments[0] for i in range(1500)]
    open_for_ever = [s for i in range(300) for s in Talk(client=(0x0C000000 + i, 9), isn=(i, 7)).open().s(b"220 hi\r\n").segments]
    talk = smtp(ts=T0 + S)
    segments = flood[:700] + open_for_ever + flood[700:] + talk.segments
    counted = []
    for cuts in ([], range(0, 4000, 7)):
        played = play(segments, limits=limits, cuts=cuts)
        assert played.heard[-1].data(0) == said(talk, 0)
        assert len(played.heard) == 301
        assert {h.connection.end for h in played.heard} == {"timeout", "capture_end", "fin"}
        assert len(played.attempts) == 10
        counted.append(sorted((a.name, a.detail) for a in played.anomalies))
    assert counted[0] == counted[1]
    assert ("connect_unanswered", "1500 connection attempts to mail ports were not answered") in counted[0]
    assert "connections_dropped" in dict(counted[0])


def test_holes_of_many_connections_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_CHECK", 40_000)
    limits = replace(Limits(), pending_total=30_000)
    segments = []
    for i in range(20):
        talk = Talk(client=(0x0A000100 + i, 7), mss=500).open().c(b"x" * 4000)
        segments += talk.segments[:3] + talk.segments[4:]
    shown = []
    for cuts in ([], range(1000)):
        played = play(segments, limits=limits, cuts=cuts)
        assert [h.gaps(0) for h in played.heard] == [[500]] * 20
        shown.append([str(a) for a in played.anomalies])
    assert shown[0] == shown[1] != []


def test_two_flows_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    strong, tries = Flows.hash, []

    def weak(self: Flows, ends: Ends) -> object:
        tries.append(len(ends.ports))
        return strong(self, ends) & np.uint64(0 if len(tries) < 3 else 0xFFFFFFFF)

    monkeypatch.setattr(Flows, "hash", weak)
    one, two = smtp(), smtp(client=(0x0A000009, 5000))
    played = play(one.segments + two.segments)
    assert [h.data(0) for h in played.heard] == [said(one, 0), said(two, 0)]


# -- who is listened to


def test_what_is_not_wanted_is_not_heard() -> None:
    asked = []

    def never(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        asked.append((orig, resp))
        return False

    talk = smtp()
    played = play(talk.segments, cuts=range(100), recognise=never)
    assert played.heard == []
    assert asked == [(b"", b"220 mx\r\n")]


def test_the_web_is_passed_over_and_the_mail_after_it_between_the_same_ports_is_not() -> None:
    asked = []

    def mail_only(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        asked.append(orig[:4])
        return orig.startswith(b"EHLO") if orig and resp else None

    def is_web(orig: bytes, resp: bytes, orig_port: int, resp_port: int) -> bool:
        assert (orig_port, resp_port) == (41000, 25)
        return orig.startswith(b"GET ") and resp.startswith(b"HTTP/")

    web = Talk().open().c(b"GET / HTTP/1.1\r\n\r\n").s(b"HTTP/1.1 200 OK\r\n\r\n").c(b"GET /EHLO HTTP/1.1\r\n\r\n").close()
    mail = smtp(isn=(9_000_000, 8_000_000))
    both = [*web.segments, *(s.but(ts=s.ts + 60 * S) for s in mail.segments)]
    for cuts in ([], [len(web.segments)], [6], range(100)):
        heard = play(both, cuts=cuts, recognise=mail_only, foreign=is_web).one
        assert (heard.data(0), heard.data(1)) == (said(mail, 0), said(mail, 1))
    asked.clear()
    play(web.segments, recognise=mail_only, foreign=is_web)
    assert asked == []


def test_what_was_held_is_heard_once_recognised() -> None:
    def patient(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        return True if orig.startswith(b"EHLO c\r\n") and len(resp) > 8 else None

    talk = smtp()
    whole(talk, talk.segments, recognise=patient)
    whole(talk, talk.segments, recognise=patient, cuts=range(100))


def test_not_sure_until_the_end() -> None:
    talk = smtp()
    whole(talk, talk.segments, recognise=lambda conn, orig, resp, closing: closing or None, cuts=range(100))


@pytest.mark.parametrize("step", [1000, 1, 3, 40])
def test_not_sure_for_too_long_is_not_wanted(step: int) -> None:
    limits = replace(Limits(), unrecognised_bytes=3000)
    talk = Talk().open().c(b"x" * 20_000).s(b"220 mx\r\n").close()

    def late(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        return True if resp else None

    assert play(talk.segments, cuts=range(0, 100, step), limits=limits, recognise=late).heard == []


# -- properties


@st.composite
def captures(draw: st.DrawFn) -> list[Segment]:
    """Some conversations interleaved, with loss, copies and reordering."""
    talks = []
    for i in range(draw(st.integers(1, 3))):
        isn = (draw(st.sampled_from([0, 1000, 0xFFFFFF00])), draw(st.sampled_from([9, 0xFFFFFFF0])))
        talk = Talk(client=(0x0A000010, 3000 + draw(st.integers(0, 1))), isn=isn, ts=T0 + i * 5 * MS)
        talk.mss = draw(st.sampled_from([3, 7, 40]))
        if draw(st.booleans()):
            talk.open()
        for _ in range(draw(st.integers(0, 8))):
            talk.say(draw(st.integers(0, 1)), draw(st.binary(min_size=1, max_size=60)))
            if draw(st.integers(0, 5)) == 0:
                talk.pause(draw(st.sampled_from([1 * S, 40 * S, 200 * S])))
        end = draw(st.integers(0, 4))
        if end == 1:
            talk.close()
        elif end == 2:
            talk.add(draw(st.integers(0, 1)), RST | ACK)
            talk.say(draw(st.integers(0, 1)), b"more")
        elif end == 3:
            talk.add(0, FIN | ACK).s(b"rest")
        talks.append(talk.segments)
    segments = [s for talk in talks for s in talk]
    if draw(st.booleans()):
        segments.sort(key=lambda s: s.ts)
    for _ in range(draw(st.integers(0, 6))):
        if len(segments) < 2:
            break
        i, j = (draw(st.integers(0, len(segments) - 1)) for _ in range(2))
        what = draw(st.integers(0, 5))
        if what == 0:
            del segments[i]
        elif what == 1:
            segments.insert(j, segments[i])
        elif what == 2:
            segments.insert(j, segments.pop(i))
        elif what == 3:
            how = draw(st.sampled_from([{}, {"ttl": 9}, {"spoilt": True}]))
            segments.insert(j, segments[i].but(data=bytes(reversed(segments[i].data)), **how))
        elif what == 4:
            cut = draw(st.integers(0, len(segments[i].data)))
            segments[i] = segments[i].but(data=segments[i].data[: len(segments[i].data) - cut], cut=cut)
        else:
            segments[i] = segments[i].but(vlan=7)
    return segments


TIGHT = replace(
    Limits(),
    hole_packets=5,
    hole_age=1 * S,
    reset_linger=1 * S,
    pending_bytes=150,
    pending_holes=3,
    unrecognised_bytes=100,
    closed_linger=2 * S,
    half_open_idle=2 * S,
    connection_idle=100 * S,
    connections=4,
    open_connections=2,
    lingering=1,
    pending_total=400,
    history_bytes=40,
    history_total=100,
    unacked_bytes=50,
    window_bytes=5000,
    attempts=2,
)
"""Every bound is hit."""


@st.composite
def garbage(draw: st.DrawFn) -> list[Segment]:
    """Segments that make no sense, but meet each other's sequence numbers now and then."""
    hosts = [(0x0A000001, 25), (0x0A000002, draw(st.sampled_from([25, 4000]))), (0x0A000001, 25)]
    near = st.sampled_from([0, 0, 0, 1, -1, 5, 20, 100, 1 << 20, 1 << 30, 1 << 31])
    flags = st.sampled_from([ACK, ACK, ACK | PSH, ACK | PSH, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK, ACK | URG, 0, 63])
    at, segments, ts = {0: 1000, 1: 0xFFFFFFF0}, [], T0
    for _ in range(draw(st.integers(1, 25))):
        side = draw(st.integers(0, 1))
        src, dst = (hosts[0], hosts[1]) if side == 0 else (hosts[1], hosts[draw(st.sampled_from([0, 0, 0, 2]))])
        data, cut = draw(st.sampled_from([b"", b"A", b"AB", b"ABCDE" * 4])), draw(st.sampled_from([0, 0, 0, 5]))
        seq, ack = (at[side] + draw(near)) & 0xFFFFFFFF, (at[1 - side] + draw(near)) & 0xFFFFFFFF
        kind = {"vlan": draw(st.sampled_from([0, 0, 0, 0, 20])), "ttl": draw(st.sampled_from([64, 64, 64, 1]))}
        segments.append(Segment(src, dst, seq, ack, draw(flags), data, ts, cut, **kind))
        if draw(st.booleans()):
            at[side] = seq + len(data) + cut + bool(segments[-1].flags & (SYN | FIN))
        ts += draw(st.sampled_from([1, MS, MS, -MS, 10 * S, 200 * S]))
    return segments


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(captures(), garbage()), st.sets(st.integers(1, 60)), st.integers(0, 60), st.booleans(), st.sampled_from([0, 1, 2])
)
def test_batches_cannot_be_seen(segments: list[Segment], cuts: set[int], file: int, tight: bool, sure: int) -> None:
    limits = TIGHT if tight else Limits()
    sources = [part for part in (segments[:file], segments[file:]) if part]

    def recognise(conn: Connection, orig: bytes, resp: bytes, closing: bool) -> bool | None:
        return True if sure == 0 or closing or (sure == 1 and len(orig) > 30) else None

    def shown(cuts: Iterable[int]) -> list[object]:
        with patch.object(streams, "_CHECK", 3000 if tight else 16 << 20):
            played = play(sources, limits=limits, recognise=recognise, cuts=cuts)
        for heard in played.heard:
            conn = heard.connection
            assert (conn.orig_bytes, conn.resp_bytes) == (len(heard.data(0)), len(heard.data(1)))
            assert conn.gap_bytes == sum(gap for side in (0, 1) for gap in heard.gaps(side) if gap > 0)
        heard_as = [(h.parts, h.table, str(h.connection)) for h in played.heard]
        return [heard_as, sorted(played.attempts), sorted(map(str, played.anomalies))]

    whole = shown([])
    assert shown(cuts) == whole
    assert shown(range(1000)) == whole


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_tcp_repairs_is_repaired(data: st.DataObject) -> None:
    talk = Talk(mss=data.draw(st.sampled_from([1, 5, 100])), isn=(0xFFFFFFF0, 3)).open()
    for _ in range(data.draw(st.integers(1, 6))):
        talk.say(data.draw(st.integers(0, 1)), data.draw(st.binary(min_size=1, max_size=60)))
    middle = talk.segments[3:]
    copies = data.draw(st.lists(st.sampled_from(middle), max_size=10))
    middle = data.draw(st.permutations(middle + copies))
    heard = play(talk.segments[:3] + middle).one
    assert (heard.data(0), heard.data(1)) == (said(talk, 0), said(talk, 1))
    assert heard.gaps(0) == heard.gaps(1) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.sets(st.integers(1, 60)))
def test_one_segment_less_is_a_gap_and_nothing_else(lost: int, cuts: set[int]) -> None:
    talk = smtp()
    lost = 3 + (lost - 3) % (len(talk.segments) - 6)
    gone = talk.segments[lost]
    heard = play(talk.segments[:lost] + talk.segments[lost + 1 :], cuts=cuts).one
    side = 0 if gone.src == talk.client else 1
    assert heard.gaps(side) == [len(gone.data)]
    assert heard.gaps(1 - side) == []
    assert heard.data(1 - side) == said(talk, 1 - side)
    assert len(heard.data(side)) == len(said(talk, side)) - len(gone.data)


# -- captures with truth

TORTURE = Path(__file__).parents[3] / "shared" / "torture" / "cases"
SMTP_SIZES = {
    "120-tcp-out-of-order": (8769, 272),
    "123-tcp-retransmission-exact": (8769, 272),
    "124-tcp-retransmission-late": (8769, 272),
    "128-tcp-overlap-partial": (8769, 272),
    "132-tcp-seq-wrap": (8769, 272),
    "153-tcp-one-byte": (675, 272),
    "172-tcp-simultaneous-open": (675, 272),
    "173-tcp-overlap-inverse": (675, 272),
}


@pytest.mark.skipif(not TORTURE.is_dir(), reason="the torture captures are not here")
@pytest.mark.parametrize("case", SMTP_SIZES)
def test_torture(case: str) -> None:
    from analyzer.wire import files
    from analyzer.wire.packets import Decoder
    from analyzer.wire.streams import Streams
    from analyzer.wire.types import SourceInfo

    limits = Limits()
    reader, decoder = Streams(limits, lambda *_: True, frozenset({25})), Decoder(limits)
    path = str(TORTURE / f"{case}.pcap")
    deliveries = []
    for frames in files.read(path, limits, SourceInfo(path)):
        deliveries += reader.feed(decoder.decode(frames))
    deliveries += reader.finish()
    assert len({id(d.connection) for d in deliveries}) == 1
    conn = deliveries[0].connection
    assert (conn.orig_bytes, conn.resp_bytes, conn.gap_bytes) == (*SMTP_SIZES[case], 0)
