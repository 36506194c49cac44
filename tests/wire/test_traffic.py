"""What is said of a capture without mail."""

from io import BytesIO

import capture_writer as write
import pytest
from craft import ethernet, ip4, tcp, udp

from analyzer.pipeline import run

WEB = ethernet(ip4(tcp(b"", dst_port=443)))
QUIC = ethernet(ip4(udp(b"\x40quic", 443, 50000), 17))
QUESTION = ethernet(ip4(udp(b"\0\1\1\0\0\1\0\0\0\0\0\0\7example\3org\0\0\x0f\0\1", 40000, 53), 17))


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([WEB] * 3 + [QUIC], ["4 packets: TCP port 443 (75 %), UDP port 443 (25 %)"]),
        ([ethernet(b"\0" * 50, 0x0806)], ["nothing of TCP or UDP"]),
        (
            [ethernet(ip4(tcp(b"", src_port=port, dst_port=port + 1))) for port in range(2000, 2200)],
            ["200 packets of many ports"],
        ),
        ([WEB, QUESTION], []),
    ],
)
def test_a_capture_without_mail_says_what_is_in_it(frames: list[bytes], words: list[str]) -> None:
    tables = run([BytesIO(write.pcap(frames))]).tables
    assert [row.detail for row in tables.rows("anomalies") if row.name == "no_mail"] == words
