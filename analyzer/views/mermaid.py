"""One message as a Mermaid sequence diagram."""

from collections.abc import Iterator

from analyzer.mail.records import Hop
from analyzer.views.text import Look, clock, duration
from analyzer.views.trace import Question, Trace, asked

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,@_/()+=-")
"""ASCII that Mermaid shows as it stands wherever it stands."""
_NAME = 40
_REPLY = 80
"""Columns that a host's name and a reply may take."""


def diagram(trace: Trace) -> str:
    """Hops and lookups in time order; what was not seen in packets has a dotted arrow."""
    return _Diagram(trace).text


class _Diagram:
    """Participants in the order they appear, and the lines between them."""

    def __init__(self, trace: Trace) -> None:
        self._numbers: dict[str, str] = {}
        self._lines = ["sequenceDiagram"]
        steps: list[tuple[int, Iterator[str]]] = []
        for hop in trace.hops:
            client = self._participant(hop.client_ip, hop.client_role, hop.client_name)
            server = self._participant(hop.server_ip, hop.server_role, hop.server_name)
            steps.append((hop.ts_start or 0, self._hop(hop, client, server)))
        for question in asked(trace.dns):
            client = self._participant(question.client_ip, None, None)
            server = self._participant(question.server.rpartition(" ")[2], question.server.rpartition(" ")[0], None)
            steps.append((question.ts or 0, self._question(question, client, server)))
        for _, lines in sorted(steps, key=lambda step: step[0]):
            self._lines += [f"    {line}" for line in lines]
        self.text = "\n".join(self._lines) + "\n"

    def _participant(self, ip: str | None, role: str | None, name: str | None) -> str:
        key = ip or name or "unseen"
        if key not in self._numbers:
            self._numbers[key] = f"H{len(self._numbers) + 1}"
            words = [role.upper() if role and len(role) <= 4 else role, name or ip or "unseen"]
            self._lines.append(f"    participant {self._numbers[key]} as {label(' '.join(filter(None, words)), _NAME)}")
        return self._numbers[key]

    @staticmethod
    def _hop(hop: Hop, client: str, server: str) -> Iterator[str]:
        arrow = "->>" if hop.basis == "observed" else "-->>"
        tls = "" if hop.tls in (None, "none") else " TLS"
        yield f"{client}{arrow}{server}: {hop.hop}. {hop.kind} {hop.protocol.upper()}{tls} {clock(hop.ts_start)}"
        reply = label(" ".join(str(part) for part in (hop.code, hop.reply_text) if part), _REPLY)
        took = f"({duration((hop.ts_end - hop.ts_start) / 1e9)})" if hop.ts_end is not None and hop.ts_start is not None else ""
        yield f"{server}-->>{client}: {' '.join(filter(None, [hop.outcome, reply, took]))}"

    @staticmethod
    def _question(question: Question, client: str, server: str) -> Iterator[str]:
        yield f"{client}->>{server}: {label(', '.join(question.qtypes) + ' ' + question.qname, _REPLY)}"
        yield f"{server}-->>{client}: {label(question.said, _REPLY)}"


def label(text: str, columns: int) -> str:
    """Traffic's text as a label: every character that Mermaid might act on is a character reference.

    The bare word `end` closes a block wherever it stands, so its first letter is one, too.
    """
    words = _words(Look().short(text, columns))
    return "".join(f"#{ord(word[0])};{word[1:]}" if word.lower() == "end" else word for word in words)


def _words(text: str) -> Iterator[str]:
    """Runs of letters, and every other character by itself, harmless."""
    word = ""
    for char in text:
        if char.isalpha():
            word += char
            continue
        if word:
            yield word
        word = ""
        yield char if char in _PLAIN else f"#{ord(char)};"
    if word:
        yield word
