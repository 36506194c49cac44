#!/usr/bin/env python3
"""Make captures/delay.pcapng: four messages of one author, three of them late, each for a reason of its own.

    sudo python3 captures/make_delay.py            (about a minute and a half; writes delay.pcapng and delay.truth.json)

The network, the servers and the Debian packages are those of make_story.py, and postgrey.

    delay-1  a stranger to the MX: greylisted (450), tried again from the MSA's queue, accepted
    delay-2  known by now: straight through
    delay-3  the mailbox store is down: accepted by the MX, waits in the MX's queue until the store is back
    delay-4  to example.net, whose first MX does not answer: the connection times out, the second MX takes it
"""

import poplib
import re
import smtplib
import time
from pathlib import Path

import make_story as lab

WORDS = {
    1: ("Hello from a stranger", "hanako@sample.com"),
    2: ("We have met", "hanako@sample.com"),
    3: ("While the store sleeps", "hanako@sample.com"),
    4: ("The other address", "hanako@example.net"),
}
DEAD = "10.2.0.99"
"""The first MX of example.net: frames to it are sent, and nobody answers."""
RETRY = "minimal_backoff_time = 10s\nmaximal_backoff_time = 10s\nqueue_run_delay = 5s\n"
"""A queue in a hurry: Postfix's own minutes would make a dull capture."""
lab.ZONES["example.net"] = f"@ MX 10 mx1\n@ MX 20 mx2\nmx1 A {DEAD}\nmx2 A {lab.HOSTS['mx'][0]}\n"


def servers_up(servers: lab.Servers) -> None:
    lab.servers_up(servers, mx=MX, queue=RETRY)
    known = servers.folder("postgrey")
    known.chmod(0o777)
    grey = ["--inet=127.0.0.1:10023", "--delay=5", "--auto-whitelist-clients=0", f"--dbdir={known}"]
    servers.start("mx", "postgrey", *grey, "--user=postgrey", "--group=postgrey")
    lab.sh("ip", "-n", lab.PREFIX + "msa", *f"neigh add {DEAD} lladdr 02:00:00:00:00:99 dev eth0".split())
    time.sleep(3)


MX = (
    "virtual_alias_domains = example.net\nvirtual_alias_maps = inline:{hanako@example.net=hanako@sample.com}\n"
    "smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access inline:{example.net=OK},"
    " check_policy_service inet:127.0.0.1:10023\n"
)


def taro_sends(n: str) -> None:
    subject, to = WORDS[int(n)]
    with smtplib.SMTP("smtp.example.org", 587, local_hostname="pc-taro.example.org") as server:
        server.login("taro@example.org", lab.PASSWORDS["taro@example.org"])
        words = lab.text(
            subject, "Hanako,\r\n\r\nwhen did this one reach you?\r\n\r\n-- \r\nTaro\r\n", f"<delay-{n}@example.org>", to
        )
        server.sendmail("taro@example.org", [to], words)


def hanako_pops() -> None:
    box = poplib.POP3("pop.sample.com", 110)
    box.user("hanako@sample.com")
    box.pass_(lab.PASSWORDS["hanako@sample.com"])
    for n in range(1, box.stat()[0] + 1):
        box.retr(n)
        box.dele(n)
    box.quit()


def play(root: Path, servers: lab.Servers) -> None:
    def sends(n: int) -> None:
        assert lab.person("pc-taro", "taro_sends", str(n)).wait() == 0

    def delivered(count: int) -> None:
        lab.wait_for(root / "mx.log", r"lmtp.*status=sent", count)
        time.sleep(1)

    sends(1)
    delivered(1)
    sends(2)
    delivered(2)
    store = servers.pause("store", "dovecot")
    sends(3)
    lab.wait_for(root / "mx.log", "lmtp.*status=deferred")
    time.sleep(2)
    servers.resume("store", store)
    delivered(3)
    sends(4)
    delivered(4)
    assert lab.person("pc-hanako", "hanako_pops").wait() == 0


def truth(root: Path) -> dict[str, object]:
    """What Postfix logged of each message: every try, its queue id, delays (before queue, in queue, connection, transmission) and reply."""
    messages = []
    for n, (subject, to) in WORDS.items():
        message_id = f"<delay-{n}@example.org>"
        tries = []
        for host in ("msa", "mx"):
            log = (root / f"{host}.log").read_text()
            at = re.search(rf"(\w+): message-id={re.escape(message_id)}", log).group(1)  # type: ignore[union-attr]
            said = rf"/(\w+)\[\d+\]: {at}: to=<\S+>,.* relay=(\S+), .*?delay=([\d.]+), delays=([\d./]+), dsn=([\d.]+), status=(\w+) \((.*)\)"
            for agent, relay, delay, delays, dsn, status, reply in re.findall(said, log):
                tries.append(
                    {
                        "host": host,
                        "queue_id": at,
                        "agent": agent,
                        "relay": relay,
                        "delay_s": float(delay),
                        "delays_s": [float(each) for each in delays.split("/")],
                        "enhanced_code": dsn,
                        "status": status,
                        "reply": reply,
                    }
                )
        messages.append({"message_id": message_id, "subject": subject, "rcpt_to": [to], "tries": tries})
    return {"made_by": "captures/make_delay.py", "hosts": lab.HOSTS, "messages": messages}


PEOPLE = {f.__name__: f for f in (taro_sends, hanako_pops)}

if __name__ == "__main__":
    lab.make("delay", PEOPLE, servers_up, play, truth)
