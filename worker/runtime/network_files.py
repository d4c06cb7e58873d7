"""The texts of a container's /etc/hosts, /etc/hostname and /etc/resolv.conf. Pure.

Source: moby `daemon/libnetwork/etchosts`, `daemon/libnetwork/internal/resolvconf`.
"""

from __future__ import annotations

import ipaddress

from worker.runtime.api import ContainerConfig

_HOSTS = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::\tip6-localnet",
    "ff00::\tip6-mcastprefix",
    "ff02::1\tip6-allnodes",
    "ff02::2\tip6-allrouters",
)


def hosts(config: ContainerConfig, hostname: str, host_text: str) -> str:
    """Return /etc/hosts: the usual lines, the extra ones, and the container's own address.

    A container in the host's network has the host's lines (`host_text`) instead of the usual.
    """
    lines = [*_HOSTS] if config.netns_path else host_text.splitlines()
    for line in config.hosts:
        address, _, names = line.partition(" ")
        lines.append(f"{address}\t{names.strip()}")
    if config.address:
        address = config.address.partition("/")[0]
        short = hostname.partition(".")[0]
        names = hostname if short == hostname else f"{hostname} {short}"
        lines.append(f"{address}\t{names}")
    return "\n".join(lines) + "\n"


def resolv_conf(config: ContainerConfig, host_text: str) -> str:
    """Return /etc/resolv.conf: each of the config's lists replaces the host's.

    A loopback server of the host is left out: inside the container that address is another's.
    """
    servers, search, options = _parse(host_text)
    lines = [
        f"nameserver {server}"
        for server in config.nameservers
        or [server for server in servers if not is_loopback(server)]
    ]
    search = list(config.search_domains) or search
    # "." asks for an empty search list, as `docker run --dns-search .` does.
    if search and search != ["."]:
        lines.append("search " + " ".join(search))
    options = list(config.dns_options) or options
    if options:
        lines.append("options " + " ".join(options))
    return "".join(f"{line}\n" for line in lines)


def has_only_loopback(host_text: str) -> bool:
    """Return whether the host resolves by a local stub (systemd-resolved) alone."""
    servers = _parse(host_text)[0]
    return bool(servers) and all(is_loopback(server) for server in servers)


def is_loopback(server: str) -> bool:
    """Return whether it is an address of the loopback range; a malformed one is not."""
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _parse(text: str) -> tuple[list[str], list[str], list[str]]:
    servers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                servers.append(server)
            # The last such line wins (resolv.conf(5)).
            case ["search" | "domain", *names]:
                search = names
            case ["options", *words]:
                options.extend(words)
            case _:
                continue
    return servers, search, options
