"""Frames to packets: the innermost TCP segment or UDP datagram, whatever is around it."""

import gzip
import hashlib
import itertools
import json
import struct
from pathlib import Path

import craft
import dpkt
import numpy as np
import pytest
from craft import CLIENT, CLIENT6, MAIL, SECOND, SERVER, SERVER6, Frame, Row, batch, ethernet, gre, ip4, ip6, rows, tcp, udp, vlan
from hypothesis import given, settings
from hypothesis import strategies as st

from analyzer.limits import Limits
from analyzer.wire.anomalies import NAMES, Anomaly
from analyzer.wire.packets import Decoder, checksums_ok
from analyzer.wire.types import Packets

TORTURE = Path(__file__).parents[3] / "shared" / "torture" / "cases"
FRAMED = [Frame(ethernet(ip4(tcp())))]


def decode(frames: list, limits: Limits | None = None) -> tuple[list[Row], dict[str, Anomaly]]:
    """The packets of a capture and its anomalies by name."""
    decoder = Decoder(limits or Limits())
    found = rows(decoder.decode(batch(frames)))
    odd = {anomaly.name: anomaly for anomaly in [*decoder.anomalies, *decoder.finish()]}
    assert set(odd) <= set(NAMES)
    return found, odd


def only(frames: list) -> Row:
    """The one packet of a capture without anomalies."""
    found, odd = decode(frames)
    assert not odd
    assert len(found) == 1
    return found[0]


def mailed(frame: bytes, linktype: int = craft.ETHERNET) -> bool:
    """Whether the frame carries exactly the MAIL command from client to server."""
    row = only([Frame(frame, linktype=linktype)])
    ends = (CLIENT6, SERVER6) if ":" in row.src else (CLIENT, SERVER)
    return (row.src, row.dst, row.src_port, row.dst_port, row.payload) == (*ends, 41000, 25, MAIL)


# what a packet holds


def test_every_column_of_a_segment() -> None:
    row = only([Frame(vlan(ip4(tcp(seq=0xFFFFFFF0), ttl=7), [(0x8100, 0x2064)]), ts=5 * SECOND)])
    assert row == Row(1, 6, CLIENT, 41000, SERVER, 25, MAIL, len(MAIL), 0xFFFFFFF0, 7, 0x18, 0x064, 7)


def test_a_datagram_has_no_sequence_numbers() -> None:
    row = only([ethernet(ip6(udp(b"query", 53000, 53), 17))])
    assert row == Row(1, 17, CLIENT6, 53000, SERVER6, 53, b"query", 5, 0, 0, 0, 0, 64)


def test_frame_numbers_and_times_are_those_of_the_capture() -> None:
    frames = [
        Frame(ethernet(b"\0" * 28, 0x0806), ts=1),
        Frame(ethernet(ip4(udp(b"a"), 17)), ts=2),
        Frame(ethernet(ip4(tcp())), ts=3),
    ]
    packets = Decoder(Limits()).decode(batch(frames, first=100))
    assert packets.frame.tolist() == [101, 102]
    assert packets.ts.tolist() == [2, 3]
    assert packets.protocol.tolist() == [17, 6]


def test_an_empty_batch() -> None:
    assert decode([]) == ([], {})


def test_a_batch_without_mail_or_dns() -> None:
    assert decode([ethernet(b"\0" * 28, 0x0806), ethernet(ip4(b"\x08\0\0\0", 1))]) == ([], {})


# lengths


def test_padding_and_trailer_are_no_payload() -> None:
    assert only([ethernet(ip4(tcp(b"QUIT\r\n"))) + b"RSET\r\n"]).payload == b"QUIT\r\n"
    assert only([ethernet(ip4(udp(b"dns") + b"extra", 17))]).payload == b"dns"


def test_ip_length_zero_means_the_frame_s_own() -> None:
    assert mailed(ethernet(ip4(tcp(), total=0)))
    assert mailed(ethernet(ip6(tcp(), length=0)))


def test_a_snapped_segment_keeps_the_length_it_had() -> None:
    whole = ethernet(ip4(tcp()))
    row = only([Frame(whole[:-10], wire_length=len(whole))])
    assert (row.payload, row.wire_length) == (MAIL[:-10], len(MAIL))


def test_a_segment_snapped_in_its_options_has_no_octets_left() -> None:
    whole = ethernet(ip4(tcp(options=b"\1" * 12)))
    row = only([Frame(whole[: 14 + 20 + 20 + 4], wire_length=len(whole))])
    assert (row.payload, row.wire_length) == (b"", len(MAIL))


def test_a_frame_snapped_in_its_headers_is_counted() -> None:
    whole = ethernet(ip4(tcp()))
    found, odd = decode([Frame(whole[:40], wire_length=len(whole)), *FRAMED])
    assert [row.frame for row in found] == [2]
    assert (odd["headers_cut"].detail, odd["headers_cut"].frame) == ("1 frame, the first here", 1)


def test_an_ip_length_beyond_the_frame_is_what_was_not_captured() -> None:
    found, odd = decode([ethernet(ip4(tcp(), total=40 + len(MAIL) + 100))])
    assert (found[0].payload, found[0].wire_length) == (MAIL, len(MAIL) + 100)
    assert list(odd) == ["ip_length_beyond_frame"]


# malformed headers are counted and skipped


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (ethernet(ip4(tcp(offset=0))), "malformed_tcp"),
        (ethernet(ip4(tcp(offset=4))), "malformed_tcp"),
        (ethernet(ip4(tcp(b"", offset=15))), "malformed_tcp"),
        (ethernet(ip4(b"\0" * 8)), "malformed_tcp"),
        (ethernet(ip4(udp(b"x" * 20, length=0), 17)), "malformed_udp"),
        (ethernet(ip4(udp(b"x" * 20, length=7), 17)), "malformed_udp"),
        (ethernet(ip4(udp(b"x" * 20, length=60000), 17)), "malformed_udp"),
        (ethernet(ip4(tcp(), total=10)), "malformed_ip"),
        (ethernet(b"\x44" + ip4(tcp())[1:]), "malformed_ip"),
        (ethernet(b"\x75" + ip4(tcp())[1:], 0x0800), "malformed_ip"),
        (ethernet(ip4(b"\x40\x02\x08\x00" + ip4(tcp()), 47)), "malformed_tunnel"),
        (b"\2\0\0", "malformed_frame"),
    ],
)
def test_a_header_that_cannot_be(frame: bytes, name: str) -> None:
    found, odd = decode([frame, frame, *FRAMED])
    assert [row.frame for row in found] == [3]
    assert list(odd) == [name]
    assert (odd[name].detail, odd[name].frame) == ("2 frames, the first here", 1)


def test_unknown_link_types_are_counted_by_type() -> None:
    found, odd = decode([Frame(b"x" * 60, linktype=147), *FRAMED, Frame(b"x" * 60, linktype=147)])
    assert [row.frame for row in found] == [2]
    assert odd["link_type_unsupported"].detail == "link type 147: 2 frames, the first here"


# link layers


def _dot11(
    packet: bytes, *, to_ds: bool = True, qos: bool = False, high_throughput: bool = False, protected: bool = False
) -> bytes:
    control = bytes(
        [0x88 if qos else 0x08, (0x01 if to_ds else 0x03) | (0x80 if high_throughput else 0) | (0x40 if protected else 0)]
    )
    addresses = b"\2" * (18 if to_ds else 24)
    head = (
        control
        + b"\0\0"
        + addresses[:18]
        + b"\0\0"
        + addresses[18:]
        + (b"\0\0" if qos else b"")
        + (b"\0" * 4 if high_throughput else b"")
    )
    return head + b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", craft.kind(packet)) + packet


def _radiotap(frame: bytes, flags: int = 0) -> bytes:
    return struct.pack("<BBHIQBB", 0, 0, 18, 0b11, 1234, flags, 0) + frame


def _nflog(packet: bytes) -> bytes:
    mark = struct.pack("<HH", 9, 3) + b"mark\0\0\0\0"
    return b"\x02\0\0\0" + mark + struct.pack("<HH", 4 + len(packet), 9) + packet


PACKET, PACKET6 = ip4(tcp()), ip6(tcp())
LLC = b"\xaa\xaa\x03\0\0\0\x08\0" + PACKET
LINKS = {
    "ethernet": (1, ethernet(PACKET)),
    "ethernet, IPv6": (1, ethernet(PACKET6)),
    "802.1Q": (1, vlan(PACKET, [(0x8100, 5)])),
    "802.1ad": (1, vlan(PACKET6, [(0x88A8, 5), (0x8100, 6)])),
    "three tags, the old number": (1, vlan(PACKET, [(0x9100, 1), (0x8100, 2), (0x8100, 3)])),
    "802.2 SNAP": (1, ethernet(LLC, len(LLC))),
    "802.2 SNAP behind a tag": (1, ethernet(struct.pack("!HH", 5, len(LLC)) + LLC, 0x8100)),
    "802.2 with the SAP of IP": (1, ethernet(b"\x06\x06\x03" + PACKET, 3 + len(PACKET))),
    "provider backbone bridge": (1, ethernet(b"\0\0\0\1" + ethernet(PACKET), 0x88E7)),
    "E-tag": (1, ethernet(b"\0" * 6 + b"\x08\0" + PACKET, 0x893F)),
    "Cisco MetaData": (1, ethernet(b"\x01\x01\0\x01\0\x07\x08\0" + PACKET, 0x8909)),
    "VN-tag": (1, ethernet(b"\0" * 4 + b"\x08\0" + PACKET, 0x8926)),
    "MPLS": (1, ethernet(b"\0\0\x11\x40" + PACKET, 0x8847)),
    "MPLS, two labels, IPv6": (1, ethernet(b"\0\0\x10\x40\0\0\x21\x40" + PACKET6, 0x8848)),
    "Ethernet over MPLS": (1, ethernet(b"\0\0\x11\x40\0\0\0\0" + ethernet(PACKET), 0x8847)),
    "Ethernet over MPLS without control word": (1, ethernet(b"\0\0\x11\x40" + ethernet(PACKET), 0x8847)),
    "PPPoE": (1, ethernet(b"\x11\0\0\1" + struct.pack("!H", 2 + len(PACKET)) + b"\0\x21" + PACKET, 0x8864)),
    "Linux cooked": (113, b"\0\0\0\1\0\6" + b"\2" * 8 + b"\x08\0" + PACKET),
    "Linux cooked, tagged": (113, b"\0\0\0\1\0\6" + b"\2" * 8 + b"\x81\0\0\5\x08\0" + PACKET),
    "Linux cooked 2": (276, b"\x86\xdd\0\0\0\0\0\3\0\1\0\6" + b"\2" * 8 + PACKET6),
    "raw (12)": (12, PACKET),
    "raw (14)": (14, PACKET6),
    "raw (101)": (101, PACKET),
    "raw IPv4": (228, PACKET),
    "raw IPv6": (229, PACKET6),
    "BSD loopback, little-endian": (0, struct.pack("<I", 2) + PACKET),
    "BSD loopback, big-endian, macOS IPv6": (0, struct.pack(">I", 30) + PACKET6),
    "OpenBSD loopback": (108, struct.pack(">I", 24) + PACKET6),
    "PPP": (9, b"\0\x21" + PACKET),
    "PPP, one-octet protocol": (9, b"\x21" + PACKET),
    "PPP, HDLC framing": (50, b"\xff\x03\0\x57" + PACKET6),
    "Cisco HDLC": (104, b"\x0f\0\x08\0" + PACKET),
    "Cisco HDLC as PPP": (50, b"\x0f\0\x08\0" + PACKET),
    "PPP with direction": (204, b"\1\xff\x03\0\x21" + PACKET),
    "pppd": (166, b"\1\x03\0\x21" + PACKET),
    "802.11": (105, _dot11(PACKET)),
    "802.11 QoS, IPv6": (105, _dot11(PACKET6, qos=True)),
    "802.11 QoS, high throughput": (105, _dot11(PACKET, qos=True, high_throughput=True)),
    "802.11 bridge, four addresses": (105, _dot11(PACKET, to_ds=False)),
    "radiotap": (127, _radiotap(_dot11(PACKET))),
    "radiotap, padded header": (127, _radiotap(_dot11(PACKET, qos=True)[:26] + b"\0\0" + _dot11(PACKET, qos=True)[26:], 0x20)),
    "Prism": (119, struct.pack("<II", 0x44, 144) + b"\0" * 136 + _dot11(PACKET)),
    "AVS": (163, struct.pack(">II", 0x80211001, 64) + b"\0" * 56 + _dot11(PACKET)),
    "PPI": (192, struct.pack("<BBHI", 0, 0, 8, 105) + _dot11(PACKET)),
    "pflog": (117, b"\x3d" + b"\0" * 63 + PACKET),
    "nflog": (239, _nflog(PACKET)),
    "IP over IEEE 1394": (138, b"\0" * 16 + b"\x08\0" + PACKET),
    "MPLS link type": (219, b"\0\0\x11\x40" + PACKET),
}


@pytest.mark.parametrize("name", LINKS)
def test_link_layer(name: str) -> None:
    linktype, frame = LINKS[name]
    assert mailed(frame, linktype)


def test_all_link_layers_in_one_batch_stay_in_capture_order() -> None:
    found, odd = decode([Frame(frame, linktype=linktype) for linktype, frame in LINKS.values()])
    assert [row.frame for row in found] == list(range(1, len(LINKS) + 1))
    assert {row.payload for row in found} == {MAIL}
    assert not odd


def test_the_outermost_tag_is_the_vlan() -> None:
    assert only([vlan(PACKET, [(0x88A8, 10), (0x8100, 20)])]).vlan == 10
    assert only([vlan(PACKET, [(0x8100, 0), (0x8100, 20)])]).vlan == 20, "0 is a priority, not a VLAN"
    inner = vlan(PACKET, [(0x8100, 20)])
    assert only([vlan(ip4(gre(inner, ethertype=0x6558), 47), [(0x8100, 10)])]).vlan == 10


def test_encrypted_wireless_frames_are_counted() -> None:
    found, odd = decode([Frame(_dot11(PACKET, protected=True), linktype=105)])
    assert not found
    assert list(odd) == ["wireless_opaque"]


# tunnels


def _outer(payload: bytes, port: int, src_port: int = 50505) -> bytes:
    return ethernet(ip4(udp(payload, src_port, port), 17, src="203.0.113.1", dst="203.0.113.2"))


def _over_ip(payload: bytes, protocol: int) -> bytes:
    return ethernet(ip4(payload, protocol, src="203.0.113.1", dst="203.0.113.2"))


VXLAN = struct.pack("!II", 0x08000000, 42 << 8) + ethernet(PACKET)
GENEVE = struct.pack("!BBHI", 2, 0, 0x6558, 7 << 8) + b"\1\2\x80\1OPT!" + ethernet(PACKET)
GTP_EXTENDED = struct.pack("!BBHI", 0x34, 0xFF, len(PACKET) + 8, 1) + b"\0\0\0\x85\1\x10\x09\0" + PACKET
L2TP = struct.pack("!HHHHHHH", 0x4A02, 18 + len(PACKET), 1, 2, 0, 0, 0)  # length, sequence, offset
TEREDO = b"\0\1\0\0" + b"\0" * 9 + b"\0\0\1\2\3\4\5\6" + PACKET6
TUNNELS = {
    "IP in IP": _over_ip(PACKET, 4),
    "6in4": _over_ip(PACKET6, 41),
    "4in6": ethernet(ip6(PACKET, 4, src="2001:db8:ff::1", dst="2001:db8:ff::2")),
    "GRE": _over_ip(gre(PACKET), 47),
    "GRE, checksum, key, sequence": _over_ip(gre(PACKET6, check=True, key=7, seq=1), 47),
    "GRE, Ethernet": _over_ip(gre(ethernet(PACKET), ethertype=0x6558), 47),
    "GRE, MPLS": _over_ip(gre(b"\0\0\x11\x40" + PACKET, ethertype=0x8847), 47),
    "PPTP": _over_ip(struct.pack("!HHHHII", 0x3081, 0x880B, 0, 1, 1, 1) + b"\xff\x03\0\x21" + PACKET, 47),
    "ERSPAN I": _over_ip(gre(ethernet(PACKET), ethertype=0x88BE), 47),
    "ERSPAN II": _over_ip(gre(b"\x10\x0a\0\1\0\0\0\0" + ethernet(PACKET), seq=1, ethertype=0x88BE), 47),
    "ERSPAN III": _over_ip(gre(b"\x20\x0a" + b"\0" * 10 + ethernet(PACKET), seq=1, ethertype=0x22EB), 47),
    "ERSPAN III with platform header": _over_ip(
        gre(b"\x20\x0a" + b"\0" * 9 + b"\1" + b"\0" * 8 + ethernet(PACKET), seq=1, ethertype=0x22EB), 47
    ),
    "Ethernet in IP": _over_ip(b"\x30\0" + ethernet(PACKET), 97),
    "MPLS in IP": _over_ip(b"\0\0\x11\x40" + PACKET, 137),
    "authentication header": _over_ip(b"\x04\x04" + b"\0" * 22 + PACKET, 51),
    "VXLAN": _outer(VXLAN, 4789),
    "VXLAN, port of old Linux": _outer(VXLAN, 8472),
    "VXLAN, group policy": _outer(struct.pack("!II", 0x88000007, 42 << 8) + ethernet(PACKET), 4789),
    "VXLAN-GPE": _outer(struct.pack("!II", 0x0C000001, 42 << 8) + PACKET, 4790),
    "GENEVE": _outer(GENEVE, 6081),
    "GENEVE, from its port": _outer(GENEVE, 40000, 6081),
    "GTP-U": _outer(struct.pack("!BBHI", 0x30, 0xFF, len(PACKET), 1) + PACKET, 2152),
    "GTP-U, extension header": _outer(GTP_EXTENDED, 2152),
    "L2TP": _outer(struct.pack("!HHH", 0x0002, 1, 2) + b"\xff\x03\0\x21" + PACKET, 1701),
    "L2TP, all fields": _outer(L2TP + b"\0\x21" + PACKET + b"\0\0", 1701),
    "Teredo": _outer(PACKET6, 3544),
    "Teredo, authenticated, origin": _outer(TEREDO, 3544),
    "LISP": _outer(b"\x80" + b"\0" * 7 + PACKET, 4341),
    "MPLS in UDP": _outer(b"\0\0\x11\x40" + PACKET, 6635),
    "CAPWAP, 802.3": _outer(b"\0\x10\0\0" + b"\0" * 4 + ethernet(PACKET), 5247),
    "CAPWAP, 802.11, radio's address": _outer(b"\0\x20\x03\x10" + b"\0" * 4 + b"\6" + b"\2" * 7 + _dot11(PACKET), 5247),
    "MACsec, not encrypted": ethernet(b"\0\0" + b"\0\0\0\1" + b"\x08\0" + PACKET + b"\5" * 16, 0x88E5),
    "MACsec, not encrypted, channel": ethernet(b"\x20\0" + b"\0\0\0\1" + b"\2" * 8 + b"\x08\0" + PACKET + b"\5" * 16, 0x88E5),
    "TZSP": _outer(b"\1\0\0\1\x0a\1\xaa\0\1" + ethernet(PACKET), 37008),
    "NSH": ethernet(b"\0\2\1\1\0\0\1\xff" + PACKET, 0x894F),
    "VXLAN in GRE in 4in6 in 802.1ad": vlan(ip6(_over_ip(gre(_outer(VXLAN, 4789)[14:]), 47)[14:], 4), [(0x88A8, 1), (0x8100, 2)]),
}


@pytest.mark.parametrize("name", TUNNELS)
def test_tunnel(name: str) -> None:
    assert mailed(TUNNELS[name])


SEALED = {
    "IPsec ESP": [
        _over_ip(b"\0\0\x12\x34" + b"\0\0\0\1" + b"\xa5" * 64, 50),
        ethernet(ip6(b"\0\0\x12\x34" + b"\0\0\0\1" + b"\xa5" * 64, 50)),
        _outer(b"\0\0\x12\x34" + b"\0\0\0\1" + b"\xa5" * 64, 4500),
    ],
    "MACsec": [ethernet(b"\x0c\0" + b"\0\0\0\1" + b"\xa5" * 64, 0x88E5)],
    "WireGuard": [_outer(b"\4\0\0\0" + b"\x12\0\0\0" + b"\1" + b"\0" * 7 + b"\xa5" * 32, 51820)],
    "CAPWAP with DTLS": [_outer(b"\1\0\0\0" + b"\x17\xfe\xff" + b"\xa5" * 64, 5247)],
}


@pytest.mark.parametrize("name", SEALED)
def test_what_is_encrypted_below_tcp_is_counted(name: str) -> None:
    _, odd = decode(SEALED[name])
    many = "1 frame" if len(SEALED[name]) == 1 else f"{len(SEALED[name])} frames"
    assert {word: row.detail for word, row in odd.items()} == {"encrypted_below": f"{name}: {many}, the first here"}


def test_keys_are_agreed_and_kept_alive_in_the_clear() -> None:
    ike, alive = b"\0\0\0\0" + b"\x29" * 60, b"\xff"
    assert not decode([_outer(ike, 4500), _outer(alive, 4500), _outer(b"\1\0\0\0" + b"\xa5" * 144, 51820)])[1]


@pytest.mark.parametrize("port", [4789, 8472, 4790, 6081, 2152, 1701, 3544, 4341, 6635, 37008, 4500, 5247, 51820])
def test_dns_from_a_tunnel_s_port_stays_dns(port: int) -> None:
    answer = b"\x08\0\x81\x80\0\1\0\1\0\0\0\0\7example\3org\0\0\x0f\0\1"
    assert only([ethernet(ip4(udp(answer, 53, port), 17))]).payload == answer
    assert only([ethernet(ip4(udp(answer, port, 5353), 17))]).payload == answer, "recognised by its header, not the port alone"


def test_a_vxlan_header_to_another_port_is_payload() -> None:
    assert only([_outer(VXLAN, 4000)]).payload == VXLAN


def test_encapsulations_are_peeled_to_the_limit_and_no_further() -> None:
    limits = Limits(tunnel_depth=3)
    towers = [ethernet(tower) for tower in itertools.accumulate(range(4), lambda inner, _: ip4(inner, 4), initial=PACKET)]
    found, odd = decode([*towers, *FRAMED], limits)
    assert [row.frame for row in found] == [1, 2, 3, 4, 6]
    assert (odd["tunnel_too_deep"].detail, odd["tunnel_too_deep"].frame) == ("1 frame, the first here", 5)


def test_tags_without_end_cost_no_more_than_the_limit() -> None:
    found, odd = decode([ethernet(b"\0\1\x81\0" * 100_000, 0x8100)])
    assert not found
    assert list(odd) == ["tunnel_too_deep"]


# IPv6 extension headers


def test_extension_headers_are_passed() -> None:
    hop = b"\x2b\0" + b"\0" * 6
    routing = b"\x3c\1" + b"\0" * 14
    options = b"\x33\0" + b"\0" * 6
    authentication = b"\x06\x04" + b"\0" * 22
    assert mailed(ethernet(ip6(hop + routing + options + authentication + tcp(), 0)))


def test_no_next_header_is_no_packet() -> None:
    assert decode([ethernet(ip6(b"", 59))]) == ([], {})


# fragments

LONG = bytes(range(256)) * 10
SEGMENT = tcp(LONG)
WHOLE = ip4(SEGMENT)


@pytest.mark.parametrize("size", [8, 16, 488, 1480])
@pytest.mark.parametrize("order", ["as sent", "reversed", "everything twice", "the whole set twice"])
@pytest.mark.parametrize("version", [4, 6])
def test_fragments_make_one_segment(size: int, order: str, version: int) -> None:
    parts = craft.pieces4(WHOLE, size) if version == 4 else craft.pieces6(SEGMENT, size)
    if order == "reversed":
        parts.reverse()
    elif order == "everything twice":
        parts = [part for part in parts for _ in range(2)]
    completing = len(parts)
    if order == "everything twice":
        completing -= 1
    elif order == "the whole set twice":
        parts = parts * 2
    row = only([Frame(ethernet(part), ts=i) for i, part in enumerate(parts)])
    assert (row.frame, row.payload, row.seq) == (completing, LONG, 1000)
    assert (row.src, row.dst) == ((CLIENT, SERVER) if version == 4 else (CLIENT6, SERVER6))


def test_fragments_before_between_and_after_whole_packets() -> None:
    first, second, *rest = craft.pieces4(WHOLE, 800)
    other = ip4(udp(b"dns"), 17)
    found, odd = decode([ethernet(part) for part in (first, other, second, PACKET, *rest, other)])
    assert [(row.frame, row.payload) for row in found] == [(2, b"dns"), (4, MAIL), (6, LONG), (7, b"dns")]
    assert not odd


def test_fragments_come_together_across_batches() -> None:
    decoder = Decoder(Limits())
    first, last = craft.pieces4(WHOLE, 1480)
    assert rows(decoder.decode(batch([ethernet(first)], first=1))) == []
    (row,) = rows(decoder.decode(batch([ethernet(last)], first=2)))
    assert (row.frame, row.payload) == (2, LONG)


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    assert mailed(ethernet(craft.pieces6(tcp(), 65528)[0]))


def test_fragments_of_a_tunnel_and_in_a_tunnel() -> None:
    tunnel = ip4(gre(ip4(tcp(LONG))), 47, src="203.0.113.1", dst="203.0.113.2")
    assert only([ethernet(part) for part in craft.pieces4(tunnel, 1000)]).payload == LONG
    inner = [ip4(gre(part), 47, src="203.0.113.1", dst="203.0.113.2") for part in craft.pieces4(WHOLE, 1000)]
    assert only([ethernet(part) for part in inner]).payload == LONG
    both = [piece for n, packet in enumerate(inner) for piece in craft.pieces4(packet, 496, ident=n)]
    assert only([ethernet(part) for part in both]).payload == LONG


def test_the_same_identification_in_two_vlans_is_two_packets() -> None:
    one, two = (craft.pieces4(ip4(tcp(bytes([n]) * 1000)), 800) for n in (1, 2))
    frames = [vlan(part, [(0x8100, tag)]) for parts in zip(one, two, strict=True) for tag, part in enumerate(parts, 10)]
    found, odd = decode(frames)
    assert [(row.vlan, row.payload) for row in found] == [(10, b"\1" * 1000), (11, b"\2" * 1000)]
    assert not odd


def _piece(start: int, octets: bytes, more: bool) -> bytes:
    return ethernet(ip4(octets, ident=9, fragment=(0x2000 if more else 0) | start // 8))


def test_overlapping_fragments_that_agree_are_harmless() -> None:
    frames = [_piece(start, SEGMENT[start:stop], stop < len(SEGMENT)) for start, stop in ((0, 496), (400, 1200), (800, 2600))]
    assert only(frames).payload == LONG


def test_of_conflicting_fragments_the_first_copy_wins() -> None:
    good = [_piece(start, SEGMENT[start : start + 800], start + 800 < len(SEGMENT)) for start in range(0, len(SEGMENT), 800)]
    found, odd = decode([good[1], _piece(800, b"evil" * 200, True), good[0], *good[2:]])
    assert [row.payload for row in found] == [LONG]
    assert odd["fragments_conflict"].frame == 2


def test_a_second_end_is_a_conflict() -> None:
    head, tail = SEGMENT[:800], SEGMENT[800:1000]
    found, odd = decode([_piece(800, tail, False), _piece(1600, b"evil", False), _piece(0, head, True)])
    assert [row.payload for row in found] == [LONG[:980]]
    assert odd["fragments_conflict"].frame == 2


def test_fragments_beyond_the_largest_packet_are_counted() -> None:
    found, odd = decode([_piece(65528, b"x" * 100, False), _piece(8, b"", True)])
    assert not found
    assert odd["fragments_malformed"].detail == "2 fragments, the first here"


def test_a_snapped_fragment_ends_what_was_captured() -> None:
    first, last = (ethernet(part) for part in craft.pieces4(WHOLE, 1480))
    row = only([Frame(first[:200], wire_length=len(first)), Frame(last[:200], wire_length=len(last))])
    assert (row.payload, row.wire_length) == (LONG[: 200 - 54], len(LONG))


def test_a_missing_fragment_is_counted_at_the_end() -> None:
    first, _ = craft.pieces4(WHOLE, 1480)
    found, odd = decode([ethernet(first), *FRAMED])
    assert [row.frame for row in found] == [2]
    assert (odd["fragments_incomplete"].detail, odd["fragments_incomplete"].frame) == ("1 packet, the first here", 1)


def test_fragments_too_far_apart_are_not_joined() -> None:
    first, last = craft.pieces4(WHOLE, 1480)
    late = Limits().fragment_age + 1
    found, odd = decode([Frame(ethernet(first)), Frame(ethernet(last), ts=late)])
    assert not found
    assert odd["fragments_incomplete"].detail == "2 packets, the first here"


def test_an_identification_used_again_is_another_packet() -> None:
    frames = [Frame(ethernet(part), ts=n) for n in (1, 2) for part in craft.pieces4(ip4(tcp(bytes([n]) * 1000, seq=n)), 800)]
    found, odd = decode(frames)
    assert [row.payload for row in found] == [b"\1" * 1000, b"\2" * 1000]
    assert not odd


@pytest.mark.parametrize("limits", [Limits(fragment_packets=10), Limits(fragment_bytes=20_000)])
def test_incomplete_packets_are_held_within_bounds(limits: Limits) -> None:
    flood = [ethernet(craft.pieces4(WHOLE, 1480, ident=n)[0]) for n in range(100)]
    last = [ethernet(part) for part in craft.pieces4(WHOLE, 1480, ident=1000)]
    found, odd = decode([*flood, *last], limits)
    assert [row.payload for row in found] == [LONG]
    assert int(odd["fragments_dropped"].detail.split()[0]) >= 85


# properties

OPTIONS = st.integers(0, 5).map(lambda words: b"\1" * 4 * words)
TEXT = st.binary(max_size=60)


@st.composite
def packets(draw: st.DrawFn) -> tuple[bytes, int]:
    """An IP packet with TCP or UDP in it, up to three deep, and the number of IP headers."""
    if draw(st.booleans()):
        inner, protocol = tcp(draw(TEXT), draw(st.integers(0, 2**32 - 1)), options=draw(OPTIONS)), 6
    else:
        inner, protocol = udp(draw(TEXT), draw(st.integers(1, 999)), draw(st.integers(1, 999))), 17
    for level in range(draw(st.integers(1, 3))):
        if level:
            protocol = 41 if inner[0] >> 4 == 6 else 4
            if draw(st.booleans()):
                word = st.none() | st.integers(0, 2**32 - 1)
                inner, protocol = gre(inner, key=draw(word), seq=draw(word), check=draw(st.booleans())), 47
        if draw(st.booleans()):
            inner = ip4(
                inner, protocol, options=draw(OPTIONS), ttl=draw(st.integers(0, 255)), fragment=draw(st.sampled_from((0, 0x4000)))
            )
        else:
            for extension in draw(st.lists(st.sampled_from((0, 60)), max_size=2, unique=True)):
                words = draw(st.integers(0, 2))
                inner, protocol = bytes([protocol, words]) + b"\1\4\0\0\0\0" + b"\0" * 8 * words + inner, extension
            inner = ip6(inner, protocol)
    return inner


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """A frame that dpkt can read too."""
    packet = draw(packets())
    trailer = draw(st.sampled_from((b"", b"\0" * 6, b"QUIT\r\n")))
    link = draw(st.sampled_from(("ethernet", "vlan", "qinq", "raw", "sll", "sll2", "null")))
    tag = draw(st.integers(1, 4094))
    ethertype = struct.pack("!H", craft.kind(packet))
    if link == "raw":
        return Frame(packet + trailer, linktype=craft.RAW)
    if link == "null":
        return Frame(struct.pack("<I", 30 if packet[0] >> 4 == 6 else 2) + packet + trailer, linktype=craft.NULL)
    if link == "sll":
        return Frame(b"\0\0\0\1\0\6" + b"\2" * 8 + ethertype + packet + trailer, linktype=craft.SLL)
    if link == "sll2":
        return Frame(ethertype + b"\0\0\0\0\0\3\0\1\0\6" + b"\2" * 8 + packet + trailer, linktype=craft.SLL2)
    tags = {"ethernet": [], "vlan": [(0x8100, tag)], "qinq": [(0x88A8, tag), (0x8100, 7)]}[link]
    return Frame(vlan(packet, tags) + trailer)


def _by_dpkt(number: int, frame: Frame) -> Row:
    """The innermost packet of a frame, read the slow way."""
    if frame.linktype == craft.RAW:
        layer = (dpkt.ip6.IP6 if frame.octets[0] >> 4 == 6 else dpkt.ip.IP)(frame.octets)
    else:
        reader = {
            craft.ETHERNET: dpkt.ethernet.Ethernet,
            craft.SLL: dpkt.sll.SLL,
            craft.SLL2: dpkt.sll2.SLL2,
            craft.NULL: dpkt.loopback.Loopback,
        }
        layer = reader[frame.linktype](frame.octets)
    tags = getattr(layer, "vlan_tags", [])
    while not isinstance(layer, dpkt.tcp.TCP | dpkt.udp.UDP):
        if isinstance(layer, dpkt.ip.IP | dpkt.ip6.IP6):
            ip = layer
        layer = layer.data
    is_tcp = isinstance(layer, dpkt.tcp.TCP)
    payload = bytes(layer.data) if is_tcp else bytes(layer.data)[: layer.ulen - 8]
    return Row(
        frame=number,
        protocol=6 if is_tcp else 17,
        src=str(craft.ip_address(ip.src)),
        src_port=layer.sport,
        dst=str(craft.ip_address(ip.dst)),
        dst_port=layer.dport,
        payload=payload,
        wire_length=len(payload),
        seq=layer.seq if is_tcp else 0,
        ack=layer.ack if is_tcp else 0,
        flags=layer.flags & 0x3F if is_tcp else 0,
        vlan=tags[0].id if tags else 0,
        ttl=ip.ttl if isinstance(ip, dpkt.ip.IP) else ip.hlim,
    )


@given(st.lists(frames(), max_size=8))
@settings(max_examples=300, deadline=None)
def test_the_columns_are_what_dpkt_reads_one_by_one(capture: list[Frame]) -> None:
    found, odd = decode(capture)
    assert found == [_by_dpkt(number, frame) for number, frame in enumerate(capture, 1)]
    assert not odd


KNOWN = [Frame(frame, linktype=linktype) for linktype, frame in LINKS.values()]
KNOWN += [Frame(frame) for frame in TUNNELS.values()]
KNOWN += [
    Frame(ethernet(part))
    for size in (8, 800, 1480)
    for part in (*craft.pieces4(ip4(tcp(LONG[:1600])), size), *craft.pieces6(SEGMENT, size))
]


@st.composite
def spoilt(draw: st.DrawFn) -> Frame:
    """A frame of any kind, changed in a few octets, cut, or under a wrong link type."""
    frame = draw(st.sampled_from(KNOWN))
    octets = bytearray(frame.octets)
    for at, value in draw(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=3)):
        octets[at % len(octets)] = value
    keep = draw(st.just(len(octets)) | st.integers(0, len(octets)))
    linktype = draw(st.just(frame.linktype) | st.sampled_from(sorted({linktype for linktype, _ in LINKS.values()})))
    return Frame(
        bytes(octets[:keep]), draw(st.integers(0, 90 * SECOND)), linktype, draw(st.sampled_from((0, keep, len(octets), 70_000)))
    )


SMALL = Limits(tunnel_depth=4, fragment_packets=3, fragment_bytes=8_000)


@given(st.lists(spoilt(), max_size=30), st.lists(st.integers(1, 30), max_size=5), st.sampled_from((Limits(), SMALL)))
@settings(max_examples=300, deadline=None)
def test_spoilt_frames_never_raise_and_any_cut_into_batches_gives_the_same(
    capture: list[Frame], cuts: list[int], limits: Limits
) -> None:
    whole, cut = Decoder(limits), Decoder(limits)
    expected = rows(whole.decode(batch(capture)))
    found, bounds = [], [0, *sorted({at for at in cuts if at < len(capture)}), len(capture)]
    for start, stop in itertools.pairwise(bounds):
        found += rows(cut.decode(batch(capture[start:stop], first=start + 1)))
    assert found == expected
    assert [row.frame for row in found] == sorted(row.frame for row in found)
    assert all(len(row.payload) <= row.wire_length for row in found)
    assert (cut.anomalies, cut.finish()) == (whole.anomalies, whole.finish())


@given(frames(), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_a_snapped_frame_gives_the_beginning_of_its_packet_or_nothing(frame: Frame, snap: int) -> None:
    expected = only([frame])
    found, odd = decode([frame._replace(octets=frame.octets[:snap], wire_length=len(frame.octets))])
    if found:
        assert found[0]._replace(payload=b"") == expected._replace(payload=b"")
        assert expected.payload.startswith(found[0].payload)
    else:
        assert list(odd) == ["headers_cut"]


# checksums


def _checked(frames: list) -> list[bool]:
    made: Packets = Decoder(Limits()).decode(batch(frames))
    return checksums_ok(made, np.arange(len(made))).tolist()


def test_checksums_tell_right_from_wrong() -> None:
    right, right6 = craft.sealed(tcp()), craft.sealed(tcp(b"odd"), CLIENT6, SERVER6)
    wrong = right[:-1] + b"!"
    frames = [ip4(right), ip4(wrong), ip6(right6), ip6(right6[:-1] + b"!"), ip4(right, options=b"\1" * 8)]
    assert _checked([ethernet(frame) + b"trailer" for frame in frames]) == [True, False, True, False, True]


def test_a_checksum_holds_for_a_packet_made_of_fragments() -> None:
    parts = craft.pieces4(ip4(craft.sealed(tcp(LONG))), 800)
    assert _checked([ethernet(part) for part in parts]) == [True]


def test_a_checksum_that_cannot_be_told_is_not_called_wrong() -> None:
    whole = ethernet(ip4(tcp()))
    assert _checked([Frame(whole[:-1], wire_length=len(whole)), ethernet(ip4(udp(b"x"), 17))]) == [True, True]


def test_only_the_rows_asked_for_are_looked_at() -> None:
    made = Decoder(Limits()).decode(batch([ethernet(ip4(tcp())), ethernet(ip4(craft.sealed(tcp())))]))
    assert checksums_ok(made, np.array([1])).tolist() == [True]
    assert checksums_ok(made, np.array([], np.int64)).tolist() == []


# the torture captures of link layers, tunnels and fragments


def _case_frames(path: Path) -> list[Frame]:
    octets = path.read_bytes()
    if path.suffix == ".gz":
        octets = gzip.decompress(octets)
    linktype, at, made = struct.unpack_from("<I", octets, 20)[0], 24, []
    while at < len(octets):
        seconds, micros, length, wire_length = struct.unpack_from("<IIII", octets, at)
        made.append(Frame(octets[at + 16 : at + 16 + length], seconds * SECOND + micros * 1000, linktype, wire_length))
        at += 16 + length
    return made


def _joined(found: list[Row]) -> dict[tuple, bytes]:
    """The octets of each direction, joined by sequence number: enough for captures that lose nothing."""
    directions: dict[tuple, dict[int, bytes]] = {}
    for row in found:
        ends = (row.src, row.src_port, row.dst, row.dst_port, row.vlan)
        if row.payload:
            directions.setdefault(ends, {}).setdefault(row.seq, row.payload)
    return {ends: b"".join(octets for _, octets in sorted(parts.items())) for ends, parts in directions.items()}


CASES = sorted(TORTURE.glob("*-ll-*.json"))


@pytest.mark.skipif(not CASES, reason="the torture captures are not here")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_torture_case(case: Path) -> None:
    truth = json.loads(case.read_text())
    found, _ = decode(_case_frames(case.parent / truth["file"]))
    from_clients = [(ends, octets) for ends, octets in _joined(found).items() if ends[3] == 25]
    clients = sorted(f"[{src}]:{port}" if ":" in src else f"{src}:{port}" for (src, port, *_), _ in from_clients)
    assert clients == sorted(session["client"] for session in truth["sessions"])
    digests = set()
    for _, octets in from_clients:
        message = octets.split(b"DATA\r\n", 1)[1].split(b"\r\n.\r\n", 1)[0] + b"\r\n"
        digests.add(hashlib.sha256(message.replace(b"\r\n..", b"\r\n.")).hexdigest())
    assert digests == {message["sha256"] for message in truth["messages"]}
