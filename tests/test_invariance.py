"""The same octets give the same tables, however TCP and the capture cut, repeat and order them.

Each dialogue becomes a capture: in its own segments, octet by octet, shuffled within what TCP repairs, every segment
twice, in batches of any size, in several files.  An octet keeps its time, so even times must be equal; what must
differ (frame numbers, the name of the file) is left out of the comparison.
"""

import random
import struct
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from protocols import dialogue
from wire import capture_writer, craft

from analyzer.limits import Limits
from analyzer.pipeline import run

FOLDER = Path(__file__).parent / "dialogues"
PARTIAL = ("gap", "mid_stream", "one_side", "_only")
WHOLE = sorted(
    p.stem for p in FOLDER.glob("*.txt") if not any(word in p.stem for word in PARTIAL) and "...gap" not in p.read_text()
)
PORTS = {"smtp": 25, "lmtp": 24, "pop3": 110, "imap": 143, "proxy": 1080}
UNLIKE = {"frame", "reply_frame", "first_frame", "last_frame", "wireshark", "source", "last_hop_frame"}
TABLES = "messages hops recipients deliveries timeline sessions commands links".split()
FIN, SYN, ACK = 1, 2, 16
ISN = {True: 0xFFFFFF00, False: 7000}  # the client's numbers wrap around on the way


class Piece(NamedTuple):
    """One TCP segment of the capture."""

    ts: int
    client: bool
    offset: int
    data: bytes
    ack: int
    flags: int = ACK


def pieces(name: str) -> list[Piece]:
    """A dialogue's file as segments."""
    return conversation((FOLDER / f"{name}.txt").read_text().partition("\n---")[0])


def conversation(text: str) -> list[Piece]:
    """A dialogue as segments, the handshake and the end included."""
    talk = dialogue.parse(text)
    first, step = dialogue.START, dialogue.STEP
    said = [Piece(s.ts, s.client, s.offset, s.data, s.ack) for s in talk.segments]
    opening = [
        Piece(first - 3 * step, True, -1, b"", 0, SYN),
        Piece(first - 2 * step, False, -1, b"", 0, SYN | ACK),
        Piece(first - step, True, 0, b"", 0),
    ]
    if talk.end != "fin":
        return opening + said
    sent = {side: sum(len(p.data) for p in said if p.client == side) for side in (True, False)}
    last = said[-1].ts
    closing = [Piece(last + step, True, sent[True], b"", sent[False], FIN | ACK)]
    closing += [Piece(last + 2 * step, False, sent[False], b"", sent[True] + 1, FIN | ACK)]
    closing += [Piece(last + 3 * step, True, sent[True] + 1, b"", sent[False] + 1)]
    return opening + said + closing


def octet_by_octet(segments: list[Piece]) -> list[Piece]:
    return [
        piece._replace(offset=piece.offset + i, data=piece.data[i : i + 1])
        for piece in segments
        for i in range(max(len(piece.data), 1))
    ]


def runs(segments: list[Piece]) -> Iterator[list[Piece]]:
    """Segments with data that one side sent before the other said anything."""
    run_: list[Piece] = []
    for piece in segments:
        if run_ and (piece.client != run_[-1].client or not piece.data or not run_[-1].data):
            yield run_
            run_ = []
        run_.append(piece)
    yield run_


def shuffled(segments: list[Piece], seed: int = 1) -> list[Piece]:
    rng = random.Random(seed)
    return [piece for same in runs(segments) for piece in rng.sample(same, len(same))]


def twice(segments: list[Piece]) -> list[Piece]:
    return [piece for each in segments for piece in (each, each)]


def pairs_glued(segments: list[Piece]) -> list[Piece]:
    """Octets in twos: boundaries where the dialogue has none."""
    glued: list[Piece] = []
    for same in runs(octet_by_octet(segments)):
        for i in range(0, len(same), 2):
            glued.append(same[i]._replace(data=b"".join(p.data for p in same[i : i + 2])))
    return glued


def frame(piece: Piece, port: int) -> bytes:
    ends = (41000, port) if piece.client else (port, 41000)
    seq = (ISN[piece.client] + 1 + piece.offset) & 0xFFFFFFFF
    ack = (ISN[not piece.client] + 1 + piece.ack) & 0xFFFFFFFF if piece.flags & ACK else 0
    head = struct.pack("!HHIIBBHHH", *ends, seq, ack, 0x50, piece.flags, 65535, 0, 0)
    src, dst = ("192.0.2.10", "198.51.100.25")[:: 1 if piece.client else -1]
    return craft.ethernet(craft.ip4(head + piece.data, src=src, dst=dst))


def capture(segments: list[Piece], name: str) -> bytes:
    port = PORTS[name.partition("_")[0]]
    records = [capture_writer.record(frame(p, port), p.ts // 1_000_000_000, p.ts % 1_000_000_000 // 1) for p in segments]
    return capture_writer.pcap_header(magic=0xA1B23C4D) + b"".join(records)


def tables(*captures: bytes, **limits: Any) -> dict[str, list[dict[str, Any]]]:
    result = run([BytesIO(c) for c in captures], limits=Limits(**limits))
    return {
        name: [{k: v for k, v in row._asdict().items() if k not in UNLIKE} for row in result.tables.rows(name)] for name in TABLES
    }


def show(name: str) -> dict[str, list[dict[str, Any]]]:
    return tables(capture(pieces(name), name))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("cut", [octet_by_octet, pairs_glued, twice], ids=lambda f: f.__name__)
def test_how_tcp_cut_it_changes_nothing(name: str, cut: Callable[[list[Piece]], list[Piece]]) -> None:
    want = show(name)
    assert want["sessions"] and want["commands"]
    assert tables(capture(cut(pieces(name)), name)) == want


@pytest.mark.parametrize("name", WHOLE)
def test_any_order_that_tcp_repairs_changes_nothing(name: str) -> None:
    want = show(name)
    for seed in range(3):
        assert tables(capture(shuffled(octet_by_octet(pieces(name)), seed), name)) == want


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(WHOLE), st.data())
def test_any_file_split_and_any_batch_size_changes_nothing(name: str, data: st.DataObject) -> None:
    segments = octet_by_octet(pieces(name))
    cut = data.draw(st.integers(1, len(segments) - 1))
    batch = data.draw(st.sampled_from([500, 3000, 40_000]))
    want = show(name)
    assert tables(capture(segments[:cut], name), capture(segments[cut:], name), batch_bytes=batch) == want


SOCKS_END = "C~ \\x05\\x01\\x00\\x03\\x0email.b.example\\x00\\x8f\nS~ \\x05\\x00\\x00\\x01\\x0a\\x00\\x00\\x07\\x9c\\x40\n"
REQUEST = "CONNECT mail.b.example:143 HTTP/1.1\\r\\nHost: mail.b.example:143\\r\\n"
PROXIES = {
    "SOCKS5": r"C~ \x05\x01\x00" + "\n" + r"S~ \x05\x00" + "\n" + SOCKS_END,
    "SOCKS5, login": r"C~ \x05\x02\x00\x02"
    + "\n"
    + r"S~ \x05\x02"
    + "\n"
    + r"C~ \x01\x03tim\x06s3cr3t"
    + "\n"
    + r"S~ \x01\x00"
    + "\n"
    + SOCKS_END,
    "SOCKS4": r"C~ \x04\x01\x00\x8f\x00\x00\x00\x01tim\x00mail.b.example\x00"
    + "\n"
    + r"S~ \x00\x5a\x00\x00\x00\x00\x00\x00"
    + "\n",
    "HTTP": f"C~ {REQUEST}\\r\\n\nS~ HTTP/1.1 200 OK\\r\\n\\r\\n\n",
    "HTTP, login": f"C~ {REQUEST}\\r\\n\nS~ HTTP/1.1 407 no\\r\\nContent-Length: 6\\r\\n\\r\\nlogin\\n\n"
    f"C~ {REQUEST}Proxy-Authorization: Basic dGltOnMzY3IzdA==\\r\\n\\r\\n\nS~ HTTP/1.1 200 OK\\r\\n\\r\\n\n",
}


@pytest.mark.parametrize("kind", PROXIES)
@pytest.mark.parametrize("cut", [list, octet_by_octet], ids=["segments", "octets"])
def test_what_a_proxy_is_told_is_passed_over(kind: str, cut: Callable[[list[Piece]], list[Piece]]) -> None:
    """RFC 1928, 1929, RFC 9110 9.3.6; and no word of the login to it is in any table."""
    said = PROXIES[kind] + "S: * OK ready\nC: a LOGIN tim x\nS: a OK\nC: b LOGOUT\nS: * BYE\nS: b OK\n"
    result = run([BytesIO(capture(cut(conversation(said)), "proxy_"))])
    every = {name: list(result.tables.rows(name)) for name in (*TABLES, "anomalies")}
    assert [(c.verb, c.status) for c in every["commands"]] == [("LOGIN", "OK"), ("LOGOUT", "OK")]
    odd = [(row.name, row.detail) for row in every["anomalies"]]
    assert odd == [("through_proxy", f"{kind.partition(',')[0]} to mail.b.example port 143")]
    assert "s3cr" not in str(every) and "dGlt" not in str(every)


def test_a_proxy_that_refuses_hands_nothing_on() -> None:
    said = r"C~ \x05\x01\x00" + "\n" + r"S~ \x05\xff" + "\n"
    result = run([BytesIO(capture(conversation(said), "proxy_"))])
    assert not list(result.tables.rows("sessions"))
