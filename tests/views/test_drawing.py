"""One drawing of a message: its bars stand where the tables say, its axis keeps order, nothing in it acts."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from analyzer.mail.records import Step
from analyzer.protocols.base import SessionRow
from analyzer.tables import Tables
from analyzer.views.drawing import ARROWS, Drawing, draw, folded, folds, ladder, place, ticks, waterfall
from analyzer.views.rolemap import RoleMap
from analyzer.views.telling import PHASES
from analyzer.views.trace import Trace, find, gather, gather_all

SVG = "{http://www.w3.org/2000/svg}"
BAD = "</title><script>alert(1)</script>\x1b]52;c;eA==\x07\u202e&\"'\ud800"
SECOND = 1_000_000_000


@pytest.fixture
def trace(tables: Tables) -> Trace:
    return find(tables, "<1@example.org>")


def row_of(drawing: Drawing, hop: int):
    return next(row for row in drawing.rows if row.kind == "hop" and row.hop == hop)


def bars_of(drawing: Drawing, hop: int):
    return {bar.phase: bar for bar in row_of(drawing, hop).bars}


# bars


def timed(number, begin, **values):
    """A hop seen whole: MAIL at `begin` seconds, 0.2 s envelope, 0.3 s message, 0.1 s until the reply."""
    ends = {"ts_start": 0.0, "ts_data": 0.2, "ts_eom": 0.5, "ts_end": 0.6}
    times = {name: synthetic.at(begin + after) for name, after in ends.items()}
    phases = {"envelope_s": 0.2, "transfer_s": 0.3, "accept_s": 0.1}
    return synthetic.hop(number, **{**times, **phases, **values})


def test_phases_of_the_hand_over_follow_one_another():
    bars = bars_of(draw(Trace(synthetic.message(), hops=[timed(1, 0)])), 1)
    assert [(p, bars[p].start, bars[p].length) for p in ("envelope", "transfer", "accept", "whole")] == [
        ("envelope", 0, SECOND // 5),
        ("transfer", SECOND // 5, SECOND * 3 // 10),
        ("accept", SECOND // 2, SECOND // 10),
        ("whole", 0, SECOND * 6 // 10),
    ]


def test_phases_before_mail_end_when_the_timeline_says_that_they_ended():
    def moment(event, seconds):
        return synthetic.row(
            Step, trace_id=synthetic.TRACE, seq=1, ts=synthetic.at(seconds), hop=1, event=event, basis="observed", detail=""
        )

    hop = timed(1, 2, connect_s=0.1, greeting_s=0.5, tls_s=0.4, auth_s=0.3)
    steps = [moment("connect", 0.5), moment("greeting", 1.1), moment("tls", 1.6), moment("auth", 1.95)]
    bars = bars_of(draw(Trace(synthetic.message(), hops=[hop], timeline=steps)), 1)
    assert [(p, bars[p].start / 1e9, bars[p].length / 1e9) for p in ("connect", "greeting", "tls", "auth")] == [
        ("connect", 0.5, 0.1),
        ("greeting", 0.6, 0.5),
        ("tls", 1.2, 0.4),
        ("auth", 1.65, 0.3),
    ]


def test_the_queue_begins_where_the_parent_hop_ended():
    hops = [timed(1, 0), timed(2, 10, queue_s=9.4)]
    bar = bars_of(draw(Trace(synthetic.message(), hops=hops)), 2)["queue"]
    assert (bar.start, bar.length) == (SECOND * 6 // 10, 94 * SECOND // 10)


def test_after_a_refused_try_the_queue_begins_where_the_try_ended():
    to = {"rcpt_to": ["bob@example.net"], "parent_hop": 1}
    hops = [timed(1, 0), timed(2, 1, outcome="deferred", **to), timed(3, 61, queue_s=60.4, **to)]
    bar = bars_of(draw(Trace(synthetic.message(), hops=hops)), 3)["queue"]
    assert (bar.start, bar.length) == (16 * SECOND // 10, 594 * SECOND // 10)


def test_a_claimed_hop_is_a_moment_and_says_so():
    claimed = synthetic.hop(1, basis="claimed", ts_end=synthetic.at(3), session_id=None, first_frame=None)
    drawing = draw(Trace(synthetic.message(), hops=[claimed]))
    assert row_of(drawing, 1).basis == "claimed"
    assert "claimed" in row_of(drawing, 1).result
    assert [(bar.phase, bar.start, bar.length) for bar in row_of(drawing, 1).bars] == [("whole", 3 * SECOND, 0)]


def test_a_hop_in_unreadable_tls_is_as_long_as_its_session():
    hop = synthetic.hop(1, basis="matched", ts_start=synthetic.at(1))
    session = synthetic.row(
        SessionRow, session_id="session1", ts=synthetic.at(1), ts_end=synthetic.at(4), source=synthetic.SOURCE
    )
    drawing = draw(Trace(synthetic.message(), hops=[hop], sessions=[session]))
    assert [(bar.phase, bar.start, bar.length) for bar in row_of(drawing, 1).bars] == [("whole", SECOND, 3 * SECOND)]
    assert "opaque" in row_of(drawing, 1).result


def test_no_bar_is_made_up_for_what_was_not_seen(trace):
    for row, hop in ((row_of(draw(trace), hop.hop), hop) for hop in trace.hops):
        assert {bar.phase for bar in row.bars} - {"whole", "queue"} <= {
            name[:-2] for name in PHASES if getattr(hop, name) is not None
        }


# lanes and arrows


def test_hosts_are_lanes_and_name_servers_stand_last(trace):
    lanes = draw(trace).lanes
    assert len({(lane.name, lane.address) for lane in lanes}) == len(lanes)
    servers = [i for i, lane in enumerate(lanes) if lane.roles in ("resolver", "authoritative")]
    assert servers == list(range(len(lanes) - len(servers), len(lanes)))


def test_arrows_come_in_time_order_between_lanes_that_exist(trace):
    drawing = draw(trace)
    times = [arrow.at for arrow in drawing.arrows if arrow.at is not None]
    assert times and times == sorted(times)
    assert all(0 <= lane < len(drawing.lanes) for arrow in drawing.arrows for lane in (arrow.start, arrow.end))


def test_more_arrows_than_a_drawing_takes_are_counted():
    steps = [
        synthetic.row(
            Step,
            trace_id=synthetic.TRACE,
            seq=i,
            ts=synthetic.at(i),
            hop=1,
            event="rcpt",
            detail="",
            basis="observed",
            actor_ip="192.0.2.1",
        )
        for i in range(ARROWS + 7)
    ]
    drawing = draw(Trace(synthetic.message(), hops=[timed(1, 0)], timeline=steps))
    assert (len(drawing.arrows), drawing.omitted) == (ARROWS, 7)


def test_many_traces_gathered_at_once_draw_as_each_gathered_alone(tables):
    messages = list(tables.rows("messages"))
    assert [draw(trace) for trace in gather_all(tables, messages)] == [draw(gather(tables, message)) for message in messages]


# the time axis

times = st.integers(-(10**15), 10**15)
spans = st.lists(st.tuples(times, st.integers(0, 10**12)), min_size=1, max_size=12)


@given(spans)
def test_the_axis_runs_from_left_to_right_and_keeps_order(lengths):
    made = [(start, start + length) for start, length in lengths]
    scale = folded(made, [end for span in made for end in span])
    assert (scale[0][1], scale[-1][1]) == (0.0, 1.0)
    assert all(a < b and x <= y for (a, x), (b, y) in pairwise(scale))
    places = [place(scale, at) for at in sorted(end for span in made for end in span)]
    assert places == sorted(places)


def test_a_span_that_a_clock_set_back_has_turned_round_leaves_the_axis_whole():
    scale = folded([(50, 20), (50, 60)], [0, 20, 60])
    assert [ns for ns, _ in scale] == sorted({ns for ns, _ in scale})
    assert (scale[0], scale[-1]) == ((0, 0.0), (60, 1.0))


def test_a_pause_longer_than_all_that_happens_is_folded():
    scale = folded([(0, 100), (10_000, 10_100)], [0, 10_100])
    assert folds(scale) == [(100, 10_000)]
    assert place(scale, 100) > 0.4
    assert place(scale, 10_000) < 0.6
    assert all(at <= 100 or at >= 10_000 for at in ticks(scale, 8))


def test_what_needs_no_fold_is_drawn_to_scale():
    scale = folded([(0, 100), (120, 200)], [0, 200])
    assert (scale, folds(scale)) == ([(0, 0.0), (200, 1.0)], [])
    assert ticks(scale, 4) == [0, 50, 100, 150, 200]


def test_nothing_to_draw_is_an_empty_drawing():
    drawing = draw(Trace(synthetic.message()))
    assert (drawing.rows, drawing.arrows, drawing.lanes) == ([], [], [])
    ElementTree.fromstring(waterfall(drawing))
    ElementTree.fromstring(ladder(drawing))


# pictures


def test_pictures_are_well_formed_and_draw_every_row_and_arrow(trace):
    drawing = draw(trace)
    texts = [text.text for text in ElementTree.fromstring(waterfall(drawing)).iter(f"{SVG}text")]
    assert [row.label for row in drawing.rows if row.label in texts] == [row.label for row in drawing.rows]
    heads = list(ElementTree.fromstring(ladder(drawing)).iter(f"{SVG}path"))
    assert len(heads) == sum(arrow.start != arrow.end for arrow in drawing.arrows)


def test_what_was_not_seen_is_dashed(trace):
    root = ElementTree.fromstring(waterfall(draw(trace)))
    assert any(rect.get("stroke-dasharray") == "4 3" for rect in root.iter(f"{SVG}rect"))


def test_nothing_in_a_picture_acts():
    hop = timed(1, 0, client_name=BAD, server_name=BAD, reply_text=BAD, code=250, client_ip="192.0.2.1", server_ip="192.0.2.2")
    step = synthetic.row(
        Step,
        trace_id=synthetic.TRACE,
        seq=1,
        ts=synthetic.at(0),
        hop=1,
        event="mail",
        detail=BAD,
        basis="observed",
        actor_ip="192.0.2.1",
    )
    trace = Trace(synthetic.message(subject=BAD, message_id=BAD), hops=[hop], timeline=[step])
    made = Tables()
    made.add("messages", trace.message)
    made.add("hops", hop)
    for picture in (waterfall(draw(trace)), ladder(draw(trace)), RoleMap(made).svg()):
        root = ElementTree.fromstring(picture)
        assert not [found for found in root.iter() if found.tag.endswith("script")]
        assert not set(picture) & set("\x1b\x07\u202e\ud800")
        picture.encode()
    page = trace._repr_html_()
    assert "<script" not in page
    assert "\x1b" not in page


def test_the_role_map_counts_messages_once_and_marks_what_was_only_claimed(tables):
    rows = RoleMap(tables).rows()
    assert sum(row[5] for row in rows if row[0] == "MUA") == 1
    assert all(row[6] in ("seen", "claimed") for row in rows)
    assert "mx.example.net" in RoleMap(tables).svg()


def test_a_server_that_was_tried_in_vain_has_a_line_under_its_hop():
    step = synthetic.row(
        Step, hop=2, event="connect", ts=synthetic.at(3), actor_ip="10.0.0.1", peer_ip="10.0.0.9", detail="to port 25: refused"
    )
    drawing = draw(Trace(synthetic.message(), hops=[timed(1, 0), timed(2, 5)], timeline=[step]))
    row = next(row for row in drawing.rows if row.kind == "tried")
    assert (row.hop, row.label, row.result) == (2, "tried 10.0.0.9", "to port 25: refused")
    assert [(bar.phase, bar.start) for bar in row.bars] == [("tried", step.ts - drawing.origin)]
