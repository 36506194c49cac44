"""The plain transaction, read at once: MAIL, RCPT, DATA, a message and its end, each taken by the server.

Nearly all mail goes so, and one look at both directions costs a fraction of going command by command.  What is told is
the same: everything is looked at before anything is taken, and whatever is out of the ordinary (a refusal, a loss, a
line end or a path that needs care, an end of data that is not here yet) is left to `session`.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

from analyzer.protocols.base import Command, MessageCarried, Recipient, text
from analyzer.protocols.inbox import Inbox
from analyzer.protocols.message import MessageReader, plain_body, read_whole
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.queue_ids import queue_id
from analyzer.protocols.smtp.recovery import Recovery
from analyzer.protocols.smtp.transaction import Reply

_MAIL = re.compile(rb"(?:MAIL|mail|Mail) (FROM:<(?!@)([!#-;=?-\[\]-~]*)>(?: ([^\r\n]*))?)\r\n")
_RCPT = re.compile(rb"(?:RCPT|rcpt|Rcpt) (TO:<(?!@)([!#-;=?-\[\]-~]*)>(?: ([^\r\n]*))?)\r\n")
_DATA = re.compile(rb"(?:DATA|data|Data)\r\n")
_TAKEN = re.compile(rb"(2\d\d) ([^\r\n]*)\r\n")
_GO_ON = re.compile(rb"(354) ([^\r\n]*)\r\n")
_RECIPIENTS = 100
"""Recipients of a transaction that is still called plain."""
_NEAR = 8 << 10
"""Octets within which the end of a message is looked for at once; a larger one is read in blocks."""
_row = partial(tuple.__new__, Command)
"""A row out of its columns; naming them would take twice the time."""


class Plain(Recovery):
    """A dialogue that takes the plain transactions."""

    _first: tuple[int | None, int | None, int] | None = None  # the first command: time, frame, acknowledgement
    _guarding: bool = False  # AUTH was tried: unknown lines may be secrets

    def read_plain(self) -> bool:
        """Take a whole plain transaction, when one comes next and nothing is open; whether it was one."""
        if (
            self.lossy
            or self.replies
            or self._partial is not None
            or self._skip
            or self.cut
            or self.transaction is not None
            or self.split is not None
            or self.forks
            or self._first is None
            or self.info.protocol != "smtp"
        ):
            return False
        client, server = self.client, self.server
        buf, pos = client.buf, client.pos
        mail = _MAIL.match(buf, pos)
        if mail is None:
            return False
        asked = [mail]
        pos = mail.end()
        while found := _RCPT.match(buf, pos):
            asked.append(found)
            pos = found.end()
        begin_data = _DATA.match(buf, pos)
        if begin_data is None or not 1 < len(asked) <= _RECIPIENTS or len(asked) - 1 > self.limits.recipients:
            return False
        asked.append(begin_data)
        most = self.limits.argument_chars
        said, at = server.buf, server.pos
        answers = []
        for wanted in (*(_TAKEN,) * (len(asked) - 1), _GO_ON, _TAKEN):
            found = wanted.match(said, at)
            if found is None or found.end() - at > most:
                return False
            answers.append(found)
            at = found.end()
        return begin_data.end() - client.pos <= most and self._take_plain(asked, answers)

    def _take_plain(self, asked: list[re.Match[bytes]], answers: list[re.Match[bytes]]) -> bool:
        """Read the message between these commands and replies, and tell it all; False when it is not plain."""
        client, server, info, limits = self.client, self.server, self.info, self.limits
        replies, given = _spans(server, answers), _spans(client, asked)
        if replies is None or given is None:
            return False
        if any(0 <= reply.ack <= command.offset for command, reply in zip(given, replies, strict=False)):
            return False
        base, (starts, times, _, _) = client.base, client.segments
        begin = asked[-1].end()
        final = replies[-1]
        if 0 <= final.ack < base + begin:
            return False
        body = plain_body(client.buf, begin, _NEAR)
        if body is not None:
            end = body[1]
            content, oddities = read_whole(body[0], limits)
        else:
            reader = MessageReader(limits)
            reader.watch_ends()
            end = reader.feed_stuffed(client.buf, begin)
            if not reader.ended:
                return False
            content, oddities = reader.content(True), reader.oddities
        segment = bisect_right(starts, base + begin) - 1
        last = bisect_right(starts, base + end - 1, segment) - 1
        # from here on it is taken
        client.pos, server.pos = end, answers[-1].end()
        self._guarding = self.headless = False
        most = limits.argument_chars
        told, enhanced = reply_words(answers[-1][2], most)
        code = int(answers[-1][1])
        mail = asked[0]
        recipients = [
            Recipient(text(found[2]), _parameters(found), at.ts, "accepted", code, enhanced, told, True, at.frame)
            for found, at in zip(asked[1:-1], given[1:-1], strict=True)
        ]
        info.messages += 1
        carried = MessageCarried(
            info, "transaction", info.messages, given[0].ts, times[segment], times[last], final.ts_end, given[0].frame,
            final.frame_end,
            text(mail[2]), _parameters(mail), recipients, "accepted", code, enhanced, told, queue_id(told), content,
            replies[-2].ts_end,
        )  # fmt: skip
        events, session_id, n = self.events, info.session_id, info.commands
        before, before_ts = (self._previous.begin, self._previous.ts_first or 0) if self._previous is not None else (-1, 0)
        verbs = ("MAIL", *("RCPT",) * len(recipients), "DATA")
        for verb, found, command, reply, answer in zip(verbs, asked, given, replies, answers, strict=False):
            n += 1
            argument = text(found[1].strip()) if verb != "DATA" else None
            told, enhanced = reply_words(answer[2], most)
            pipelined = command.ack <= before if command.ack >= 0 else command.ts < before_ts
            latency = (reply.ts - command.ts_end) / 1e9
            events.append(
                _row((session_id, n, command.ts, reply.ts_end, latency, "smtp", None, verb, argument, answer[1].decode(),
                      enhanced, told, pipelined, command.frame, reply.frame_end))
            )  # fmt: skip
            before, before_ts = reply.offset, reply.ts
        info.commands = n
        self._previous = Reply(code, [answers[-1][2]], final.offset, server.base + server.pos, final.ts, final.ack, False)
        self._previous.ts, self._previous.frame = final.ts_end, final.frame_end
        for name, detail in oddities:
            self.weird(name, detail, carried.ts_data, carried.first_frame)
        events.append(carried)
        return True


class _Span(NamedTuple):
    """Where in the stream a line was, and the segments that brought its first and its last octet."""

    offset: int
    ack: int
    ts: int
    frame: int
    ts_end: int
    frame_end: int


def _spans(inbox: Inbox, lines: Sequence[re.Match[bytes]]) -> list[_Span] | None:
    """The spans of lines that follow each other; None when it is not known what brought one."""
    starts, times, frames, acks = inbox.segments
    base, first, count = inbox.base, 0, len(starts)
    spans = []
    for line in lines:
        begin, end = line.span()
        first = last = bisect_right(starts, base + begin, first) - 1
        if first < 0:
            return None
        if first + 1 < count and starts[first + 1] < base + end:
            last = bisect_right(starts, base + end - 1, first) - 1
        spans.append(_Span(base + begin, acks[first], times[first], frames[first], times[last], frames[last]))
    return spans


@lru_cache(maxsize=1024)
def reply_words(line: bytes, most: int) -> tuple[str, str | None]:
    """Text and enhanced status code of a reply of one line: servers say the same again and again."""
    told = grammar.reply_text([line], most)
    return told, grammar.enhanced_code(told)


def _parameters(found: re.Match[bytes]) -> str | None:
    """Mail-parameters or Rcpt-parameters."""
    return text(found[3].strip()) or None if found[3] else None
