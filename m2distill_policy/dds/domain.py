"""The DDS domain, and how participants discover one another.

By default participants discover one another only on this machine, without multicast: every process takes the next free
participant index, and the peer is 127.0.0.1. A ROS 2 that is limited to localhost does the same. If ``CYCLONEDDS_URI``
is set, that configuration is used unchanged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from cyclonedds.domain import Domain

from m2distill_policy.errors import ConfigError, TransportError

#: The last domain whose ports are below 65536.
LAST_DOMAIN = 232
#: Number of processes that can discover one another on one machine in one domain.
MAX_PARTICIPANTS = 32

#: An image of 640 x 480 pixels has 0.9 MB. Large datagrams and a large receive buffer avoid hundreds of packets on
#: loopback and an overflow of the socket. A deleted writer does not wait for a reader that has died;
#: :meth:`m2distill_policy.dds.participant.Participant.close` waits once for all readers.
LOCALHOST_CONFIGURATION = f"""<CycloneDDS><Domain id="any">
<General>
  <Interfaces><NetworkInterface address="127.0.0.1" multicast="false"/></Interfaces>
  <AllowMulticast>false</AllowMulticast>
  <MaxMessageSize>65500B</MaxMessageSize>
  <FragmentSize>60000B</FragmentSize>
</General>
<Discovery>
  <ParticipantIndex>auto</ParticipantIndex>
  <MaxAutoParticipantIndex>{MAX_PARTICIPANTS}</MaxAutoParticipantIndex>
  <Peers><Peer address="127.0.0.1"/></Peers>
</Discovery>
<Internal>
  <SocketReceiveBufferSize max="8MB"/>
  <Watermarks><WhcHigh>8MB</WhcHigh></Watermarks>
  <WriterLingerDuration>0 s</WriterLingerDuration>
</Internal>
</Domain></CycloneDDS>"""

#: One configuration for each domain and process, kept while a participant uses it.
_domains: weakref.WeakValueDictionary[int, Domain] = weakref.WeakValueDictionary()


def domain_id(option: int | None = None) -> int:
    """Return the number of the domain: the option, else ``ROS_DOMAIN_ID``, else 0.

    Raises:
        ConfigError: The number is not 0 to 232.
    """
    if option is not None:
        value, source = str(option), "domain id"
    else:
        value, source = os.environ.get("ROS_DOMAIN_ID") or "0", "ROS_DOMAIN_ID"
    if not value.isascii() or not value.isdigit() or int(value) > LAST_DOMAIN:
        raise ConfigError(f"{source} is '{value}'; 0 to {LAST_DOMAIN} is allowed")
    return int(value)


def configure(domain: int) -> Domain | None:
    """Set up localhost-only discovery for ``domain`` in this process.

    Returns:
        The configuration, which must be kept while participants exist. None if ``CYCLONEDDS_URI`` is set, which Cyclone
        DDS reads itself.
    """
    if os.environ.get("CYCLONEDDS_URI"):
        return None
    configured = _domains.get(domain)
    if configured is None:
        configured = Domain(domain, LOCALHOST_CONFIGURATION)
        _domains[domain] = configured
    return configured


@contextlib.contextmanager
def reserve_domain() -> Iterator[int]:
    """Reserve a domain that no other caller of this function on this machine uses, for tests and demonstrations.

    The reservation is a lock on a file in the temporary folder. It ends when the process ends.
    """
    # Above 101 the ports of a domain are in the range that Linux assigns to clients.
    candidates = list(range(1, 102))
    random.SystemRandom().shuffle(candidates)
    for candidate in candidates:
        path = Path(tempfile.gettempdir()) / f"m2distill-domain-{candidate}.lock"
        try:
            handle = _open_lock(path)
        except PermissionError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        try:
            yield candidate
        finally:
            os.close(handle)
        return
    raise TransportError("no DDS domain from 1 to 101 is free; end other tests or demonstrations on this machine")


def _open_lock(path: Path) -> int:
    """Return a file handle to lock. The file may belong to another user, because a lock needs no write access."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        handle = os.open(path, os.O_CREAT | os.O_RDONLY, 0o644)
        os.fchmod(handle, 0o644)  # independent of the umask
        return handle
