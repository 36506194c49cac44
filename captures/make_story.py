#!/usr/bin/env python3
"""Make captures/story.pcapng: one delivery by real servers, from the author's pen to the reader's screen.

    sudo python3 captures/make_story.py            (about 40 seconds; writes story.pcapng and story.truth.json)

Each host is a network namespace on one bridge; Postfix, Dovecot, BIND, Unbound and an SPF policy daemon are the
distribution's own (Debian: postfix dovecot-imapd dovecot-pop3d dovecot-lmtpd bind9 unbound
postfix-policyd-spf-python wireshark-common iproute2 ethtool).  The capture is taken on the bridge, so every
packet between two hosts is in it once.  Ports, times and queue ids change on every run.

    taro@example.org (pc-taro) -587-> smtp.example.org -25-> mail.sample.com (MX) -LMTP-> store.sample.com
    message 1: hanako's pc reads it by POP3 and deletes it
    message 2: hanako's pc (IDLE) and phone read it by IMAP, flag it, file it
"""

import imaplib
import json
import os
import poplib
import re
import shutil
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOSTS = {  # namespace: (address, name)
    "pc-taro": ("10.1.0.10", "pc-taro.example.org"),
    "msa": ("10.1.0.25", "smtp.example.org"),
    "resolver": ("10.9.0.53", "resolver.isp.example"),
    "ns": ("10.9.0.54", "ns1.isp.example"),
    "mx": ("10.2.0.25", "mail.sample.com"),
    "store": ("10.2.0.110", "store.sample.com"),
    "pc-hanako": ("10.2.0.71", "pc-hanako.sample.com"),
    "phone": ("10.2.0.72", "phone-hanako.sample.com"),
}
PREFIX = "mh-"
PASSWORDS = {"taro@example.org": "taro-in-the-lab", "hanako@sample.com": "hanako-in-the-lab"}
ZONES = {
    "example.org": '@ MX 10 smtp\n@ TXT "v=spf1 ip4:10.1.0.25 -all"\nsmtp A 10.1.0.25\npc-taro A 10.1.0.10\n',
    "sample.com": "@ MX 10 mail\nmail A 10.2.0.25\nstore A 10.2.0.110\npop CNAME store\nimap CNAME store\n"
    "pc-hanako A 10.2.0.71\nphone-hanako A 10.2.0.72\n",
    "10.in-addr.arpa": "".join(f"{'.'.join(reversed(ip.split('.')[1:]))} PTR {name}.\n" for ip, name in HOSTS.values()),
}
WORDS = {
    1: ("Lunch on Friday?", "Hanako,\r\n\r\nshall we meet at noon on Friday, at the usual place?\r\n\r\n-- \r\nTaro\r\n"),
    2: (
        "The photos",
        "Hanako,\r\n\r\nthe photos of Friday are on their way.\r\n.dots at a line's start must survive.\r\n\r\n-- \r\nTaro\r\n",
    ),
}


def sh(*argv: str, **options: object) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, **options).stdout  # type: ignore[call-overload]


def inside(host: str, *argv: str) -> list[str]:
    return ["ip", "netns", "exec", PREFIX + host, *argv]


# -- the network ---------------------------------------------------------------------------------------------


def network_up() -> None:
    network_down()
    sh("ip", "netns", "add", PREFIX + "wire")
    for line in ("link set lo up", "link add br0 type bridge mcast_snooping 0", "link set br0 up"):
        sh("ip", "-n", PREFIX + "wire", *line.split())
    for host, (address, _) in HOSTS.items():
        ns = PREFIX + host
        sh("ip", "netns", "add", ns)
        sh("ip", "-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", host, "netns", PREFIX + "wire")
        sh("ip", "-n", PREFIX + "wire", "link", "set", host, "master", "br0", "up")
        sh(*inside(host, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"))
        for line in ("link set lo up", f"addr add {address}/8 dev eth0", "link set eth0 up"):
            sh("ip", "-n", ns, *line.split())
        for place, device in ((host, "eth0"), ("wire", host)):  # frames as on a wire: no giant segments, right checksums
            sh(*inside(place, "ethtool", "-K", device, "tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off"))
        etc = Path("/etc/netns") / ns
        etc.mkdir(parents=True, exist_ok=True)
        (etc / "resolv.conf").write_text(f"nameserver {HOSTS['resolver'][0]}\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n")


def network_down() -> None:
    for line in sh("ip", "netns", "list").splitlines():
        if line.startswith(PREFIX):
            sh("ip", "netns", "del", line.split()[0])
            shutil.rmtree(Path("/etc/netns") / line.split()[0], ignore_errors=True)


# -- the servers ---------------------------------------------------------------------------------------------

SPF = "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:private/policyd-spf\n"


class Servers:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
        """Host and program -> its process."""
        self.postfixes: list[tuple[str, Path]] = []

    def start(self, host: str, *argv: str) -> None:
        log = (self.root / f"{host}.out").open("ab")
        self.running[host, argv[0]] = subprocess.Popen(inside(host, *argv), stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def pause(self, host: str, program: str) -> list[str]:
        """End a program; what `resume` needs to start it again."""
        process = self.running.pop((host, program))
        process.terminate()
        process.wait(10)
        return list(process.args)  # type: ignore[arg-type]

    def resume(self, host: str, argv: list[str]) -> None:
        """Start a paused program again."""
        self.start(host, *argv[len(inside(host)) :])

    def dns(self) -> None:
        home = self.folder("named")
        zones = ""
        for name, records in ZONES.items():
            head = f"$TTL 300\n$ORIGIN {name}.\n@ SOA ns1.isp.example. hostmaster.isp.example. 1 3600 600 86400 60\n@ NS ns1.isp.example.\n"
            (home / f"{name}.zone").write_text(head + records)
            zones += f'zone "{name}" {{ type primary; file "{name}.zone"; }};\n'
        (home / "named.conf").write_text(
            f'options {{ directory "{home}"; recursion no; listen-on {{ any; }}; listen-on-v6 {{ none; }}; notify no;\n'
            f'pid-file "{home}/pid"; session-keyfile "{home}/key"; dnssec-validation no; }};\ncontrols {{ }};\n{zones}'
        )
        self.start("ns", "named", "-f", "-n", "1", "-c", f"{home}/named.conf")
        stubs = "".join(f'stub-zone:\n  name: "{zone}"\n  stub-addr: {HOSTS["ns"][0]}\n' for zone in ZONES)
        conf = self.folder("unbound") / "unbound.conf"
        conf.write_text(
            'server:\n  interface: 0.0.0.0\n  access-control: 10.0.0.0/8 allow\n  chroot: ""\n  username: ""\n  pidfile: ""\n'
            '  use-syslog: no\n  num-threads: 1\n  do-ip6: no\n  module-config: "iterator"\n  local-zone: "10.in-addr.arpa." nodefault\n'
            f"remote-control:\n  control-enable: no\n{stubs}"
        )
        self.start("resolver", "unbound", "-d", "-c", str(conf))

    def postfix(self, host: str, settings: str, services: str) -> None:
        home = self.folder(f"postfix-{host}")
        for part in ("etc", "spool", "lib"):
            (home / part).mkdir()
        shutil.copytree("/etc/postfix", home / "etc", symlinks=True, dirs_exist_ok=True)
        shutil.chown(home / "lib", "postfix", "postfix")
        (home / "etc/main.cf").write_text(
            f"compatibility_level = 3.6\nmyhostname = {HOSTS[host][1]}\nqueue_directory = {home}/spool\ndata_directory = {home}/lib\n"
            f"maillog_file_prefixes = {self.root}\nmaillog_file = {self.root}/{host}.log\ninet_protocols = ipv4\nmydestination =\n"
            "alias_maps =\nmynetworks = 127.0.0.0/8\nbiff = no\nsmtpd_tls_security_level = none\nsmtp_tls_security_level = none\n"
            + settings
        )
        stock = []
        for line in Path("/etc/postfix/master.cf").read_text().splitlines():
            words = line.split()
            ours = len(words) >= 8 and words[:2] == ["smtp", "unix"]
            unused = words[:1] and words[0] in ("smtp", "maildrop", "uucp", "ifmail", "bsmtp", "mailman")
            if not ours and (unused or line.startswith((" ", "#")) or len(words) < 8):
                continue
            words[4] = "n"  # not in a chroot: the folders are ours
            stock.append(" ".join(words))
        (home / "etc/master.cf").write_text("\n".join(stock) + "\npostlog unix-dgram n - n - 1 postlogd\n" + services)
        sh(*inside(host, "postfix", "-c", f"{home}/etc", "start"))
        self.postfixes.append((host, home / "etc"))

    def dovecot(self, host: str, user: str, protocols: str, listeners: str) -> None:
        home = self.folder(f"dovecot-{host}")
        users = [each for each in PASSWORDS if each.endswith(user[user.index("@") :])]
        (home / "users").write_text("".join(f"{each}:{{PLAIN}}{PASSWORDS[each]}\n" for each in users))
        mail = self.folder(f"mail-{host}")
        os.chown(mail, 5000, 5000)
        (home / "dovecot.conf").write_text(
            f"base_dir = {home}/run\nstate_dir = {home}/state\nlog_path = {self.root}/{host}.log\nprotocols = {protocols}\nssl = no\n"
            f"auth_mechanisms = plain login\ndisable_plaintext_auth = no\nmail_location = maildir:{mail}/%u\nmail_uid = 5000\nmail_gid = 5000\n"
            f"first_valid_uid = 5000\npassdb {{\n  driver = passwd-file\n  args = scheme=PLAIN username_format=%u {home}/users\n}}\n"
            f"userdb {{\n  driver = static\n  args = uid=5000 gid=5000 home={mail}/%u\n}}\n{listeners}"
            f"postmaster_address = postmaster@{HOSTS[host][1]}\nhostname = {HOSTS[host][1]}\n"
        )
        self.start(host, "dovecot", "-F", "-c", f"{home}/dovecot.conf")

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir()
        path.chmod(0o755)
        return path

    def stop(self) -> None:
        for host, etc in self.postfixes:
            subprocess.run(inside(host, "postfix", "-c", str(etc), "stop"), capture_output=True, check=False)
        for process in reversed(self.running.values()):
            process.terminate()
            process.wait(10)


def servers_up(servers: Servers, mx: str = SPF, queue: str = "", msa: str = "", store: str = "") -> None:
    """`mx`: what the MX checks of recipients; `queue`: settings of both Postfix queues; `msa`, `store`: more settings of those."""
    servers.dns()
    servers.dovecot(
        "msa",
        "taro@example.org",
        "",
        f"service auth {{\n  unix_listener {servers.root}/sasl {{\n    mode = 0666\n  }}\n}}\n",
    )
    servers.postfix(
        "msa",
        "smtpd_relay_restrictions = permit_sasl_authenticated, reject\nsmtp_connect_timeout = 4s\n" + queue + msa,
        "submission inet n - n - - smtpd\n  -o syslog_name=postfix/submission\n  -o smtpd_sasl_auth_enable=yes\n"
        f"  -o smtpd_sasl_type=dovecot\n  -o smtpd_sasl_path={servers.root}/sasl\n  -o smtpd_client_restrictions=permit_sasl_authenticated,reject\n",
    )
    servers.dovecot(
        "store",
        "hanako@sample.com",
        "imap pop3 lmtp",
        "service lmtp {\n  inet_listener lmtp {\n    port = 24\n  }\n}\n" + store,
    )
    servers.postfix(
        "mx",
        "virtual_mailbox_domains = sample.com\nvirtual_transport = lmtp:inet:store.sample.com:24\nlocal_recipient_maps =\n"
        f"virtual_mailbox_maps = inline:{{hanako@sample.com=x}}\nenable_long_queue_ids = yes\n{mx}{queue}",
        "smtp inet n - n - - smtpd\npolicyd-spf unix - n n - 0 spawn\n  user=nobody argv=/usr/bin/policyd-spf\n",
    )
    time.sleep(4)


# -- the people (each runs on its own host) -------------------------------------------------------------------


TARO, HANAKO = "Taro Yamada <taro@example.org>", "Hanako Sato <hanako@sample.com>"


def text(subject: str, body: str, message_id: str, to: str = HANAKO, author: str = TARO) -> bytes:
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime())
    return (
        f"From: {author}\r\nTo: {to}\r\nSubject: {subject}\r\nDate: {date}\r\nMessage-ID: {message_id}\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{body}"
    ).encode()


def taro_sends(n: str) -> None:
    with smtplib.SMTP("smtp.example.org", 587, local_hostname="pc-taro.example.org") as server:
        server.login("taro@example.org", PASSWORDS["taro@example.org"])
        server.sendmail("taro@example.org", ["hanako@sample.com"], text(*WORDS[int(n)], f"<story-{n}@example.org>"))


def hanako_pops() -> None:
    box = poplib.POP3("pop.sample.com", 110)
    box.user("hanako@sample.com")
    box.pass_(PASSWORDS["hanako@sample.com"])
    box.stat()
    box.uidl()
    box.retr(1)
    box.dele(1)
    box.quit()


def imap() -> imaplib.IMAP4:
    box = imaplib.IMAP4("imap.sample.com", 143)
    box.login("hanako@sample.com", PASSWORDS["hanako@sample.com"])
    return box


def pc_waits() -> None:
    """The pc sits in IDLE (RFC 2177) until something arrives, then reads it and marks it as seen."""
    box = imap()
    box.select("INBOX")
    box.send(b"w1 IDLE\r\n")
    box.readline()
    while b"EXISTS" not in box.readline():
        pass
    time.sleep(0.3)
    box.send(b"DONE\r\n")
    while not box.readline().startswith(b"w1 "):
        pass
    _, found = box.uid("SEARCH", "UNSEEN")
    uid = found[0].split()[-1].decode()
    box.uid("FETCH", uid, "(FLAGS ENVELOPE RFC822.SIZE)")
    box.uid("FETCH", uid, "(BODY.PEEK[])")
    box.uid("STORE", uid, "+FLAGS", r"(\Seen)")
    time.sleep(3)  # meanwhile the phone files it; the pc hears of it
    box.noop()
    box.logout()


def phone_reads() -> None:
    box = imap()
    box.select("INBOX")
    _, found = box.uid("SEARCH", "ALL")
    uid = found[0].split()[-1].decode()
    box.uid("FETCH", uid, "(BODY.PEEK[HEADER.FIELDS (FROM SUBJECT DATE MESSAGE-ID)])")
    box.uid("FETCH", uid, "(BODY[])")
    box.uid("STORE", uid, "+FLAGS", r"(\Flagged)")
    box.create("Friends")
    box.uid("MOVE", uid, "Friends")
    box.logout()


PEOPLE = {f.__name__: f for f in (taro_sends, hanako_pops, pc_waits, phone_reads)}


def person(host: str, what: str, *words: str) -> subprocess.Popen[bytes]:
    """Run one of the running script's PEOPLE on a host."""
    return subprocess.Popen(inside(host, sys.executable, sys.argv[0], "--person", what, *words))


def wait_for(log: Path, pattern: str, count: int = 1) -> None:
    for _ in range(300):
        if log.exists() and len(re.findall(pattern, log.read_text())) >= count:
            return
        time.sleep(0.1)
    raise SystemExit(f"{log.name} never said {pattern!r}")


def story(root: Path, servers: Servers) -> None:
    delivered = r"status=sent \(250 2\.0\.0 <hanako@sample\.com>"
    assert person("pc-taro", "taro_sends", "1").wait() == 0
    wait_for(root / "mx.log", delivered)
    time.sleep(2)
    assert person("pc-hanako", "hanako_pops").wait() == 0
    time.sleep(1)
    waiting = person("pc-hanako", "pc_waits")
    time.sleep(1.5)
    assert person("pc-taro", "taro_sends", "2").wait() == 0
    wait_for(root / "mx.log", delivered, 2)
    time.sleep(2)
    assert person("phone", "phone_reads").wait() == 0
    assert waiting.wait() == 0


def truth(root: Path) -> dict[str, object]:
    """What the servers' own logs say happened."""
    msa, mx = ((root / f"{host}.log").read_text() for host in ("msa", "mx"))
    messages = []
    for n in WORDS:
        mid = f"<story-{n}@example.org>"
        at_msa, at_mx = (re.search(rf"(\w+): message-id={re.escape(mid)}", log).group(1) for log in (msa, mx))  # type: ignore[union-attr]
        saved = re.search(rf"{at_mx}: to=.*<hanako@sample.com> (\S+) Saved", mx)
        messages.append(
            {
                "message_id": mid,
                "subject": WORDS[n][0],
                "mail_from": "taro@example.org",
                "rcpt_to": ["hanako@sample.com"],
                "hops": [
                    {
                        "kind": "submit",
                        "client": HOSTS["pc-taro"][0],
                        "server": HOSTS["msa"][0],
                        "roles": ["mua", "msa"],
                        "queue_id": at_msa,
                    },
                    {
                        "kind": "relay",
                        "client": HOSTS["msa"][0],
                        "server": HOSTS["mx"][0],
                        "roles": ["msa", "mx"],
                        "queue_id": at_mx,
                    },
                    {
                        "kind": "deliver",
                        "client": HOSTS["mx"][0],
                        "server": HOSTS["store"][0],
                        "roles": ["mx", "mda"],
                        "queue_id": saved.group(1) if saved else None,
                    },
                ],
                "retrieved_by": [["pop3", HOSTS["pc-hanako"][0]]]
                if n == 1
                else [["imap", HOSTS["pc-hanako"][0]], ["imap", HOSTS["phone"][0]]],
                "outcome": "delivered",
            }
        )
    return {"made_by": "captures/make_story.py", "hosts": HOSTS, "messages": messages}


def make(
    name: str,
    people: Mapping[str, Callable[..., None]],
    servers_up: Callable[[Servers], None],
    play: Callable[[Path, Servers], None],
    truth: Callable[[Path], dict[str, object]],
) -> None:
    """Bring the network and its servers up, capture the bridge while the play goes on, write NAME.pcapng and NAME.truth.json."""
    if sys.argv[1:2] == ["--person"]:
        people[sys.argv[2]](*sys.argv[3:])
        return
    with tempfile.TemporaryDirectory(prefix="mailhop-captures-") as folder:
        root = Path(folder)
        root.chmod(0o777)
        servers = Servers(root)
        network_up()
        try:
            servers_up(servers)
            capture = root / "whole.pcapng"
            sniffer = subprocess.Popen(
                inside("wire", "dumpcap", "-q", "-i", "br0", "-f", "not arp and not ip6", "-w", str(capture))
            )
            time.sleep(2)
            play(root, servers)
            time.sleep(2)
            sniffer.terminate()
            sniffer.wait()
            (HERE / f"{name}.truth.json").write_text(json.dumps(truth(root), indent=1) + "\n")
            sh("editcap", "--discard-capture-comment", "-F", "nsecpcap", str(capture), str(root / "plain.pcap"))
            sh("editcap", "-F", "pcapng", str(root / "plain.pcap"), str(HERE / f"{name}.pcapng"))  # without this machine's name
            (HERE / f"{name}.pcapng").chmod(0o644)
        finally:
            servers.stop()
            network_down()


if __name__ == "__main__":
    make("story", PEOPLE, servers_up, story, truth)
