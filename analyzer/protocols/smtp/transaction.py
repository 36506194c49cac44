"""A mail transaction (RFC 5321 3.3) while it is under way, and what became of it.

Rules of this file:
1. Only replies that were seen decide.  A message without its final reply is `unknown`, unless the client can be seen
   to have given up before its end (`aborted`).
2. The deciding reply is the one after the data; when no data was taken, the first refusal of the kind that decided:
   of the only sender, else of the recipients when all were refused, else of DATA or BDAT.
3. `partial`: the message was taken for some recipients; its code is the first refusal's, its queue id the final reply's.
4. A refusal of class 4 is `deferred`, of class 5 `rejected`.
"""

from analyzer.protocols.base import MessageCarried, Recipient, SessionInfo
from analyzer.protocols.message import MessageReader
from analyzer.protocols.smtp import grammar
from analyzer.protocols.smtp.queue_ids import queue_id

REFUSED = {4: "deferred", 5: "rejected"}


class Reply:
    """One reply of the server (RFC 5321 4.2)."""

    __slots__ = ("ack", "begin", "code", "end", "enhanced", "frame", "hole", "kind", "lines", "told", "ts", "ts_first")

    def __init__(
        self, code: int | None, lines: list[bytes], begin: int, end: int, ts_first: int | None, ack: int, hole: bool
    ) -> None:
        self.code = code
        """None when its line has none."""
        self.kind = 0 if code is None else code // 100
        """Reply class, the code's first digit; 0 when there is none."""
        self.lines = lines
        """The text of each line, behind the code."""
        self.begin, self.end = begin, end
        """Stream offsets of its first octet and behind its last."""
        self.ack = ack
        """Client octets the server had received, -1 unknown."""
        self.hole = hole
        """Replies before it may be lost."""
        self.ts_first = self.ts = ts_first
        """Time of its first and of its last octet."""
        self.frame: int | None = None
        self.told: str | None = None
        """Its text, once `text` was asked for."""
        self.enhanced: str | None = None
        """Its enhanced status code, known with the text."""

    def coded(self, code: int) -> None:
        """It has this reply code (the last line's, should they differ)."""
        self.code, self.kind = code, code // 100

    def text(self, most: int) -> str:
        """Its text, at most so many characters."""
        if self.told is None:
            self.told = grammar.reply_text(self.lines, most)
            self.enhanced = grammar.enhanced_code(self.told)
        return self.told


class Transaction:
    """From MAIL to its end."""

    __slots__ = (
        "carried",
        "closed",
        "crowded",
        "data_begin",
        "data_done",
        "final_lost",
        "finals",
        "heard",
        "holed",
        "into",
        "last",
        "mail",
        "most",
        "outer",
        "reader",
        "refusal",
        "refused",
        "suspect",
        "unseen",
        "wanted",
    )

    def __init__(self, info: SessionInfo, ts: int | None, frame: int | None, most: int) -> None:
        self.carried = MessageCarried(info, "transaction", 0, ts, None, None, None, frame)
        self.most = most
        self.reader: MessageReader | None = None
        self.mail: Reply | None = None
        """Reply to MAIL."""
        self.refused: list[Reply] = []
        """Refusals of recipients."""
        self.refusal: Reply | None = None
        """Reply that refused DATA or a chunk."""
        self.finals: list[tuple[Recipient | None, Reply | None]] = []
        """Replies after the data: one, or with LMTP one for each recipient that was accepted (RFC 2033 4.2)."""
        self.last: Reply | None = None
        """Whatever reply came last."""
        self.data_begin = -1
        """Stream offset of the first octet of the message."""
        self.heard = 0
        """Server octets that the client had when its message began."""
        self.data_done = False
        """The end of the message was seen."""
        self.unseen = False
        """A reply to MAIL, RCPT or DATA was not seen."""
        self.holed = False
        """Commands of it may be lost, chunks among them."""
        self.final_lost: Reply | None = None
        """The server's last word on commands that are lost, of which one may have been its last chunk."""
        self.outer: Transaction | None = None
        """The transaction that was open when this MAIL was given."""
        self.into: Transaction | None = None
        """The transaction that this MAIL, refused as out of turn, left open: what follows belongs to it."""
        self.wanted: list[Recipient | None] | None = None
        """For whom replies are due after the data; known with the first of them."""
        self.suspect = False
        """Octets in the message may have been taken for its end."""
        self.crowded = False
        """Recipients beyond the limit were left out."""
        self.closed = False

    def answer_rcpt(self, recipient: Recipient, reply: Reply) -> None:
        """Take the reply to RCPT."""
        recipient.code, recipient.reply_text = reply.code, reply.text(self.most)
        recipient.enhanced_code = reply.enhanced
        kind = reply.kind
        if kind == 2:
            recipient.accepted_by_rcpt = True
        elif kind in REFUSED:
            recipient.accepted_by_rcpt = False
            recipient.outcome = REFUSED[kind]
            self.refused.append(reply)
        self.carried.ts_rcpt_done = reply.ts

    def resolved(self) -> "Transaction":
        """The transaction that this one went into."""
        found = self
        while found.into is not None:
            found = found.into
        if self.into is not None:
            self.into = found
        return found

    def accepted_recipients(self) -> list[Recipient]:
        """Those for whom an LMTP server replies after the data; a reply that was not seen counts as accepted."""
        return [r for r in self.carried.recipients if r.accepted_by_rcpt is not False]

    def conclude(self, why: str, ts: int | None, frame: int | None) -> MessageCarried:
        """It is over: by its final reply (`why` "reply"), because the client went on to something else ("client"), or as
        the connection ended (`reset fin timeout capture_end`)."""
        carried, reader = self.carried, self.reader
        if reader is not None:
            carried.content = reader.content(self.data_done)
        if not self.finals and self.final_lost is not None:
            self.finals.append((None, self.final_lost))
        final = [reply for _, reply in self.finals if reply is not None and reply.kind in (2, 4, 5)]
        if final:
            self._by_finals(final)
        elif self.mail is not None and self.mail.kind in REFUSED:
            self._refused_by(self.mail, carried.recipients)
        elif self.refused and len(self.refused) == len(carried.recipients) and not self.data_done:
            self._refused_by(next((r for r in self.refused if r.kind == 4), self.refused[0]), [])
        elif self.refusal is not None:
            self._refused_by(self.refusal, carried.recipients)
        else:
            self._given_up(why, ts, frame)
        self.closed = True
        return carried

    def _decided_by(self, reply: Reply) -> None:
        carried = self.carried
        carried.code, carried.reply_text, carried.enhanced_code = reply.code, reply.text(self.most), reply.enhanced

    def _refused_by(self, reply: Reply, recipients: list[Recipient]) -> None:
        carried = self.carried
        carried.outcome = REFUSED[reply.kind]
        carried.ts_end, carried.last_frame = reply.ts, reply.frame
        self._decided_by(reply)
        self._settle(recipients, reply)

    def _settle(self, recipients: list[Recipient], reply: Reply) -> None:
        """The final word on recipients that RCPT did not refuse."""
        outcome = "accepted" if reply.kind == 2 else REFUSED.get(reply.kind, "unknown")
        code, told, enhanced = reply.code, reply.text(self.most), reply.enhanced
        for each in recipients:
            if each.accepted_by_rcpt is not False:
                each.outcome, each.code, each.enhanced_code, each.reply_text = outcome, code, enhanced, told

    def _by_finals(self, final: list[Reply]) -> None:
        carried = self.carried
        for recipient, reply in self.finals:
            if reply is not None:
                self._settle(carried.recipients if recipient is None else [recipient], reply)
        carried.ts_end, carried.last_frame = final[-1].ts, final[-1].frame
        taken = next((reply for reply in final if reply.kind == 2), None)
        failed = [reply for reply in final if reply.kind != 2]
        if taken is not None:
            carried.queue_id = queue_id(taken.text(self.most))
            failed = self.refused + failed
            carried.outcome = "partial" if failed else "accepted"
            self._decided_by(failed[0] if failed else taken)
        else:
            deciding = next((reply for reply in failed if reply.kind == 4), failed[0])
            carried.outcome = REFUSED[deciding.kind]
            self._decided_by(deciding)

    def _given_up(self, why: str, ts: int | None, frame: int | None) -> None:
        carried = self.carried
        carried.last_frame = frame
        if why not in ("client", "fin", "reset") or self.data_done or self.unseen or (self.holed and self.reader is not None):
            return
        carried.outcome, carried.ts_end = "aborted", ts
        if self.last is not None:
            self._decided_by(self.last)
        for recipient in carried.recipients:
            if recipient.accepted_by_rcpt is not False:
                recipient.outcome = "aborted"
