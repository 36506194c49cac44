"""The verbs that make pictures: report."""

from typing import Any

import click

from analyzer.errors import MailhopError


@click.command(short_help="Write one self-contained HTML file.")
@click.option("-o", "path", metavar="FILE", default="report.html", show_default=True, help="The file to write.")
def report(
    captures: tuple[str, ...],
    more: tuple[str, ...],
    keylogs: tuple[str, ...],
    jobs: int,
    path: str,
    where: str | None,
    ascii_only: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Write one HTML file: searchable messages, for each a waterfall and a ladder, roles, delays.

    It opens from disk and loads nothing from any network.

    \b
    Examples:
      mailhop report mail.pcapng -o report.html
      mailhop report mail.pcapng --where 'outcome=deferred or queue>5m' -o late.html
      mailhop report tap1.pcap tap2.pcapng.gz --keylog keys.log -o report.html
    """
    from analyzer.cli import DAMAGED, DONE, _complain, _narrow, _run, _warn, _where
    from analyzer.views.report import write

    only = _where(where)
    result = _run(captures, more, keylogs, quiet, jobs=jobs)
    if only is not None:
        _narrow(result, only, quiet)
    try:
        write(path, result.tables, result.sources)
    except OSError as error:
        raise MailhopError(f"cannot write {path}: {error.strerror or error}", "name a file with -o") from None
    if not quiet:
        _complain(f"wrote {path}")
    _warn(result)
    return DAMAGED if result.damaged else DONE


def register(group: click.Group, shared: Any) -> None:
    """Add these verbs to the command; `shared` adds what every verb that reads captures has."""
    group.add_command(shared(report))
