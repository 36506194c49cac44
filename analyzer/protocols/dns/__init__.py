"""DNS over UDP and TCP: questions and their answers (RFC 1035, 2181, 2308, 6891, 7766; words of RFC 9499).

Rules of this package:
1. One row per question, whatever becomes of it: answered, unanswered, or an answer whose question was not seen.
2. A question and its answer belong together by client, server, both ports, identifier and question, letter
   case aside (RFC 5452 9.1, draft-vixie-dnsext-dns0x20); copies of either are folded into their row.
3. What can be read of a malformed message is used, and the rest is named.
4. Only the capture tells time: what waits too long is unanswered by the times of later packets.
"""

from analyzer.protocols.dns.datagrams import Datagrams, candidate_rows
from analyzer.protocols.dns.record import Transaction
from analyzer.protocols.dns.stream import TcpSession, probe

__all__ = ["Datagrams", "TcpSession", "Transaction", "candidate_rows", "probe"]
