"""Delivery reports: what they say (RFC 3464, RFC 6533), and the message that each is about."""

import base64
import quopri

import pytest
from builders import MSA, MX, NAMES, RELAY, Post, World, mail, parts, received

from analyzer.limits import Limits
from analyzer.mail import reports
from analyzer.mail.records import Delivery, Message
from analyzer.mail.sightings import original_recipient
from analyzer.mail.story import Story
from analyzer.protocols.base import Recipient

UTF8_STATUS = """Reporting-MTA: dns; mail.b.example
Original-Envelope-Id: =?no?= 77

Original-Recipient: utf-8; {original}
Final-Recipient: utf-8; {final}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 知らない人
"""


def report(
    status: str, *, to: str = "taro@a.example", kind: str = "message/delivery-status", returned: str = "", cte: str = "8bit"
) -> str:
    """A delivery report as MX writes it."""
    octets = status.encode()
    body = {
        "8bit": status,
        "base64": base64.encodebytes(octets.replace(b"\n", b"\r\n")).decode(),
        "quoted-printable": quopri.encodestring(octets).decode(),
    }[cte]
    head = {
        "From": "MAILER-DAEMON@mail.b.example",
        "To": to,
        "Auto-Submitted": "auto-replied",
        "Message-ID": "<dsn@mail.b.example>",
        "Content-Type": 'multipart/report; report-type=delivery-status; boundary="x"',
    }
    text = "".join(f"{name}: {value}\n" for name, value in head.items())
    text += f"\n--x\nContent-Type: text/plain\n\nSorry.\n--x\nContent-Type: {kind}\nContent-Transfer-Encoding: {cte}\n\n{body}"
    return text + (f"\n--x\nContent-Type: message/global-headers\n\n{returned}" if returned else "") + "\n--x--\n"


def body_of(message: str) -> bytes:
    return message.partition("\n\n")[2].replace("\n", "\r\n").encode()


@pytest.mark.parametrize("cte", ["8bit", "base64", "quoted-printable"])
def test_a_global_report_in_any_encoding(cte: str) -> None:
    status = UTF8_STATUS.format(original="はなこ@例え.example", final="hanako@b.example")
    text = report(status, kind="message/global-delivery-status", returned="Message-ID: <1@a.example>\nSubject: 件名\n", cte=cte)
    said = reports.parse(body_of(text), "multipart/report; report-type=delivery-status")
    assert said is not None
    assert (said.kind, said.message_id, said.envelope_id) == ("dsn", "<1@a.example>", "=?no?= 77")
    assert said.fates == (
        reports.Fate("はなこ@例え.example", "hanako@b.example", "failed", "5.1.1", "smtp; 550 5.1.1 知らない人"),
    )


@pytest.mark.parametrize(
    ("typed", "want"),
    [
        ("utf-8; \\x{306F}\\x{306A}\\x{3053}@b.example", "はなこ@b.example"),
        ("UTF-8;\\x{1F4EC}\\x{2B}box@b.example", "📬+box@b.example"),
        ("utf-8; \\x{D800}\\x{110000}@b.example", "\\x{D800}\\x{110000}@b.example"),
        ("rfc822; \\x{41}@b.example", "\\x{41}@b.example"),
        ("rfc822;hanako+2Btag@b.example", "hanako+2Btag@b.example"),
        ("hanako@b.example", "hanako@b.example"),
        ("x400; /C=jp/", "/C=jp/"),
        ("rfc822;", None),
    ],
)
def test_an_address_says_its_type(typed: str, want: str | None) -> None:
    said = reports.parse(f"Final-Recipient: {typed}\nAction: failed\n".encode(), "message/delivery-status")
    assert said is not None
    assert [fate.final for fate in said.fates] == ([want] if want else [])


@pytest.mark.parametrize(
    ("parameters", "want"),
    [
        ("ORCPT=rfc822;hanako+2Btag+40b.example", "hanako+tag@b.example"),
        ("NOTIFY=NEVER ORCPT=rfc822;+E3+81+AF@b.example", "は@b.example"),
        ("ORCPT=utf-8;\\x{306F}\\x{2B}tag@b.example NOTIFY=FAILURE", "は+tag@b.example"),
        ("ORCPT=utf-8;は+41@b.example", "は+41@b.example"),
        ("NOTIFY=NEVER", None),
        (None, None),
    ],
)
def test_the_original_recipient_of_a_rcpt(parameters: str | None, want: str | None) -> None:
    assert original_recipient(Recipient("hanako@b.example", parameters)) == want


def about(world: World, in_parts: bool = False) -> tuple[Message, str | None, dict[str, tuple[str, str | None]]]:
    """The report's row, the Message-ID of what it is about, and what became of that one's recipients.

    `in_parts`: as it is told when there are too many messages to hold.
    """
    story = Story(Limits(story_sightings=2, story_part=1) if in_parts else Limits())
    for event in world.events:
        story.feed(event)
    messages: list[Message] = []
    deliveries: list[Delivery] = []
    for part in parts(story.finish()):
        messages += part.messages
        deliveries += part.deliveries
    row = next(m for m in messages if m.message_id == "<dsn@mail.b.example>")
    original = next((m.message_id for m in messages if m.trace_id == row.parent_trace_id), None)
    mine = [d for d in deliveries if d.trace_id == row.parent_trace_id]
    return row, original, {d.recipient: (d.outcome, d.enhanced_code) for d in mine}


def failed(envelope: str = "", original: str = "") -> str:
    """A report that nobody@b.example does not exist."""
    per_message = "Reporting-MTA: dns; mail.b.example\n" + (f"Original-Envelope-Id: {envelope}\n" if envelope else "")
    original = f"Original-Recipient: rfc822; {original}\n" if original else ""
    return report(f"{per_message}\n{original}Final-Recipient: rfc822; nobody@b.example\nAction: failed\nStatus: 5.1.1\n")


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_report_without_the_message_is_linked_by_its_envelope_id(in_parts: bool) -> None:
    world = World()
    post, to = Post(world), ["nobody@b.example"]
    for n in (1, 2, 3):
        message = post.submit(mail(n), to, f"A{n}")
        post.hand(MSA, MX, 25, "taro@a.example", to, message, queue_id=f"B{n}", mail_parameters=f"RET=HDRS ENVID=QQ+2B{n}")
    post.hand(MX, MSA, 25, "", ["taro@a.example"], failed(envelope="QQ+2"))
    row, original, fates = about(world, in_parts)
    assert (row.relation, original) == ("dsn", "<2@a.example>")
    assert fates == {"nobody@b.example": ("bounced", "5.1.1")}


def forwarded(world: World, number: int) -> None:
    """A message to an address that the capture shows only rewritten, with ORCPT."""
    world.pass_time(1)
    to = f"box{number}@isp.example"
    message = received(mail(number), world.now, NAMES[MX], NAMES[MSA], MSA, with_="ESMTP", id=f"B{number}")
    info = world.session("smtp", MX, RELAY, 25, client_name=NAMES[MX], server_name=NAMES[RELAY])
    event = world.carry(info, "taro@a.example", [to], message, queue_id=f"R{number}")
    event.recipients[0].parameters = f"ORCPT=rfc822;list+2B{number}@b.example"
    world.end(info)


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_report_that_names_only_the_original_recipient(in_parts: bool) -> None:
    world = World()
    for number in (1, 2, 3):
        forwarded(world, number)
    status = "Reporting-MTA: dns; relay.isp.example\n\nOriginal-Recipient: rfc822; list+2@b.example\n"
    status += "Final-Recipient: rfc822; someone@else.example\nAction: failed\nStatus: 5.2.2\n"
    Post(world).hand(RELAY, MX, 25, "", ["taro@a.example"], report(status))
    row, original, fates = about(world, in_parts)
    assert (row.relation, original) == ("dsn", "<2@a.example>")
    assert fates == {"box2@isp.example": ("bounced", "5.2.2")}


def test_a_report_that_two_messages_fit_is_about_neither() -> None:
    world = World()
    post = Post(world)
    for n in (1, 2):
        post.relay(post.submit(mail(n), ["nobody@b.example"], f"A{n}"), ["nobody@b.example"], f"B{n}")
    post.hand(MX, MSA, 25, "", ["taro@a.example"], failed())
    row, original, _ = about(world)
    assert (row.relation, original) == ("dsn", None)


@pytest.mark.parametrize(("reporter", "want"), [(MX, "<1@a.example>"), ("192.0.2.66", None)])
def test_who_never_had_the_message_does_not_report_about_it(reporter: str, want: str | None) -> None:
    world = World()
    post = Post(world)
    post.relay(post.submit(mail(1), ["nobody@b.example"]), ["nobody@b.example"])
    post.hand(reporter, MSA, 25, "", ["taro@a.example"], failed())
    row, original, _ = about(world)
    assert (row.relation, original) == ("dsn", want)


def test_of_two_recipients_made_from_one_only_the_named_one_failed() -> None:
    world = World()
    post = Post(world)
    info = world.session("smtp", MSA, MX, 25, client_name=NAMES[MSA], server_name=NAMES[MX])
    event = world.carry(info, "taro@a.example", ["hanako@b.example", "nobody@b.example"], mail(1), queue_id="B1")
    for recipient in event.recipients:
        recipient.parameters = "ORCPT=rfc822;team@a.example"
    world.end(info)
    post.hand(MX, MSA, 25, "", ["taro@a.example"], failed(original="team@a.example"))
    _, _, fates = about(world)
    assert fates == {"hanako@b.example": ("relayed", None), "nobody@b.example": ("bounced", "5.1.1")}
