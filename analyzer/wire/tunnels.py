"""Encapsulations between the link layer and the innermost IP packet.

A tunnel over UDP is taken for one only when its port *and* its header say so, and never on the DNS port: a
datagram that merely comes from such a port stays a datagram.
"""

from collections.abc import Callable

import numpy as np

from analyzer.wire.layers import Layer, Mask, Step, Table, Walk
from analyzer.wire.links import ETHERTYPES, PPP_PROTOCOLS
from analyzer.wire.types import I64

_SHORT = "malformed_tunnel"
_DNS = 53
_ARP = 0x0806
_BRIDGED = 0x6558
_ERSPAN2 = 0x88BE
_SAPS = (0xAAAA, 0x0606, 0x4242)
"""SNAP, IP, and the spanning tree's, which is met on every bridged network."""
_MOST_OPTIONS = 16


def _looks_like_ip(walk: Walk, layer: Layer, at: I64) -> Mask:
    """An IP header stands there and its length fits the octets left."""
    version = walk.peek(at, layer) >> 4
    total = walk.peek(at + 2, layer, 2)
    payload = walk.peek(at + 4, layer, 2)
    left = layer.wire - at
    four = (version == 4) & (total >= 20) & (total <= left)
    six = (version == 6) & (payload >= 0) & (payload + 40 <= left)
    return np.asarray(four | six)


def _looks_like_ethernet(walk: Walk, layer: Layer, at: I64) -> Mask:
    """An Ethernet header stands there whose type is one we read, ARP, or the length of an 802.2 packet that we read."""
    kind = walk.peek(at + 12, layer, 2)
    known = (ETHERTYPES.lookup[np.maximum(kind, 0)] > 0) | (kind == _ARP)
    length = (kind >= 3) & (kind <= layer.wire - at - 14) & np.isin(walk.peek(at + 14, layer, 2), _SAPS)
    return np.asarray((kind >= 0) & (known | length))


def mpls(walk: Walk, layer: Layer) -> None:
    """An MPLS label (RFC 3032).  What follows the last one is not said: IP, or a pseudowire (RFC 4385) with Ethernet."""
    layer = walk.whole(layer, 4, _SHORT)
    bottom = (walk.u8(layer.at + 2) & 1) == 1
    walk.emit("mpls", layer.pick(~bottom).moved(4))
    layer = layer.pick(bottom).moved(4)
    nibble = walk.peek(layer.at, layer) >> 4
    direct = _looks_like_ethernet(walk, layer, layer.at)
    behind_control = (nibble == 0) & _looks_like_ethernet(walk, layer, layer.at + 4)
    ip = np.isin(nibble, (4, 6)) & (_looks_like_ip(walk, layer, layer.at) | ~direct)
    walk.emit("ip", layer.pick(ip))
    walk.emit("ethernet", layer.pick(~ip & behind_control).moved(4))
    walk.emit("ethernet", layer.pick(~ip & ~behind_control & direct))


def gre(walk: Walk, layer: Layer) -> None:
    """GRE (RFC 2784, 2890) and its version 1 of PPTP (RFC 2637).  Source routes (RFC 1701) are not followed."""
    layer = walk.whole(layer, 4, _SHORT)
    flags, protocol = walk.u16(layer.at), walk.u16(layer.at + 2)
    checksum, key, sequence, acknowledgment = (((flags & bit) != 0) for bit in (0x8000, 0x2000, 0x1000, 0x0080))
    version = flags & 7
    size = 4 + 4 * checksum.astype(np.int64) + 4 * key + 4 * sequence + 4 * ((version == 1) & acknowledgment)
    bad = ((version > 1) | ((flags & 0x4000) != 0)) | ((version == 1) & ~key)
    walk.odd(_SHORT, layer, bad)
    protocol = np.where((protocol == _ERSPAN2) & ~sequence, _BRIDGED, protocol)  # ERSPAN type I has no header
    carries = ~bad & ((version == 0) | sequence)
    walk.dispatch(ETHERTYPES, layer.moved(size).pick(carries), protocol[carries])


def erspan2(walk: Walk, layer: Layer) -> None:
    """ERSPAN type II (version 1 in its header); some senders put type III under the same number."""
    layer = walk.whole(layer, 8, _SHORT)
    third = walk.u8(layer.at) >> 4 == 2
    walk.emit("erspan3", layer.pick(third))
    walk.emit("ethernet", layer.pick(~third).moved(8))


def erspan3(walk: Walk, layer: Layer) -> None:
    """ERSPAN type III: 12 octets, 8 more with the O bit; frame type 2 is IP."""
    layer = walk.whole(layer, 12, _SHORT)
    last = walk.u16(layer.at + 10)
    inner = layer.moved(12 + 8 * (last & 1))
    ip = (last >> 10) & 0x1F == 2
    walk.emit("ip", inner.pick(ip))
    walk.emit("ethernet", inner.pick(~ip))


def etherip(walk: Walk, layer: Layer) -> None:
    """Ethernet in IP (RFC 3378)."""
    walk.emit("ethernet", walk.whole(layer, 2, _SHORT).moved(2))


def wccp(walk: Walk, layer: Layer) -> None:
    """WCCP in GRE: version 2 has a redirect header of four octets."""
    layer = walk.whole(layer, 1, _SHORT)
    first = walk.u8(layer.at) >> 4 == 4
    walk.emit("ip", layer.moved(np.where(first, 0, 4)))


NSH_PROTOCOLS = Table(256, {1: "ip4", 2: "ip6", 3: "ethernet", 4: "nsh", 5: "mpls"})


def nsh(walk: Walk, layer: Layer) -> None:
    """Network Service Header (RFC 8300)."""
    layer = walk.whole(layer, 8, _SHORT)
    size = 4 * (walk.u8(layer.at + 1) & 0x3F)
    walk.dispatch(NSH_PROTOCOLS, layer.moved(np.maximum(size, 8)), walk.u8(layer.at + 3))


def esp(walk: Walk, layer: Layer) -> None:
    """IPsec ESP (RFC 4303): whether it is encrypted is not said, so it counts as that."""
    walk.odd("encrypted_below", layer, np.ones(len(layer), np.bool_), "IPsec ESP")


def _inner_ip(walk: Walk, layer: Layer) -> None:
    """IP in IP (RFC 2003, 2473, 4213): nothing between the two headers."""
    walk.emit("ip", layer)


# Over UDP: each takes the datagrams of its port, before their payload, and emits those that are its own.
# It returns which they were.


def vxlan(walk: Walk, layer: Layer) -> Mask:
    """VXLAN (RFC 7348), with or without Group Policy: only the flags I, G, D and A, reserved octets 0, Ethernet."""
    flags, low, last = (walk.peek(layer.at + i, layer) for i in (0, 1, 7))
    policy = flags == 0x88
    reserved = np.where(policy, 0, walk.peek(layer.at + 2, layer, 2))
    own: Mask = ((flags == 0x08) | policy) & (low & np.where(policy, 0xB7, 0xFF) == 0) & (reserved == 0) & (last == 0)
    own &= _looks_like_ethernet(walk, layer, layer.at + 8)
    walk.inward("ethernet", layer.pick(own).moved(8))
    return own


def vxlan_gpe(walk: Walk, layer: Layer) -> Mask:
    """VXLAN with a next-protocol field (draft-ietf-nvo3-vxlan-gpe); some senders leave the bit out that announces it."""
    flags, protocol, last = (walk.peek(layer.at + i, layer) for i in (0, 3, 7))
    own: Mask = np.isin(flags, (0x08, 0x0C)) & (walk.peek(layer.at + 1, layer, 2) == 0) & (last == 0)
    packet = np.isin(protocol, (1, 2)) & _looks_like_ip(walk, layer, layer.at + 8)
    own &= packet | ((protocol == 3) & _looks_like_ethernet(walk, layer, layer.at + 8))
    inner = walk.deeper(layer.pick(own))
    walk.dispatch(NSH_PROTOCOLS, inner.moved(8), walk.u8(inner.at + 3))
    return own


def geneve(walk: Walk, layer: Layer) -> Mask:
    """GENEVE (RFC 8926): version 0, reserved bits 0, an inner protocol we know."""
    first, flags, last = (walk.peek(layer.at + i, layer) for i in (0, 1, 7))
    protocol = walk.peek(layer.at + 2, layer, 2)
    size = 8 + 4 * (first & 0x3F)
    own: Mask = (first >= 0) & (first >> 6 == 0) & (flags & 0x3F == 0) & (last == 0)
    own &= np.isin(protocol, (_BRIDGED, 0x0800, 0x86DD, 0x8847)) & (layer.wire - layer.at >= size)
    inner = walk.deeper(layer.pick(own))
    walk.dispatch(ETHERTYPES, inner.moved(8 + 4 * (walk.u8(inner.at) & 0x3F)), walk.u16(inner.at + 2))
    return own


def gtpu(walk: Walk, layer: Layer) -> Mask:
    """GTP-U G-PDU (3GPP TS 29.281): length as stated, extension headers followed to an IP header."""
    flags, message = walk.peek(layer.at, layer), walk.peek(layer.at + 1, layer)
    own: Mask = (flags & 0xF0 == 0x30) & (message == 0xFF) & (walk.peek(layer.at + 2, layer, 2) == layer.wire - layer.at - 8)
    at = layer.at + 8 + 4 * ((flags & 7) != 0)
    following = np.where((flags & 4) != 0, walk.peek(layer.at + 11, layer), 0)
    for _ in range(_MOST_OPTIONS):
        more = own & (following != 0)
        if not more.any():
            break
        size = 4 * walk.peek(at, layer)
        own &= ~more | (size > 0)
        at = np.where(more & own, at + size, at)
        following = np.where(more, walk.peek(at - 1, layer), following)
    own &= (following == 0) & np.isin(walk.peek(at, layer) >> 4, (4, 6))
    walk.inward("ip", Layer(layer.row, at, layer.end, layer.wire).pick(own))
    return own


def l2tp(walk: Walk, layer: Layer) -> Mask:
    """L2TP version 2 data message (RFC 2661) with PPP of a protocol we know."""
    flags = walk.peek(layer.at, layer, 2)
    length, sequence, offset = (((flags & bit) != 0) for bit in (0x4000, 0x0800, 0x0200))
    own: Mask = (flags >= 0) & (flags & 0x000F == 2) & (flags & 0x8000 == 0)
    own &= ~length | (walk.peek(layer.at + 2, layer, 2) == layer.wire - layer.at)
    at = layer.at + 6 + 2 * length + 4 * sequence
    at = np.where(offset, at + 2 + np.maximum(walk.peek(at, layer, 2), 0), at)
    number_at = np.where(walk.peek(at, layer, 2) == 0xFF03, at + 2, at)
    first = walk.peek(number_at, layer)
    number = np.where(first & 1 == 1, first, walk.peek(number_at, layer, 2))
    own &= (first >= 0) & (PPP_PROTOCOLS.lookup[np.maximum(number, 0)] > 0)
    walk.inward("ppp", Layer(layer.row, at, layer.end, layer.wire).pick(own))
    return own


def teredo(walk: Walk, layer: Layer) -> Mask:
    """Teredo (RFC 4380): IPv6, after an authentication or an origin indication or both."""
    at = layer.at
    authenticated = walk.peek(at, layer, 2) == 1
    sizes = walk.peek(at + 2, layer), walk.peek(at + 3, layer)
    at = np.where(authenticated, at + 13 + np.maximum(sizes[0], 0) + np.maximum(sizes[1], 0), at)
    at = np.where(walk.peek(at, layer, 2) == 0, at + 8, at)
    own: Mask = (walk.peek(at, layer) >> 4 == 6) & _looks_like_ip(walk, layer, at)
    walk.inward("ip6", Layer(layer.row, at, layer.end, layer.wire).pick(own))
    return own


def lisp(walk: Walk, layer: Layer) -> Mask:
    """LISP data packet (RFC 9300): eight octets, then IP of the length left."""
    own: Mask = _looks_like_ip(walk, layer, layer.at + 8)
    walk.inward("ip", layer.moved(8).pick(own))
    return own


def mpls_in_udp(walk: Walk, layer: Layer) -> Mask:
    """MPLS in UDP (RFC 7510): one label or two with a time to live, then IP."""
    one = (walk.peek(layer.at + 2, layer) & 1 == 1) & _looks_like_ip(walk, layer, layer.at + 4)
    two = (walk.peek(layer.at + 2, layer) & 1 == 0) & (walk.peek(layer.at + 6, layer) & 1 == 1)
    own: Mask = (walk.peek(layer.at + 3, layer) > 0) & (one | (two & _looks_like_ip(walk, layer, layer.at + 8)))
    walk.emit("mpls", layer.pick(own))
    return own


def tzsp(walk: Walk, layer: Layer) -> Mask:
    """TaZmen Sniffer Protocol: version 1, tagged fields, Ethernet."""
    own: Mask = (
        (walk.peek(layer.at, layer) == 1) & (walk.peek(layer.at + 1, layer) <= 1) & (walk.peek(layer.at + 2, layer, 2) == 1)
    )
    at = layer.at + 4
    for _ in range(_MOST_OPTIONS):
        tag = walk.peek(at, layer)
        more = own & (tag != 1)
        if not more.any():
            break
        own &= ~more | (tag >= 0)
        at = np.where(more, np.where(tag == 0, at + 1, at + 2 + np.maximum(walk.peek(at + 1, layer), 0)), at)
    own &= (walk.peek(at, layer) == 1) & _looks_like_ethernet(walk, layer, at + 1)
    walk.inward("ethernet", Layer(layer.row, at + 1, layer.end, layer.wire).pick(own))
    return own


def capwap(walk: Walk, layer: Layer) -> Mask:
    """CAPWAP data (RFC 5415 4): version 0, a header of the length it states, then 802.3 or 802.11; or DTLS."""
    first, flags = walk.peek(layer.at, layer), walk.peek(layer.at + 2, layer, 2)
    words = walk.peek(layer.at + 1, layer, 2)
    size = 4 * (words >> 11)
    sealed: Mask = (first == 1) & (walk.peek(layer.at + 4, layer) & 0xFC == 0x14)
    walk.odd("encrypted_below", layer, sealed, "CAPWAP with DTLS")
    whole: Mask = (first == 0) & (size >= 8) & (flags & 0x0088 == 0) & (layer.wire - layer.at > size)
    native = flags & 0x0100 != 0
    wired = whole & ~native & _looks_like_ethernet(walk, layer, layer.at + size)
    wireless = whole & native & (flags >> 9 & 0x1F == 1)
    walk.inward("ethernet", layer.moved(size).pick(wired))
    walk.inward("wireless", layer.moved(size).pick(wireless))
    own: Mask = sealed | wired | wireless
    return own


def esp_in_udp(walk: Walk, layer: Layer) -> Mask:
    """ESP past address translation (RFC 3948 2): it begins with an index that is not 0 (IKE: 0) and is in words of 4 octets."""
    left = layer.wire - layer.at
    sealed = (walk.peek(layer.at, layer, 2) > 0) | (walk.peek(layer.at + 2, layer, 2) > 0)
    walk.odd("encrypted_below", layer, sealed & (left >= 16) & (left % 4 == 0), "IPsec ESP")
    return np.zeros(len(layer), np.bool_)  # no more than the port says so


def wireguard(walk: Walk, layer: Layer) -> Mask:
    """WireGuard transport data: type 4, three octets of 0, and what is padded to 16."""
    left = layer.wire - layer.at
    sealed = (walk.peek(layer.at, layer, 2) == 0x0400) & (walk.peek(layer.at + 2, layer, 2) == 0)
    walk.odd("encrypted_below", layer, sealed & (left >= 32) & (left % 16 == 0), "WireGuard")
    return np.zeros(len(layer), np.bool_)


OverUdp = Callable[[Walk, Layer], Mask]
OVER_UDP: dict[int, OverUdp] = {
    4789: vxlan,
    8472: vxlan,
    4790: vxlan_gpe,
    6081: geneve,
    2152: gtpu,
    1701: l2tp,
    3544: teredo,
    4341: lisp,
    6635: mpls_in_udp,
    37008: tzsp,
    4500: esp_in_udp,
    5247: capwap,
    51820: wireguard,
}
"""By either port: most choose the other freely, some answer from their own."""
_IS_PORT = np.zeros(65536, np.bool_)
_IS_PORT[list(OVER_UDP)] = True


def over_udp(walk: Walk, layer: Layer, src: I64, dst: I64) -> Mask:
    """Which of these datagrams (each before its payload) are tunnels; their inner packets are emitted."""
    taken = np.zeros(len(layer), np.bool_)
    candidates = (_IS_PORT[dst] | _IS_PORT[src]) & (src != _DNS) & (dst != _DNS)
    if not candidates.any():
        return taken
    for port, recognise in OVER_UDP.items():
        mask = candidates & ~taken & ((dst == port) | (src == port))
        if mask.any():
            taken[mask] = recognise(walk, layer.pick(mask))
    return taken


STEPS: dict[str, Step] = {
    "mpls": mpls,
    "gre": gre,
    "esp": esp,
    "erspan2": erspan2,
    "erspan3": erspan3,
    "etherip": etherip,
    "wccp": wccp,
    "nsh": nsh,
    "inner_ip": _inner_ip,
}
WRAPPERS = frozenset({*STEPS})
