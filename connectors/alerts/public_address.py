"""Which addresses are on the public internet: those that requests to a URL may go to that a user has given.

The table is our own, as `ipaddress.is_global` depends on the version of Python, and takes forms that lead to private
addresses (NAT64, 6to4, IPv4 inside IPv6) for public ones.
Source: https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

NOT_PUBLIC_V4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared, behind a provider's NAT
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # the host of a virtual machine on Azure
            "169.254.0.0/16",  # link-local, metadata of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
UNICAST_V6: Final = IPv6Network("2000::/3")
"""All that is given out. Outside of it are loopback, link-local, site-local, unique local, multicast, NAT64, and IPv4
that is mapped, translated or compatible."""
NOT_PUBLIC_V6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)


def is_public(address: str) -> bool:
    """Return whether the address, as `getaddrinfo` gives it, is a public unicast one."""
    found = ip_address(address)
    match found:
        case IPv4Address():
            return not any(found in network for network in NOT_PUBLIC_V4)
        case IPv6Address():
            return found in UNICAST_V6 and not any(found in network for network in NOT_PUBLIC_V6)
