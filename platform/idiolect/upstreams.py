"""The server that a tenant's completions come from, and where the gateway lets itself be sent.

A tenant names the address, so it is hostile until proven otherwise (server-side request forgery). The operator lists
what may be named, in IDIOLECT_UPSTREAM_HOSTS, separated by commas:

    api.example.com              https on port 443, at public addresses only
    *                            the same, for any name
    http://10.0.0.5:8000         exactly this scheme, host and port, also at a private address
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from idiolect.errors import ConfigurationError, InvalidInputError

# Only what can't be read in two ways: no user, query, fragment, escape or backslash, nothing but ASCII.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(:(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>(/[A-Za-z0-9_.~-]+)*)/?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBERLIKE = re.compile(r"[0-9]+|0x[0-9a-f]*")  # 2130706433, 0x7f.1 and 127.1 are addresses to some resolvers
_MAX_URL = 300
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Upstream:
    """What is stored. The key is sealed (the vault of services); `model`, if set, replaces what the caller asks for."""

    base_url: str
    model: str | None
    sealed_key: bytes | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Origin:
    scheme: str
    host: str  # without brackets
    port: int


@dataclass(frozen=True, slots=True)
class Target:
    """A checked address. `private`: the operator listed this very origin, so it may lie in a private network."""

    origin: Origin
    path: str
    private: bool

    @property
    def authority(self) -> str:
        """What belongs into the Host header."""
        host = f"[{self.origin.host}]" if ":" in self.origin.host else self.origin.host
        return host if self.origin.port == _PORTS[self.origin.scheme] else f"{host}:{self.origin.port}"


@dataclass(frozen=True, slots=True)
class HostRules:
    names: frozenset[str]
    origins: frozenset[Origin]

    @staticmethod
    def parse(setting: str) -> HostRules:
        """Raises ConfigurationError naming the entry that is neither a name nor an origin."""
        entries = [entry.strip().lower() for entry in setting.split(",") if entry.strip()]
        names, origins = set(), set()
        for entry in entries:
            if "://" in entry:
                found = _split(entry)
                if found is None or found[1]:
                    raise _bad_entry(entry)
                origins.add(found[0])
            elif entry == "*" or _is_name(entry):
                names.add(entry)
            else:
                raise _bad_entry(entry)
        return HostRules(frozenset(names), frozenset(origins))

    def target(self, base_url: str) -> Target:
        """Raises InvalidInputError, which does not say what else is allowed."""
        found = _split(base_url) if len(base_url) <= _MAX_URL else None
        if found is None:
            raise InvalidInputError(
                "the base_url is not usable.",
                mend="Send https://host/path, in lower case, without user, query, fragment and escapes.",
            )
        origin, path = found
        if origin in self.origins:
            return Target(origin, path, private=True)
        named = origin.host in self.names or ("*" in self.names and _is_name(origin.host))
        if not named or origin.scheme != "https" or origin.port != _PORTS["https"]:
            raise InvalidInputError(
                "the base_url's host is not one that this installation talks to.",
                mend="Ask its operator to add it to IDIOLECT_UPSTREAM_HOSTS.",
            )
        return Target(origin, path, private=False)


def pick_address(addresses: Sequence[str], target: Target) -> str:
    """The address to connect to, of those that the name resolved to.

    Raises InvalidInputError if any of them is not public: a name that answers with both is trying something.
    """
    parsed = [_address(text) for text in addresses]
    if not parsed or None in parsed:
        raise _unusable()
    if not target.private and not all(is_public(address) for address in parsed if address is not None):
        raise _unusable()
    return addresses[0]


def is_public(address: IpAddress) -> bool:
    """Reachable from the whole internet, as what it is and as the IPv4 address that an IPv6 one may carry."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _carried(address)
        if inner is not None:
            return is_public(inner)
    # Python calls multicast global.
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64 or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.sixtofour is not None:
        return address.sixtofour
    return None if address.teredo is None else address.teredo[1]


def _address(text: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _split(url: str) -> tuple[Origin, str] | None:
    found = _URL.fullmatch(url)
    if found is None:
        return None
    host, path = found["host"].strip("[]"), found["path"]
    port = int(found["port"] or _PORTS[found["scheme"]])
    literal = _address(host)
    if port > 65535 or any(set(segment) == {"."} for segment in path.split("/") if segment):
        return None
    if literal is None and (":" in host or not _is_name(host)):
        return None
    return Origin(found["scheme"], host if literal is None else str(literal), port), path


def _is_name(host: str) -> bool:
    labels = host.split(".")
    return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not _NUMBERLIKE.fullmatch(labels[-1])


def _bad_entry(entry: str) -> ConfigurationError:
    return ConfigurationError(
        f"IDIOLECT_UPSTREAM_HOSTS names {entry[:80]!r}, which is neither a host nor an origin.",
        mend="List names such as api.example.com, or origins such as http://10.0.0.5:8000.",
    )


def _unusable() -> InvalidInputError:
    return InvalidInputError(
        "the upstream's host has no usable address.",
        mend="Check its name; an address in a private network has to be listed by the operator.",
        code="upstream_address_refused",
    )
