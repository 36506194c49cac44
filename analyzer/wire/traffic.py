"""What a capture holds by port, for when nothing of it is mail: was it taken in the right place?"""

import numpy as np

from analyzer.wire.types import I64, Packets

_PORTS = 65536
_NAMED = 3
"""Ports named, those with most packets first, if they have one in a hundred."""
_TCP = 6


class Traffic:
    """Packets of TCP and UDP by the lower port of the two, which is mostly the server's."""

    def __init__(self) -> None:
        self._count: I64 = np.zeros(2 * _PORTS, np.int64)

    def saw(self, packets: Packets) -> None:
        """Count a batch."""
        port = np.minimum(packets.src_port, packets.dst_port).astype(np.int64)
        self._count += np.bincount(port + _PORTS * (packets.protocol == _TCP), minlength=2 * _PORTS)

    def words(self) -> str:
        """`120 packets: TCP port 443 (90 %), UDP port 443 (10 %)`."""
        total = int(self._count.sum())
        if not total:
            return "nothing of TCP or UDP"
        order = np.argsort(-self._count, kind="stable")[:_NAMED]
        most = [
            f"{'TCP' if port >= _PORTS else 'UDP'} port {port % _PORTS} ({self._count[port] / total:.0%})".replace("%", " %")
            for port in order[self._count[order] * 100 >= total].tolist()
        ]
        many = f"{total:,} packet{'s' if total > 1 else ''}"
        return f"{many}: {', '.join(most)}" if most else f"{many} of many ports"
