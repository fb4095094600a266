"""A host with a whole IPv6 network is one caller, at every door."""

from __future__ import annotations

import pytest

from services.gateway.edges.grpc import host_of
from services.gateway.trust.addresses import counted_as


@pytest.mark.parametrize(("host", "counted"), [
    ("10.1.2.3", "10.1.2.3"), ("2001:db8:1:2::3", "2001:db8:1:2::/64"), ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::3", "2001:db8:1:3::/64"), ("::ffff:10.1.2.3", "10.1.2.3"), ("fe80::1%eth0", "fe80::/64"),
    ("", ""), ("a:path", "a:path")])
def test_an_address_of_ipv6_counts_as_its_network(host: str, counted: str) -> None:
    assert counted_as(host) == counted


@pytest.mark.parametrize(("peer", "counted"), [
    ("ipv4:10.1.2.3:50050", "10.1.2.3"), ("ipv6:%5B2001:db8:1:2::3%5D:50050", "2001:db8:1:2::/64"),
    ("ipv6:%5B::ffff:10.1.2.3%5D:1", "10.1.2.3"), ("unix:/a/path", "/a/path")])
def test_so_it_does_where_grpc_names_a_peer(peer: str, counted: str) -> None:
    assert host_of(peer) == counted
