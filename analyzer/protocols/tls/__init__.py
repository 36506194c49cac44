"""TLS in mail connections: what can be read of it, and what is inside when there are keys.

RFC 8446 (1.3), 5246 (1.2), 2246 and 4346 (1.0, 1.1); RFC 3207, 2595 and 9051 for STARTTLS.

Rules of this package:
1. Records first, then handshake messages, then their meaning; each is cut at any octet without harm.
2. Without keys a connection is opaque once both hellos and the first application data were seen: the rest is
   not looked at.
3. A side's records wait for the other side's hello where their meaning hangs on it, never on which came first.
4. Secrets stay in `Secrets` and `Decryptor`: no event, message or name ever holds one.
"""

from analyzer.protocols.tls.layer import Layer
from analyzer.protocols.tls.opaque import OpaqueSession, probe
from analyzer.protocols.tls.secrets import KeyLogs, Secrets, read_key_logs

__all__ = ["KeyLogs", "Layer", "OpaqueSession", "Secrets", "probe", "read_key_logs"]
