"""Which addresses and interfaces this machine has, asked anew each time: cables, DHCP and tunnels come and go."""

from __future__ import annotations

import ipaddress
import socket

import psutil


def interface_of(addr: str) -> str:
    """The interface that has this address; "" when none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.partition("%")[0] == addr for a in addresses):
            return name
    return ""


def first_address(interface: str) -> str:
    """The first IPv4 address of an interface, else its first global IPv6 one; raises ``LookupError`` when there is no such interface, or
    it has none."""
    addresses = psutil.net_if_addrs().get(interface)
    if addresses is None:
        raise LookupError(f"there is no interface {interface}")
    for a in addresses:
        if a.family == socket.AF_INET:
            return str(a.address)
    for a in addresses:
        if a.family == socket.AF_INET6 and not ipaddress.ip_address(a.address.partition("%")[0]).is_link_local:
            return str(a.address)
    raise LookupError(f"interface {interface} has no address")


def default_address() -> str:
    """The address from which this machine talks to others: of the default route (IPv4, then IPv6), else any but loopback, else loopback.

    The host name is never asked: ``127.0.1.1`` in /etc/hosts is what Debian gives it.
    """
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # documentation prefixes
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            try:
                s.connect((far, 9))  # connecting a UDP socket only looks up the route
                addr = str(s.getsockname()[0])
            except OSError:
                continue  # no default route: an isolated network
            if not ipaddress.ip_address(addr).is_loopback and addr not in ("0.0.0.0", "::"):
                return addr
    for name in psutil.net_if_addrs():
        if name != "lo":
            try:
                return first_address(name)
            except LookupError:
                continue
    return "127.0.0.1"


def others(interface: str) -> list[str]:
    """Interfaces beside this one and loopback that are up and have an address: where nobody hears us unless we are told to speak there."""
    stats = psutil.net_if_stats()
    out = []
    for name in psutil.net_if_addrs():
        if name not in ("lo", interface) and name in stats and stats[name].isup:
            try:
                first_address(name)
            except LookupError:
                continue
            out.append(name)
    return out
