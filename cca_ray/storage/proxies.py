"""Proxies of the environment, which lead to no server of this very machine."""

import os
import urllib.request
from ipaddress import ip_address


def proxy_to(scheme: str, host: str) -> str | None:
    """By way of which proxy a server is asked. From here on none, by whatever library, where it is this machine."""
    if is_here(host):
        bypass_proxy(host)
    return None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)


def is_here(host: str) -> bool:
    """Whether it names this machine for itself alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bypass_proxy(host: str) -> None:
    """Of the two spellings libraries read either."""
    before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if host not in before.split(","):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, (before, host)))
