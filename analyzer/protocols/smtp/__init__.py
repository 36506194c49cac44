"""SMTP (RFC 5321) and LMTP (RFC 2033): a client hands a server messages, and the server says what becomes of them.

With PIPELINING (RFC 2920), CHUNKING (RFC 3030), AUTH (RFC 4954), STARTTLS (RFC 3207), XCLIENT, XFORWARD
and Exchange's XEXCH50.

Rules of this package:
1. The server's octets are replies whatever the client says; the client's octets are read as far as the replies tell
   what they are: only the commands of `session.NEXT` are waited for.
2. A reply belongs to a command by what its segment acknowledges, then by count.  A reply sent before the server had the
   command's first octet does not answer it.
3. A body ends at CRLF . CRLF.  Another end is believed only when the server's replies prove that it saw it.
4. After a loss, replies belong to the last commands of the group that the client sent before it heard them; what the
   client had acknowledged tells what it had heard.  Lines of a body are never read as commands.
5. Secrets: of AUTH the mechanism and the user's name are kept; a line that may be a SASL response is never shown.

grammar (octets -> words) <- transaction (what became of a message) <- dialogue (replies meet commands)
<- recovery (loss, and ends of data that only some see) <- plain (the usual transaction, read at once)
<- session (the states and what commands mean) <- probe
"""

from typing import TYPE_CHECKING, Any

from analyzer.protocols.smtp.probe import probe

if TYPE_CHECKING:
    from analyzer.protocols.smtp.session import Session

__all__ = ["Session", "probe"]


def __getattr__(name: str) -> Any:
    """`Session` is loaded with the first connection that speaks the protocol: the command must start fast."""
    if name == "Session":
        from analyzer.protocols.smtp.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
