"""Web pages that a user of this machine has open, and that must not use a service without keys.

Whatever page somebody visits can send requests to the loopback of their machine. It cannot read the
answers, but it can have texts computed; and a page whose own name has come to mean 127.0.0.1 (DNS
rebinding) can read them too.
"""

from __future__ import annotations

import re

from embedcache.service.errors import ServiceProblem

_OWN_SITES = frozenset({None, b"same-origin", b"none"})
"""``Sec-Fetch-Site`` of what no other page has sent: none at all, as of all that is no browser;
the service's own page; a user's typing (W3C, Fetch Metadata Request Headers)."""

_NAMES_OF_THIS_MACHINE = re.compile(rb"(localhost|[0-9.]+|\[[0-9a-fA-F:.]+\])(:[0-9]+)?")
"""In ``Host``: an address, or the one name that no server of names has a say in."""


def refuse_other_pages(host: bytes | None, fetch_site: bytes | None) -> None:
    """Refuse what a web page of another site has sent.

    Args:
        host: The request's header of that name.
        fetch_site: Its ``Sec-Fetch-Site``.

    Raises:
        ServiceProblem: 403.
    """
    is_named = host is None or _NAMES_OF_THIS_MACHINE.fullmatch(host) is not None
    if fetch_site not in _OWN_SITES or not is_named:
        raise ServiceProblem(
            403,
            "other_site",
            "a service without API keys answers no web page of another site, and to no name but"
            " localhost; start it with --api-key-file, or ask 127.0.0.1",
        )
