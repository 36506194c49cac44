"""The HTML report: one file, no network, text stays text; and, where there is a Chromium, read as a person reads it."""

import json
import re
import shutil
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic

from analyzer.cli import main
from analyzer.limits import Limits
from analyzer.mail.records import Authentication
from analyzer.pipeline import run
from analyzer.tables import Tables
from analyzer.views import report
from analyzer.views.drawing import Arrow, draw
from analyzer.views.telling import PHASES
from analyzer.views.trace import gather

ROOT = Path(__file__).resolve().parents[2]
STORY = ROOT / "captures" / "story.pcapng"
TORTURE = ROOT.parent / "shared" / "torture" / "cases"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}\u202e\x1b]0;x\x07\u2028"


def page(tables: Tables, limits: Limits | None = None) -> str:
    return "".join(report.parts(tables, synthetic.sources(), limits))


def island(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def details(text: str) -> list[Any]:
    blocks = re.findall(r'<script type="text/plain" id="block-\d+">([^<]*)</script>', text)
    return [row for block in blocks for row in json.loads(zlib.decompress(b64decode(block)))]


class Elements(HTMLParser):
    """Names and attributes of every element, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


# the file


def test_nothing_is_loaded_and_nothing_runs_but_its_own_script(tables):
    text = page(tables)
    found = Elements(text).found
    policy = next(attributes["content"] for tag, attributes in found if attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag in ("script", "style"):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert inside and f"'sha256-{b64encode(sha256(inside[1].encode()).digest()).decode()}'" in policy
    links = {value for _, attributes in found for name in ("src", "href", "action", "data") if (value := attributes.get(name))}
    assert all(link.startswith("#") for link in links)
    assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name == "style"]


def test_every_message_is_in_the_list_with_what_the_table_says(tables):
    data = island(page(tables))
    names = data["shapes"]["Entry"]
    rows = [dict(zip(names, row, strict=True)) for row in data["messages"]]
    assert [(row["trace_id"], row["message_id"], row["subject"], row["outcome"], row["hops"]) for row in rows] == [
        (synthetic.TRACE, "<1@example.org>", "Minutes", "mixed", 4)
    ]
    assert rows[0]["to"] == "bob@example.net, carol@example.net"
    assert "550" in rows[0]["reply"]


def test_the_drawing_of_a_message_survives_its_packing(tables):
    (message,) = tables.rows("messages")
    whole = draw(gather(tables, message))
    (detail,) = details(page(tables))
    drawing = dict(zip(whole._fields, detail[0], strict=True))
    for name in ("origin", "lanes", "rows", "scale", "omitted"):
        assert json.dumps(drawing[name]) == json.dumps(getattr(whole, name))
    columns = dict(zip(Arrow._fields, drawing["arrows"], strict=True))
    for name in ("at", "frame"):
        before, values = 0, []
        for step in columns[name]:
            before += step or 0
            values.append(None if step is None else before)
        assert values == [getattr(arrow, name) for arrow in whole.arrows]
    assert columns["text"] == [arrow.text for arrow in whole.arrows]


def test_hostile_text_stays_text_in_every_place():
    tables = Tables()
    tables.add("messages", synthetic.message(subject=HOSTILE, message_id=HOSTILE, mail_from=HOSTILE, header_to=HOSTILE))
    tables.add(
        "hops",
        synthetic.hop(
            1,
            client_name=HOSTILE,
            server_name=HOSTILE,
            client_ip="192.0.2.1",
            server_ip="192.0.2.2",
            code=250,
            reply_text=HOSTILE,
        ),
    )
    text = page(tables)
    names = [tag for tag, _ in Elements(text).found]
    assert "img" not in names
    assert names.count("script") == 3  # the island, one block, the reader
    assert "<script>alert" not in text
    for bad in "\x1b\x07\u202e\u2028":
        assert bad not in text
    names = island(text)["shapes"]["Entry"]
    subject = island(text)["messages"][0][names.index("subject")]
    assert subject.startswith("</script><script>alert(1)</script><img")
    assert "{{7*7}}\\u202e" in subject


def test_an_island_holds_nothing_that_ends_it():
    value = {"a": "</script><!--<script>]]>&amp;\u2028"}
    text = report.island(value)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == value


def test_messages_beyond_the_limit_are_counted_not_hidden():
    tables = Tables()
    tables.extend("messages", [synthetic.message(trace_id=f"{i:016x}", ts_first=synthetic.at(i)) for i in range(7)])
    text = page(tables, Limits(report_messages=5))
    assert len(island(text)["messages"]) == 5
    assert len(details(text)) == 5
    assert "first 5 of 7 messages" in text


def test_an_empty_analysis_is_a_report_too():
    text = page(Tables())
    assert island(text)["messages"] == []
    assert "No message was seen." in text


def test_delays_are_median_and_95th_percentile():
    tables = Tables()
    for i in range(1, 21):
        begun = synthetic.at(i)
        tables.add(
            "hops",
            synthetic.hop(
                1,
                trace_id=f"{i:016x}",
                client_role="msa",
                server_role="mx",
                ts_start=begun,
                ts_end=begun + i * 10**9,
                accept_s=i * 1.0,
            ),
        )
    cells = re.sub(r"<[^>]*>", " ", page(tables).split("relay MSA → MX", 1)[1].split("</tr>", 1)[0]).split()
    assert cells[0] == "20"
    assert " ".join(cells[1:]) == "10.5 s 19.1 s 10.5 s 19.1 s"


def test_the_command_writes_the_file_and_says_so(tmp_path, capsys):
    path = tmp_path / "report.html"
    assert main(["report", str(STORY), "-o", str(path)]) == 0
    assert f"wrote {path}" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [made.name for made in tmp_path.iterdir()] == ["report.html"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, capsys):
    assert main(["report", str(STORY), "-o", str(tmp_path / "none" / "report.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def _torture() -> list[Path]:
    wanted = [f"{number}-*.json" for number in range(360, 370)]
    return sorted(path for pattern in wanted for path in TORTURE.glob(pattern))


@pytest.mark.skipif(not TORTURE.is_dir(), reason="the torture cases are not beside this tree")
def test_torture_cases_stay_text():
    cases = {path: json.loads(path.read_text()) for path in TORTURE.glob("*.json")}
    chosen = {path: case for path, case in cases.items() if path in _torture() or case.get("html_must_not_contain")}
    assert any(case.get("html_must_not_contain") for case in chosen.values())
    for path, case in sorted(chosen.items()):
        result = run([str(path.with_name(case["file"]))])
        text = "".join(report.parts(result.tables, result.sources))
        for bad in case.get("html_must_not_contain", ()):
            assert bad not in text, f"{path.name}: {bad}"
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), path.name
        names = [tag for tag, _ in Elements(text).found]
        assert set(names) <= KNOWN, path.name
        text.encode()


KNOWN = set(
    "html head meta title style body a header h1 p dl div dt dd main section h2 noscript label input button b code strong table "
    "thead tr tbody th td svg text rect path line details summary span small footer script".split()
)
"""Elements that the report itself is made of."""


# in a browser


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)


FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = _chromium()
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield made
        made.close()


class Reader:
    """A page and everything it asked for or complained of."""

    def __init__(self, browser: Any, path: Path, fragment: str = "", **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("dialog " + dialog.message), dialog.dismiss()))
        self.url = path.as_uri() + fragment
        self.page.goto(self.url)
        self.page.wait_for_selector("#list tbody")

    def close(self) -> None:
        """Nothing but the file itself was asked for, and nothing went wrong."""
        assert {url.partition("#")[0] for url in self.asked} == {self.url.partition("#")[0]}
        assert self.complaints == []
        self.context.close()

    def rows(self) -> list[str]:
        found: list[str] = self.page.locator("#rows tr[data-trace]").evaluate_all("rows => rows.map(row => row.dataset.trace)")
        return found

    def bars(self) -> list[dict[str, Any]]:
        script = """bars => bars.map(bar => ({phase: bar.dataset.phase, hop: Number(bar.dataset.hop),
            start: Number(bar.dataset.start), length: Number(bar.dataset.length),
            x: bar.x && bar.x.baseVal.value, width: bar.width && bar.width.baseVal.value}))"""
        found: list[dict[str, Any]] = self.page.locator("#waterfall [data-phase]").evaluate_all(script)
        return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tables]:
    path = tmp_path_factory.mktemp("report") / "story report.html"
    result = run([str(STORY)])
    report.write(path, result.tables, result.sources)
    return path, result.tables


def test_a_reader_searches_opens_and_finds_the_bars_where_the_tables_say(browser, story):
    path, tables = story
    reader = Reader(browser, path)
    page = reader.page
    first, second = tables.rows("messages")
    assert reader.rows() == [first.trace_id, second.trace_id]
    page.fill("#search", "subject:photos -lunch")
    assert reader.rows() == [second.trace_id]
    assert page.inner_text("#found") == "1 of 2 messages"
    page.fill("#search", "")
    for message in (second, first):
        page.click(f'tr[data-trace="{message.trace_id}"] td:nth-child(4)')
        page.locator("#subject", has_text=message.subject).wait_for()
        assert page.url.endswith("#m=" + message.trace_id)
        _bars_match(reader, tables, message)
    reader.close()


def _bars_match(reader: Reader, tables: Tables, message: Any) -> None:
    """Start and length of each hop's bars are the tables', and in true scale so are their pixels."""
    bars, trace = reader.bars(), gather(tables, message)
    hops = [hop for hop in tables.rows("hops") if hop.trace_id == message.trace_id]
    of = {(bar["hop"], bar["phase"]): bar for bar in bars if bar["phase"] not in ("dns", "event", "tried")}
    for hop in hops:
        starts = {"whole": hop.ts_start, "envelope": hop.ts_start, "transfer": hop.ts_data, "accept": hop.ts_eom}
        for phase, start in starts.items():
            if (hop.hop, phase) in of:
                assert of[hop.hop, phase]["start"] == start - message.ts_first
        assert of[hop.hop, "whole"]["length"] == hop.ts_end - hop.ts_start
        for name in PHASES:
            value, bar = getattr(hop, name), of.get((hop.hop, name[:-2]))
            if name == "queue_s" and trace.tries(hop):
                value = (trace.waited(hop) or (0, 0.0))[1]
            if name != "dns_s" and value is not None and value >= 0.001:
                assert bar is not None, (hop.hop, name)
                assert bar["length"] == pytest.approx(value * 1e9, abs=2)
    lookups = [row for row in tables.rows("dns") if row.trace_id == message.trace_id]
    starts = {bar["start"] for bar in bars if bar["phase"] == "dns"}
    assert starts and starts <= {row.ts - message.ts_first for row in lookups}
    if reader.page.locator("#straight").count():
        reader.page.check("#straight")
        bars = reader.bars()
        reader.page.uncheck("#straight")
    drawn = [bar for bar in bars if bar["x"] is not None]
    low, high = min(drawn, key=lambda b: b["start"]), max(drawn, key=lambda b: b["start"])
    pace = (high["x"] - low["x"]) / (high["start"] - low["start"])
    for bar in drawn:
        assert bar["x"] == pytest.approx(low["x"] + (bar["start"] - low["start"]) * pace, abs=0.5)
        assert bar["width"] == pytest.approx(max(bar["length"] * pace, 2), abs=0.5)


def test_a_late_message_shows_its_tries_its_waits_and_where_the_time_went(browser, tmp_path):
    result = run([str(STORY.with_name("delay.pcapng"))])
    path = tmp_path / "late.html"
    report.write(path, result.tables, result.sources)
    reader = Reader(browser, path)
    page = reader.page
    for message in result.tables.rows("messages"):
        page.click(f'tr[data-trace="{message.trace_id}"] td:nth-child(4)')
        page.locator("#subject", has_text=message.subject).wait_for()
        _bars_match(reader, result.tables, message)
        trace = gather(result.tables, message)
        assert page.inner_text(".spent") == "Where the time went: " + trace.time_went
        tried = [f"tried {step.peer_ip}" for step in trace.failed() if step.peer_ip == "10.2.0.99"]
        assert [text for text in page.locator("#waterfall text").all_text_contents() if text.startswith("tried 10.")] == tried
        waits = [bar for bar in reader.bars() if bar["phase"] == "queue"]
        assert sorted(bar["length"] for bar in waits) == sorted(
            round(found[1] * 1e9) for hop in trace.hops if (found := trace.waited(hop)) is not None
        )
    reader.close()


OVERLAPS = """() => {
  const texts = [...document.querySelectorAll("#waterfall text")].map((it) => [it.textContent, it.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  return texts.flatMap(([a, one], i) => texts.slice(i + 1).filter(([, other]) => meet(one, other)).map(([b]) => [a, b]));
}"""
"""Pairs of words that stand on each other."""


@pytest.mark.parametrize("name", ["story", "delay", "town"])
def test_no_word_of_a_waterfall_stands_on_another(browser, tmp_path, name):
    result = run([str(STORY.with_name(f"{name}.pcapng"))])
    path = tmp_path / "words.html"
    report.write(path, result.tables, result.sources)
    reader = Reader(browser, path)
    for message in result.tables.rows("messages"):
        if message.subject is None:
            continue
        reader.page.evaluate("(id) => { location.hash = 'm=' + id; }", message.trace_id)
        reader.page.locator("#subject", has_text=message.subject).wait_for()
        assert reader.page.locator("#waterfall text").count()
        assert reader.page.evaluate(OVERLAPS) == []
    reader.close()


def test_what_was_not_seen_is_said_with_the_message(browser, tmp_path):
    tables = Tables()
    tables.add("messages", synthetic.message())
    tables.add("hops", synthetic.hop(1, basis="claimed", ts_end=synthetic.at(1)))
    path = tmp_path / "unseen.html"
    report.write(path, tables, synthetic.sources())
    reader = Reader(browser, path)
    reader.page.locator("#message", has_text="trace fields of the message claim it").wait_for()
    reader.close()


def test_what_the_senders_domains_say_stands_beside_what_the_server_wrote(browser, tmp_path):
    tables = Tables()
    tables.add("messages", synthetic.message())
    tables.add("hops", synthetic.hop(1, ts_end=synthetic.at(1)))
    facts = {"trace_id": synthetic.TRACE, "hop": 1, "domain": "example.org", "claimed_by": "mx.example.net"}
    for row in (
        synthetic.row(Authentication, **facts, method="dmarc", result="not in the capture", reason="TXT _dmarc", policy=None),
        synthetic.row(Authentication, **facts, method="spf", result="pass", reason="ip4 matched", claimed="pass", agrees=True),
        synthetic.row(
            Authentication, **facts, method="dkim", selector="s1", result="fail", reason=HOSTILE, claimed="pass", agrees=False
        ),
    ):
        tables.add("authentication", row)
    path = tmp_path / "verdicts.html"
    report.write(path, tables, synthetic.sources())
    reader = Reader(browser, path)
    page = reader.page
    page.click("#tab-evidence")
    page.wait_for_selector("table.verdicts")
    cells = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    rows = page.locator("table.verdicts tbody tr").evaluate_all(cells)
    assert [row[:4] for row in rows] == [
        ["1", "SPF", "pass", "example.org"],
        ["1", "DKIM", "fail", "example.org, key s1"],
        ["1", "DMARC", "not in the capture", "example.org"],
    ]
    assert [row[5] for row in rows] == ["pass (mx.example.net)", "pass (mx.example.net), which is not the same", ""]
    assert "<script>alert(1)</script>" in rows[1][4]
    styles = page.locator("table.verdicts tbody td:nth-child(3) span").evaluate_all("all => all.map(each => each.className)")
    assert styles == ["good", "bad", ""]
    reader.close()


def test_a_permalink_opens_its_message(browser, story):
    path, tables = story
    _, second = tables.rows("messages")
    reader = Reader(browser, path, "#m=" + second.trace_id)
    reader.page.wait_for_selector("#subject")
    assert reader.page.inner_text("#subject") == second.subject
    assert reader.page.get_attribute(f'tr[data-trace="{second.trace_id}"]', "aria-current") == "true"
    reader.close()


def test_the_keyboard_alone_reaches_everything(browser, story):
    path, tables = story
    _, second = tables.rows("messages")
    reader = Reader(browser, path)
    page = reader.page
    page.focus("#rows a[tabindex='0']")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator("#subject", has_text=second.subject).wait_for()
    assert page.evaluate("document.activeElement.id") == "subject"
    page.focus("#tab-waterfall")
    for tab in ("ladder", "steps", "evidence"):
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == f"tab-{tab}"
        assert page.is_visible(f"#panel-{tab}")
        assert page.get_attribute(f"#tab-{tab}", "aria-selected") == "true"
    nameless = "els => els.filter(e => !(e.textContent.trim() || e.ariaLabel || (e.labels && e.labels.length))).length"
    assert page.locator("button, a, input").evaluate_all(nameless) == 0
    reader.close()


def test_steps_name_their_frames_and_the_filter_can_be_copied(browser, story):
    path, tables = story
    first, _ = tables.rows("messages")
    reader = Reader(browser, path, "#m=" + first.trace_id)
    page = reader.page
    page.click("#tab-steps")
    arrows = draw(gather(tables, first)).arrows
    assert page.locator("#panel-steps tbody tr:not(.group)").count() == len(arrows)
    shown = page.locator("#panel-steps code").all_inner_texts()
    assert shown == [f"frame.number == {arrow.frame}" for arrow in arrows if arrow.frame is not None]
    reader.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#panel-steps button >> nth=0")
    page.locator("#said", has_text="Copied").wait_for(state="attached")
    assert page.inner_text("#said") == "Copied: " + shown[0]
    assert page.locator("#ladder .lanes text.bold").count() == len(draw(gather(tables, first)).lanes)
    reader.close()


def test_ten_thousand_messages_keep_few_rows_in_the_page(browser, tmp_path):
    tables = Tables()
    tables.extend(
        "messages",
        [
            synthetic.message(trace_id=f"{i:016x}", ts_first=synthetic.at(i), subject=f"number {i}", elapsed_s=float(i))
            for i in range(10_000)
        ],
    )
    path = tmp_path / "many.html"
    report.write(path, tables, synthetic.sources())
    reader = Reader(browser, path)
    page = reader.page
    assert len(reader.rows()) < 80
    page.evaluate("document.querySelector('#scroller').scrollTop = 1e9")
    page.wait_for_selector(f'tr[data-trace="{9999:016x}"]')
    assert len(reader.rows()) < 80
    page.click("#heads .c-elapsed_s button")
    page.click("#heads .c-elapsed_s button")
    assert reader.rows()[0] == f"{9999:016x}"
    assert page.get_attribute("#heads .c-elapsed_s", "aria-sort") == "descending"
    page.fill("#search", 'subject:"number 77"')
    assert page.inner_text("#found") == "111 of 10,000 messages"
    reader.close()


def test_hostile_text_is_shown_and_does_nothing(browser, tmp_path):
    tables = Tables()
    tables.add("messages", synthetic.message(subject=HOSTILE, message_id="<x onclick=alert(1)>", mail_from=HOSTILE))
    tables.add(
        "hops",
        synthetic.hop(
            1,
            client_name=HOSTILE,
            server_name=HOSTILE,
            ts_start=synthetic.at(0),
            ts_end=synthetic.at(1),
            code=250,
            reply_text=HOSTILE,
        ),
    )
    path = tmp_path / "hostile.html"
    report.write(path, tables, synthetic.sources())
    reader = Reader(browser, path)
    reader.page.wait_for_selector("#waterfall svg")
    assert reader.page.inner_text("#subject").startswith("</script><script>alert(1)</script><img src=x onerror=alert(2)>{{7*7}}")
    for tab in ("ladder", "steps", "evidence"):
        reader.page.click("#tab-" + tab)
    assert reader.page.locator("img").count() == 0
    reader.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark_narrow_and_on_paper(browser, story, scheme):
    reader = Reader(browser, story[0], viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page = reader.page
    page.wait_for_selector("#waterfall svg")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert _contrast(ink, paper) > 7
    page.emulate_media(media="print", color_scheme=scheme)
    assert all(page.is_visible(f"#panel-{tab}") for tab in ("waterfall", "ladder", "steps", "evidence"))
    assert not page.is_visible("#search")
    reader.close()


def _contrast(one: str, other: str) -> float:
    """Contrast of two colours (WCAG 2.2)."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)
