"""Who talks to whom: hosts by role from left to right, and how many messages went between them, as SVG and as rows."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from analyzer.mail.records import Hop, Host
from analyzer.tables import Tables
from analyzer.views.drawing import NAME, Svg, fit, role_word
from analyzer.views.text import Look, counted

COLUMNS = ("mua", "msa", "mta", "mx", "mda", "store", "reader")
"""Roles from left to right; a `store` serves mailboxes, a `reader` is a MUA that fetches."""
MOST = 12
"""Hosts drawn in one column."""
_GAP, _LINE, _BOX, _TOP = 172, 66, 136, 34
_LOOK = Look()


class Node(NamedTuple):
    """A host in one of its roles."""

    role: str
    name: str
    address: str


class Edge(NamedTuple):
    """Messages that went from one host to another."""

    start: Node
    end: Node
    protocols: str
    messages: int
    seen: bool
    """In packets; else only claimed by trace fields."""


class RoleMap:
    """Hosts by role and the messages between them."""

    def __init__(self, tables: Tables) -> None:
        self._hosts: dict[str, Host] = {ip: host for host in tables.rows("hosts") for ip in host.ips}
        traces: dict[tuple[Node, Node], set[str]] = defaultdict(set)
        protocols: dict[tuple[Node, Node], set[str]] = defaultdict(set)
        seen: dict[tuple[Node, Node], bool] = defaultdict(bool)
        for hop in tables.rows("hops"):
            ends = self._ends(hop)
            traces[ends].add(hop.trace_id)
            protocols[ends].add(hop.protocol.upper())
            seen[ends] |= hop.basis != "claimed"
        self.edges = [Edge(*ends, ", ".join(sorted(protocols[ends])), len(ids), seen[ends]) for ends, ids in traces.items()]
        self.edges.sort(key=lambda e: (COLUMNS.index(e.start.role), COLUMNS.index(e.end.role), -e.messages, e))

    def _ends(self, hop: Hop) -> tuple[Node, Node]:
        reader = hop.kind == "retrieve"
        client = self._node(hop.client_ip, hop.client_name, "reader" if reader else hop.client_role, "mua")
        server = self._node(hop.server_ip, hop.server_name, hop.server_role, "mta")
        return (server, client) if reader else (client, server)

    def _node(self, ip: str | None, name: str | None, role: str | None, otherwise: str) -> Node:
        """By the host table, so that a host with several addresses or names is one."""
        host = self._hosts.get(ip or "")
        ip = host.ips[0] if host else ip
        name = (host.names[0] if host and host.names else name) or ip or "unseen host"
        role = "store" if role in ("pop3", "imap") else role
        return Node(role if role in COLUMNS else otherwise, _LOOK.short(name, NAME), _LOOK.safe(ip))

    def rows(self) -> list[tuple[str, str, str, str, str, int, str]]:
        """The map as a table: role and host, role and host, protocol, messages, seen or claimed."""
        return [
            (_word(e.start.role), e.start.name, _word(e.end.role), e.end.name, e.protocols, e.messages, _basis(e))
            for e in self.edges
        ]

    def svg(self) -> str:
        """The map as a picture."""
        columns = _columns(self.edges)
        if not columns:
            return ""
        places = {
            node: (20 + _GAP * x, _TOP + _LINE * y) for x, (_, nodes) in enumerate(columns) for y, node in enumerate(nodes[:MOST])
        }
        deepest = max(len(nodes[:MOST]) for _, nodes in columns)
        more = any(len(nodes) > MOST for _, nodes in columns)
        width = 40 + _GAP * (len(columns) - 1) + _BOX
        height = _TOP + _LINE * deepest + (24 if more else 12)
        svg = Svg(width, height, f"Role map: {counted(len(self.edges), 'way')} that messages took")
        for x, (role, nodes) in enumerate(columns):
            svg.text(20 + _GAP * x, 18, _word(role), font_weight="600")
            if len(nodes) > MOST:
                svg.text(20 + _GAP * x, height - 6, f"and {len(nodes) - MOST:,} more", font_size=11, fill_opacity=0.7)
        labels: list[tuple[float, float, int]] = []
        lanes: set[float] = set()
        for edge in self.edges:
            if edge.start in places and edge.end in places:
                _edge(svg, edge, places[edge.start], places[edge.end], labels, lanes)
        for node, (left, top) in places.items():
            store = places.get(node._replace(role="store"))
            if node.role == "mda" and store is not None:
                _same(svg, (left, top), store)
        for node, (left, top) in places.items():
            svg.add(
                "rect",
                title=f"{node.name} {node.address}",
                x=left,
                y=top,
                width=_BOX,
                height=38,
                rx=5,
                class_="mh-box",
                fill_opacity=0.06,
                stroke="currentColor",
                stroke_opacity=0.45,
            )
            svg.text(left + 8, top + 16, fit(node.name, _BOX - 14), font_size=12)
            address = node.address if node.address != node.name else ""
            svg.text(left + 8, top + 31, fit(address, _BOX - 14), font_size=11, fill_opacity=0.65)
        for at, level, messages in labels:
            svg.text(at, level - 4, f"{messages:,}", class_="mh-count", text_anchor="middle", font_size=11, font_weight="600")
        return str(svg)

    def _repr_html_(self) -> str:
        from analyzer.views.notebook import role_map_html

        return role_map_html(self)

    def __repr__(self) -> str:
        return "\n".join(
            f"{a} {b} {'->' if basis == 'seen' else '..>'} {c} {d}  {protocol}  {counted(n, 'message')}"
            for a, b, c, d, protocol, n, basis in self.rows()
        )


def _word(role: str) -> str:
    return {"reader": "MUA (reads)", "store": "POP3, IMAP"}.get(role) or role_word(role)


def _basis(edge: Edge) -> str:
    return "seen" if edge.seen else "claimed"


def _columns(edges: Iterable[Edge]) -> list[tuple[str, list[Node]]]:
    """Columns that have hosts; the busiest hosts first."""
    weights: dict[Node, int] = defaultdict(int)
    for edge in edges:
        weights[edge.start] += edge.messages
        weights[edge.end] += edge.messages
    by_role: dict[str, list[Node]] = defaultdict(list)
    for node in sorted(weights, key=lambda n: (-weights[n], n)):
        by_role[node.role].append(node)
    return [(role, by_role[role]) for role in COLUMNS if role in by_role]


def _same(svg: Svg, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A host that both delivers and serves mailboxes: a dotted line between its two places."""
    svg.add(
        "path",
        title="the same host: no packets between",
        d=f"M{start[0] + _BOX} {start[1] + 19}L{end[0]} {end[1] + 19}",
        fill="none",
        stroke="currentColor",
        stroke_opacity=0.5,
        stroke_width=1.5,
        stroke_dasharray="1.5 4",
    )


def _free(curve: Sequence[tuple[float, float]], labels: Iterable[tuple[float, float, int]]) -> tuple[float, float]:
    """Where on a Bezier curve a number may stand: half way, or where no other number is near."""
    taken = list(labels)
    shares = [0.45, *(step / 20 for step in range(2, 18))]
    places = []
    for t in shares:
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
        places.append(
            (
                sum(w * x for w, (x, _) in zip(weights, curve, strict=True)),
                sum(w * y for w, (_, y) in zip(weights, curve, strict=True)),
            )
        )
    return next(
        (place for place in places if all(abs(place[0] - x) > 24 or abs(place[1] - y) > 12 for x, y, _ in taken)), places[0]
    )


def _edge(
    svg: Svg,
    edge: Edge,
    start: tuple[float, float],
    end: tuple[float, float],
    labels: list[tuple[float, float, int]],
    lanes: set[float],
) -> None:
    """A line from box to box: past hosts of other columns it runs between them; one that goes back leaves downwards."""
    forward = end[0] > start[0]
    y1, y2 = start[1] + 19, end[1] + 19
    x1, x2 = start[0] + _BOX, end[0] - 1
    if forward and end[0] - start[0] > _GAP:
        level = (y1 + _LINE / 2 if y1 == y2 else max(y1, y2) - _LINE / 2) + 2  # between two lines of hosts, past the columns
        while level in lanes:
            level += 5
        lanes.add(level)
        turn = _GAP - _BOX - 6
        path = f"M{x1:g} {y1:g}C{x1 + turn / 2:g} {y1:g} {x1 + turn / 2:g} {level:g} {x1 + turn:g} {level:g}"
        path += f"H{x2 - turn - 6:g}C{x2 - 6 - turn / 2:g} {level:g} {x2 - 6 - turn / 2:g} {y2:g} {x2 - 6:g} {y2:g}"
        at = x1 + turn + 14
        while any(abs(at - x) < 24 and abs(level - y) < 16 for x, y, _ in labels):
            at += 24
    else:
        if forward:
            bend = max((x2 - x1) / 2, 18)
            curve = [(x1, y1), (x1 + bend, y1), (x2 - bend, y2), (x2 - 6, y2)]
        elif end[0] == start[0]:
            x2 = x1
            curve = [(x1, y1), (x1 + 36, y1), (x2 + 36, y2), (x2 + 6, y2)]
        else:
            x1, x2 = start[0], end[0] + _BOX
            curve = [(x1, y1), (x1 - 40, y1 + 26), (x2 + 40, y2 + 26), (x2 + 6, y2 + 4)]
        path = "M{} {}C{} {} {} {} {} {}".format(*(f"{number:g}" for point in curve for number in point))
        at, level = _free(curve, labels)
    title = f"{edge.messages:,} by {edge.protocols} from {edge.start.name} to {edge.end.name}, {_basis(edge)}"
    thick = min(1 + edge.messages.bit_length() * 0.5, 7)
    dash = None if edge.seen else "5 4"
    svg.add(
        "path",
        title=title,
        d=path,
        fill="none",
        stroke="currentColor",
        stroke_opacity=0.5,
        stroke_width=thick,
        stroke_dasharray=dash,
    )
    svg.head(x2, y2 if forward or x1 == x2 else y2 + 4, 1 if forward else -1, fill_opacity=0.7)
    labels.append((at, level, edge.messages))
