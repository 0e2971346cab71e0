"""Who may send: a peer is known by its application entity title and its address together."""

import ipaddress
import socket
from collections.abc import Sequence

from lfmri_runtime.console.settings import DicomPeer
from lfmri_runtime.errors import TryAgainLater, UsageError

#: AE: 16 characters of the default repertoire without backslash and control characters (PS3.5 6.2).
LONGEST_TITLE = 16


class Peers:
    """The peers with their addresses; names are looked up once, at the start.

    Args:
        peers: as configured.

    Attributes:
        titles: of all of them.

    Raises:
        TryAgainLater: a name that cannot be looked up now.
    """

    def __init__(self, peers: Sequence[DicomPeer]) -> None:
        self._pairs = {(peer.title.strip(), address) for peer in peers for address in _addresses(peer.address)}
        self._addresses = {address for _, address in self._pairs}
        self.titles = sorted({title for title, _ in self._pairs})

    def know_address(self, address: str) -> bool:
        """Whether anybody may send from there."""
        return plain(address) in self._addresses

    def know(self, title: str, address: str) -> bool:
        """Whether this title may send from there."""
        return (title.strip(), plain(address)) in self._pairs


def plain(address: str) -> str:
    """One spelling for each address; an IPv4 address that reached an IPv6 socket is the IPv4 address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)


def check_title(title: str) -> None:
    """Refuse what is no application entity title.

    Raises:
        UsageError: naming what was found and what was expected.
    """
    legal = title.isascii() and title.isprintable() and "\\" not in title
    if not (legal and title.strip() and len(title) <= LONGEST_TITLE):
        raise UsageError(f"the title {title!r}; expected 1 to {LONGEST_TITLE} printable characters, no backslash")


def _addresses(name: str) -> set[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TryAgainLater(f"the peer {name!r}: {error.strerror}; expected an address or a known host name") from None
    return {plain(str(entry[4][0])) for entry in found}
