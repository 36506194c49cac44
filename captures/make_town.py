#!/usr/bin/env python3
"""Make captures/town.pcapng: who talks to whom when two dozen messages cross three domains, some of it in TLS.

    sudo python3 captures/make_town.py      (about a minute; writes town.pcapng, town.keys.log and town.truth.json)

The network, the servers and the Debian packages are those of make_story.py, and openssl.

    example.org   taro and jiro submit on 587 with STARTTLS; what goes to example.net takes the smart host relay.isp.example, in TLS
    sample.com    mail.sample.com (MX) checks SPF and speaks no TLS; hanako reads by IMAP, her phone in TLS (993)
    example.net   mail.example.net is MX and mailbox store in one host, and takes TLS
    example.com   news.example.com sends a newsletter straight to both MXs
    10.6.6.6      a stray host that writes in the name of example.org: SPF says no, 550

town.keys.log holds the TLS secrets of taro's PC alone: what he submits can be read, the rest of the TLS cannot.
"""

import imaplib
import re
import shutil
import smtplib
import ssl
import time
from pathlib import Path

import make_story as lab

lab.HOSTS |= {
    "pc-jiro": ("10.1.0.11", "pc-jiro.example.org"),
    "relay": ("10.9.0.25", "relay.isp.example"),
    "net": ("10.3.0.25", "mail.example.net"),
    "news": ("10.4.0.25", "news.example.com"),
    "stray": ("10.6.6.6", "stray.invalid"),
}
lab.PASSWORDS |= {"jiro@example.org": "jiro-in-the-lab", "goro@example.net": "goro-in-the-lab"}
lab.ZONES |= {
    "example.net": "@ MX 10 mail\nmail A 10.3.0.25\nimap CNAME mail\n",
    "example.com": '@ MX 10 news\n@ TXT "v=spf1 ip4:10.4.0.25 -all"\nnews A 10.4.0.25\n',
    "isp.example": "relay A 10.9.0.25\nns1 A 10.9.0.54\n",
    "10.in-addr.arpa": "".join(
        f"{'.'.join(reversed(ip.split('.')[1:]))} PTR {name}.\n" for ip, name in lab.HOSTS.values() if name != "stray.invalid"
    ),
}
BODY = "Good day,\r\n\r\nthis is number {}.\r\n"
HANAKO, GORO = "hanako@sample.com", "goro@example.net"
LETTERS = [  # host, sender, recipients
    *[("pc-taro", "taro@example.org", [HANAKO])] * 5,
    *[("pc-taro", "taro@example.org", [GORO])] * 3,
    ("pc-taro", "taro@example.org", [HANAKO, GORO]),
    *[("pc-jiro", "jiro@example.org", [HANAKO])] * 3,
    *[("pc-jiro", "jiro@example.org", [GORO])] * 2,
    *[("news", "news@example.com", [HANAKO])] * 3,
    *[("news", "news@example.com", [GORO])] * 2,
    *[("stray", "taro@example.org", [HANAKO])] * 2,
]
MX_OF = {HANAKO: "mail.sample.com", GORO: "mail.example.net"}


def message_id(n: int) -> str:
    return f"<town-{n}@{LETTERS[n - 1][1].partition('@')[2]}>"


def certificate(root: Path, name: str) -> tuple[Path, Path]:
    key, made = root / f"{name}.key", root / f"{name}.pem"
    lab.sh(
        "openssl",
        *"req -x509 -newkey rsa:2048 -nodes -days 3650 -subj".split(),
        f"/CN={name}",
        "-keyout",
        str(key),
        "-out",
        str(made),
    )
    key.chmod(0o644)
    return key, made


def servers_up(servers: lab.Servers) -> None:
    def tls(name: str, level: str) -> str:
        key, made = certificate(servers.root, name)
        return f"smtpd_tls_key_file = {key}\nsmtpd_tls_cert_file = {made}\nsmtpd_tls_security_level = {level}\nsmtp_tls_security_level = may\n"

    msa = tls("smtp.example.org", "encrypt") + "transport_maps = inline:{example.net=smtp:[relay.isp.example]}\n"
    key, made = certificate(servers.root, "imap.sample.com")
    lab.servers_up(servers, msa=msa, store=f"ssl = yes\nssl_cert = <{made}\nssl_key = <{key}\n")
    smtp = "smtp inet n - n - - smtpd\n"
    servers.postfix(
        "relay",
        tls("relay.isp.example", "may")
        + f"mynetworks = {lab.HOSTS['msa'][0]}\nsmtpd_relay_restrictions = permit_mynetworks, reject\n",
        smtp,
    )
    servers.dovecot(
        "net",
        GORO,
        "imap lmtp",
        f"service lmtp {{\n  unix_listener {servers.root}/net.lmtp {{\n    mode = 0666\n  }}\n}}\n",
    )
    servers.postfix(
        "net",
        tls("mail.example.net", "may")
        + f"virtual_mailbox_domains = example.net\nvirtual_transport = lmtp:unix:{servers.root}/net.lmtp\n"
        + f"virtual_mailbox_maps = inline:{{{GORO}=x}}\nsmtpd_recipient_restrictions = reject_unauth_destination\n",
        smtp,
    )
    time.sleep(4)


# -- the people (each runs on its own host) -------------------------------------------------------------------


def unverified(keys: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if keys:
        context.keylog_filename = keys
    return context


def sends(n: str, keys: str) -> None:
    host, sender, to = LETTERS[int(n) - 1]
    words = lab.text(f"Number {n}", BODY.format(n), message_id(int(n)), ", ".join(to), sender)
    name = lab.HOSTS[host][1]
    if host.startswith("pc-"):
        with smtplib.SMTP("smtp.example.org", 587, local_hostname=name) as server:
            server.starttls(context=unverified(keys if host == "pc-taro" else None))
            server.login(sender, lab.PASSWORDS[sender])
            server.sendmail(sender, to, words)
        return
    with smtplib.SMTP(MX_OF[to[0]], 25, local_hostname=name) as server:
        try:
            server.sendmail(sender, to, words)
        except smtplib.SMTPRecipientsRefused:
            assert host == "stray"


def reads(server: str, user: str, implicit: str) -> None:
    box = imaplib.IMAP4_SSL(server, 993, ssl_context=unverified()) if implicit == "tls" else imaplib.IMAP4(server, 143)
    box.login(user, lab.PASSWORDS[user])
    box.select("INBOX")
    _, found = box.uid("SEARCH", "ALL")
    for uid in found[0].split()[:4]:
        box.uid("FETCH", uid.decode(), "(BODY.PEEK[])")
    box.logout()


def play(root: Path, servers: lab.Servers) -> None:
    for n, (host, _, _) in enumerate(LETTERS, 1):
        assert lab.person(host, "sends", str(n), str(root / "keys.log")).wait() == 0
        time.sleep(0.2)
    delivered = {"mx": HANAKO, "net": GORO}
    for host, reader in delivered.items():
        count = sum(reader in to for host, _, to in LETTERS if host != "stray")
        lab.wait_for(root / f"{host}.log", r"lmtp.*status=sent", count)
    for host, server, user, how in (
        ("pc-hanako", "imap.sample.com", HANAKO, "clear"),
        ("phone", "imap.sample.com", HANAKO, "tls"),
        ("pc-jiro", "imap.example.net", GORO, "clear"),
    ):
        assert lab.person(host, "reads", server, user, how).wait() == 0
    shutil.copyfile(root / "keys.log", lab.HERE / "town.keys.log")


def truth(root: Path) -> dict[str, object]:
    """Which servers' logs name each message, in the order in which they took it, and what they called it."""
    logs = {host: (root / f"{host}.log").read_text() for host in ("msa", "relay", "mx", "net")}
    messages = []
    for n, (host, sender, to) in enumerate(LETTERS, 1):
        queue_ids = {
            server: found.group(1)
            for server, log in logs.items()
            if (found := re.search(rf"(\w+): message-id={re.escape(message_id(n))}", log))
        }
        messages.append(
            {
                "message_id": message_id(n),
                "author": host,
                "mail_from": sender,
                "rcpt_to": to,
                "outcome": "rejected" if host == "stray" else "delivered",
                "queue_ids": queue_ids,
            }
        )
    return {"made_by": "captures/make_town.py", "hosts": lab.HOSTS, "messages": messages}


PEOPLE = {f.__name__: f for f in (sends, reads)}

if __name__ == "__main__":
    lab.make("town", PEOPLE, servers_up, play, truth)
