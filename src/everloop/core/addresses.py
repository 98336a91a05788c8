"""Which addresses are of the public internet: what a server may be told to call."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

__all__ = ["is_public"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Public by the registry, yet answered within a cloud by its own services.
_METADATA = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
#: No part of the internet, though Python counts them as global: site-local, a network's own NAT64,
#: and version 4 in the way that was given up.
_LOCAL = tuple(map(ipaddress.ip_network, ("fec0::/10", "64:ff9b:1::/48", "::/96")))


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, also where it hides in another."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # with a zone, or none at all
        return False
    return all(_is_public(item) for item in (address, *_inside(address)))


def _is_public(address: _Address) -> bool:
    if address.is_multicast or address in _METADATA or any(address in net for net in _LOCAL):
        return False
    return address.is_global


def _inside(address: _Address) -> Iterable[_Address]:
    """The addresses of version 4 that one of version 6 stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in _NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
