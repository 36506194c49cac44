"""The verbs that make pictures: report."""

import click

from analyzer.cli_shared import Reading, reads_captures
from analyzer.errors import MailhopError


@click.command(short_help="Write one self-contained HTML file.")
@click.option("-o", "path", metavar="FILE", default="report.html", show_default=True, help="The file to write.")
@reads_captures
def report(reading: Reading, path: str) -> int:
    """Write one HTML file: searchable messages, for each a waterfall and a ladder, roles, delays.

    It opens from disk and loads nothing from any network.

    \b
    Examples:
      mailhop report mail.pcapng -o report.html
      mailhop report mail.pcapng --where 'outcome=deferred or queue>5m' -o late.html
      mailhop report tap1.pcap tap2.pcapng.gz --keylog keys.log -o report.html
    """
    from analyzer.views.report import write

    result = reading.run()
    reading.narrow(result)
    try:
        write(path, result.tables, result.sources)
    except OSError as error:
        raise MailhopError(f"cannot write {path}: {error.strerror or error}", "name a file with -o") from None
    reading.say(f"wrote {path}")
    return reading.end(result)
