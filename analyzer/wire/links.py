"""Link layers: from the frame's first octet to an EtherType, an IP header or a tunnel.

Numbers are LINKTYPE_ values (https://www.tcpdump.org/linktypes.html) and IEEE 802 EtherTypes.
"""

from functools import partial

import numpy as np

from analyzer.wire.layers import Layer, Step, Table, Walk

ETHERTYPE_KINDS = {
    0x0800: "ip4",
    0x86DD: "ip6",
    0x8100: "vlan",  # IEEE 802.1Q
    0x88A8: "vlan",  # IEEE 802.1ad
    0x9100: "vlan",  # before 802.1ad
    0x9200: "vlan",
    0x9300: "vlan",
    0x8847: "mpls",
    0x8848: "mpls",
    0x8864: "pppoe",
    0x8909: "cmd",  # Cisco MetaData: a security group tag
    0x8926: "vntag",
    0x893F: "etag",  # IEEE 802.1BR
    0x88E5: "macsec",
    0x88E7: "pbb",  # IEEE 802.1ah
    0x894F: "nsh",
    0x6558: "bridged",
    0x880B: "ppp",
    0x883E: "wccp",
    0x88BE: "erspan2",
    0x22EB: "erspan3",
}
ETHERTYPES = Table(65536, ETHERTYPE_KINDS)
ETHERTYPES_OR_LENGTH = Table(65536, ETHERTYPE_KINDS, [(range(1501), "llc")])
"""On Ethernet a number up to 1500 is the length of an IEEE 802.2 packet."""

PPP_PROTOCOLS = Table(65536, {0x0021: "ip4", 0x0057: "ip6", 0x0281: "mpls", 0x0283: "mpls"})

LINKTYPES = Table(
    65536,
    {
        0: "null",
        1: "ethernet",
        9: "hdlc",
        12: "ip",
        14: "ip",
        50: "hdlc",
        51: "pppoe",
        101: "ip",
        104: "cisco_hdlc",
        105: "wireless",
        108: "null",
        109: "ip_after_12",
        113: "sll",
        117: "pflog",
        119: "prism",
        127: "radiotap",
        138: "ip1394",
        163: "prism",
        166: "ppp_after_2",
        192: "ppi",
        204: "hdlc_after_1",
        219: "mpls",
        226: "ip_after_24",
        228: "ip",
        229: "ip",
        239: "nflog",
        240: "ethernet_after_4",
        276: "sll2",
    },
)

FAMILIES = np.array([2, 10, 23, 24, 26, 28, 30])
"""AF_INET, and AF_INET6 of Linux, Windows, NetBSD, OSI/IP, FreeBSD and macOS; which IP it is the IP header says."""

_SHORT = "malformed_frame"
_NFLOG_ATTRIBUTES = 32


def ethernet(walk: Walk, layer: Layer) -> None:
    """IEEE 802.3: two addresses, EtherType or length."""
    layer = walk.whole(layer, 14, _SHORT)
    walk.dispatch(ETHERTYPES_OR_LENGTH, layer.moved(14), walk.u16(layer.at + 12))


def vlan(walk: Walk, layer: Layer) -> None:
    """A tag of IEEE 802.1Q or 802.1ad; the outermost one that is not 0 is kept."""
    layer = walk.whole(layer, 4, _SHORT)
    known = walk.vlan[layer.row]
    tag = walk.u16(layer.at) & 0x0FFF
    walk.vlan[layer.row] = np.where(known == 0, tag, known)
    walk.dispatch(ETHERTYPES_OR_LENGTH, layer.moved(4), walk.u16(layer.at + 2))


def _tag(walk: Walk, layer: Layer, size: int) -> None:
    """A tag of fixed size before the next EtherType."""
    layer = walk.whole(layer, size + 2, _SHORT)
    walk.dispatch(ETHERTYPES_OR_LENGTH, layer.moved(size + 2), walk.u16(layer.at + size))


def _after(walk: Walk, layer: Layer, size: int, kind: str) -> None:
    """A header of fixed size that says nothing we need."""
    walk.emit(kind, walk.whole(layer, size, _SHORT).moved(size))


def llc(walk: Walk, layer: Layer) -> None:
    """IEEE 802.2: SNAP with an EtherType (RFC 1042, or the bridge-tunnel OUI), or the SAP of IP."""
    layer = walk.whole(layer, 3, _SHORT)
    saps = walk.u16(layer.at)
    walk.emit("ip", layer.pick(saps == 0x0606).moved(3))
    layer = walk.whole(layer.pick((saps == 0xAAAA) & (walk.u8(layer.at + 2) == 3)), 8, _SHORT)
    oui = walk.u32(layer.at + 2) & 0xFFFFFF
    layer = layer.pick((oui == 0) | (oui == 0x0000F8))
    walk.dispatch(ETHERTYPES, layer.moved(8), walk.u16(layer.at + 6))


def sll(walk: Walk, layer: Layer) -> None:
    """Linux cooked capture."""
    layer = walk.whole(layer, 16, _SHORT)
    _cooked(walk, layer.moved(16), walk.u16(layer.at + 14), walk.u16(layer.at + 2))


def sll2(walk: Walk, layer: Layer) -> None:
    """Linux cooked capture, version 2."""
    layer = walk.whole(layer, 20, _SHORT)
    _cooked(walk, layer.moved(20), walk.u16(layer.at), walk.u16(layer.at + 8))


def _cooked(walk: Walk, layer: Layer, protocol: np.ndarray, hardware: np.ndarray) -> None:
    netlink = hardware == 824  # its protocol field is a netlink family
    walk.dispatch(ETHERTYPES_OR_LENGTH, layer.pick(~netlink), protocol[~netlink])


def null(walk: Walk, layer: Layer) -> None:
    """BSD loopback: an address family, in the byte order of the host that captured (108: network order)."""
    layer = walk.whole(layer, 4, _SHORT)
    family = walk.u32(layer.at, "<")
    family = np.where(family > 0xFFFF, walk.u32(layer.at), family)
    walk.emit("ip", layer.pick(np.isin(family, FAMILIES)).moved(4))


def hdlc(walk: Walk, layer: Layer) -> None:
    """PPP in HDLC-like framing (RFC 1662), or Cisco HDLC under the same link type."""
    layer = walk.whole(layer, 1, _SHORT)
    cisco = np.isin(walk.u8(layer.at), (0x0F, 0x8F))
    walk.emit("cisco_hdlc", layer.pick(cisco))
    walk.emit("ppp", layer.pick(~cisco))


def cisco_hdlc(walk: Walk, layer: Layer) -> None:
    """Address, control, EtherType."""
    layer = walk.whole(layer, 4, _SHORT)
    walk.dispatch(ETHERTYPES, layer.moved(4), walk.u16(layer.at + 2))


def ppp(walk: Walk, layer: Layer) -> None:
    """PPP: address and control may be left out, the protocol may be one octet (RFC 1661 6.5, 6.6)."""
    layer = walk.whole(layer, 2, _SHORT)
    framed = walk.u16(layer.at) == 0xFF03
    layer = walk.whole(layer.moved(np.where(framed, 2, 0)), 2, _SHORT)
    short = (walk.u8(layer.at) & 1) == 1
    number = np.where(short, walk.u8(layer.at), walk.u16(layer.at))
    walk.dispatch(PPP_PROTOCOLS, layer.moved(np.where(short, 1, 2)), number)


def pppoe(walk: Walk, layer: Layer) -> None:
    """PPPoE session packet (RFC 2516)."""
    layer = walk.whole(layer, 6, _SHORT)
    walk.emit("ppp", layer.pick(walk.u8(layer.at + 1) == 0).moved(6))


def macsec(walk: Walk, layer: Layer) -> None:
    """MACsec (IEEE 802.1AE 9): its tag; what follows is clear where neither encrypted nor changed, as the bits E and C say."""
    layer = walk.whole(layer, 6, _SHORT)
    control = walk.u8(layer.at)
    clear = control & 0x0C == 0
    walk.odd("encrypted_below", layer, ~clear, "MACsec")
    inner = layer.moved(np.where(control & 0x20 != 0, 14, 6)).pick(clear)
    inner = walk.whole(inner, 2, _SHORT)
    walk.dispatch(ETHERTYPES_OR_LENGTH, inner.moved(2), walk.u16(inner.at))


def wireless(walk: Walk, layer: Layer, padded: bool = False) -> None:
    """IEEE 802.11 data frame; what is encrypted, aggregated or fragmented is counted."""
    layer = walk.whole(layer, 2, _SHORT)
    control = walk.u16(layer.at)
    carries = (control & 0x4C00) == 0x0800
    layer, control = layer.pick(carries), control[carries]
    qos = (control & 0x8000) != 0
    size = 24 + 6 * ((control & 0x0003) == 0x0003) + 2 * qos
    high_throughput = 4 * (qos & ((control & 0x0080) != 0))
    fits = layer.end - layer.at >= size + high_throughput
    layer_kept = walk.whole(layer, size + high_throughput, _SHORT)
    control, qos, size, high_throughput = control[fits], qos[fits], size[fits], high_throughput[fits]
    aggregated = qos & ((walk.u8(layer_kept.at + size - 2) & 0x80) != 0)
    fragment = ((control & 0x0004) != 0) | ((walk.u8(layer_kept.at + 22) & 0x0F) != 0)
    opaque = ((control & 0x0040) != 0) | aggregated | fragment
    walk.odd("wireless_opaque", layer_kept, opaque)
    size = size + high_throughput
    if padded:
        size = (size + 3) & ~3
    walk.emit("llc", layer_kept.moved(size).pick(~opaque))


def radiotap(walk: Walk, layer: Layer) -> None:
    """Radiotap: its length, and in its flags whether the 802.11 header is padded to four octets."""
    layer = walk.whole(layer, 8, _SHORT)
    size = walk.octets[layer.at + 2].astype(np.int64) | walk.u8(layer.at + 3) << 8
    present = walk.u32(layer.at + 4, "<")
    words, more = np.full(len(layer), 8), present >> 31 == 1
    while more.any():  # each round is four octets further in, never beyond the header
        more &= words + 4 <= size
        more &= walk.peek(layer.at + words + 3, layer) >= 0
        words = np.where(more, words + 4, words)
        more &= walk.peek(layer.at + words - 1, layer) & 0x80 != 0
    timed = (present & 1) == 1
    flags_at = np.where(timed, ((words + 7) & ~7) + 8, words)
    flags = np.where((present & 2) != 0, walk.peek(layer.at + flags_at, layer), 0)
    padded = (flags > 0) & ((flags & 0x20) != 0)
    layer = layer.moved(np.maximum(size, 8))
    walk.emit("wireless_padded", layer.pick(padded))
    walk.emit("wireless", layer.pick(~padded))


def prism(walk: Walk, layer: Layer) -> None:
    """Prism or AVS header before 802.11: the length is the second word, AVS in network order."""
    layer = walk.whole(layer, 8, _SHORT)
    avs = walk.u32(layer.at) >> 12 == 0x80211
    size = np.where(avs, walk.u32(layer.at + 4), walk.u32(layer.at + 4, "<"))
    walk.emit("wireless", layer.moved(np.maximum(size, 8)))


def ppi(walk: Walk, layer: Layer) -> None:
    """Per-Packet Information: length and link type of what follows, little-endian."""
    layer = walk.whole(layer, 8, _SHORT)
    size = walk.u8(layer.at + 2) | walk.u8(layer.at + 3) << 8
    linktype = walk.u32(layer.at + 4, "<")
    known = linktype < 65536
    walk.dispatch(LINKTYPES, layer.moved(np.maximum(size, 8)).pick(known), linktype[known])


def pflog(walk: Walk, layer: Layer) -> None:
    """OpenBSD pf log: the header's length is its first octet, rounded up to four."""
    layer = walk.whole(layer, 1, _SHORT)
    walk.emit("ip", layer.moved((walk.u8(layer.at) + 3) & ~3))


def nflog(walk: Walk, layer: Layer) -> None:
    """Linux netfilter log: attributes, one of which is the packet (9)."""
    layer = layer.moved(4)
    for _ in range(_NFLOG_ATTRIBUTES):
        layer = walk.whole(layer, 4, _SHORT)
        if not len(layer):
            return
        size = walk.u8(layer.at) | walk.u8(layer.at + 1) << 8
        kind = walk.u8(layer.at + 2) | walk.u8(layer.at + 3) << 8
        walk.emit("ip", layer.pick(kind == 9).moved(4))
        rest = (kind != 9) & (size >= 4)
        layer = Layer(layer.row, layer.at + ((size + 3) & ~3), layer.end, layer.wire).pick(rest)


STEPS: dict[str, Step] = {
    "ethernet": ethernet,
    "bridged": ethernet,
    "vlan": vlan,
    "cmd": partial(_tag, size=6),
    "macsec": macsec,
    "vntag": partial(_tag, size=4),
    "etag": partial(_tag, size=6),
    "pbb": partial(_after, size=4, kind="ethernet"),
    "llc": llc,
    "sll": sll,
    "sll2": sll2,
    "null": null,
    "hdlc": hdlc,
    "cisco_hdlc": cisco_hdlc,
    "ppp": ppp,
    "pppoe": pppoe,
    "wireless": wireless,
    "wireless_padded": partial(wireless, padded=True),
    "radiotap": radiotap,
    "prism": prism,
    "ppi": ppi,
    "pflog": pflog,
    "nflog": nflog,
    "ip1394": partial(_tag, size=16),
    "ip_after_12": partial(_after, size=12, kind="ip"),
    "ip_after_24": partial(_after, size=24, kind="ip"),
    "ppp_after_2": partial(_after, size=2, kind="ppp"),
    "hdlc_after_1": partial(_after, size=1, kind="hdlc"),
    "ethernet_after_4": partial(_after, size=4, kind="ethernet"),
}
WRAPPERS = frozenset({"bridged", "vlan", "cmd", "macsec", "vntag", "etag", "pbb", "pppoe", "ppi"})
"""Kinds that count as an encapsulation; every way back to a kind already met goes through one of these or a tunnel's."""
