"""Which DDS domain, and how participants find one another.

By default participants meet on this machine only: a ROS 2 that is confined to localhost discovers by unicast, so
multicast is off, every process takes the next free participant index, and 127.0.0.1 is named as the peer. Where
``CYCLONEDDS_URI`` is set, the user's own configuration is used as it is.
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

#: The last domain whose ports lie below 65536.
LAST_DOMAIN = 232
#: ROS 2 processes that may run on one machine in one domain and still find each other.
MAX_PARTICIPANTS = 32

#: A frame of 640 x 480 pixels is 0.9 MB: large datagrams and a large receive buffer keep it from being split into
#: hundreds of packets on loopback, and from overrunning the socket. A writer that is deleted does not linger for a
#: reader that has died; :meth:`m2distill_policy.dds.participant.Participant.close` waits once for all of them.
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

#: One configuration a domain and process; kept as long as a participant uses it.
_domains: weakref.WeakValueDictionary[int, Domain] = weakref.WeakValueDictionary()


def domain_id(option: int | None = None) -> int:
    """The domain to use: the option, else ``ROS_DOMAIN_ID``, else 0; raises :class:`ConfigError` beyond 0..232."""
    if option is not None:
        value, source = str(option), "domain id"
    else:
        value, source = os.environ.get("ROS_DOMAIN_ID") or "0", "ROS_DOMAIN_ID"
    if not value.isascii() or not value.isdigit() or int(value) > LAST_DOMAIN:
        raise ConfigError(f"{source} is '{value}'; allowed are 0 to {LAST_DOMAIN}")
    return int(value)


def configure(domain: int) -> Domain | None:
    """Set up localhost-only discovery for ``domain`` in this process; keep what is returned while participants live.

    Returns None where ``CYCLONEDDS_URI`` is set: then Cyclone DDS reads that by itself.
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
    """A domain that no other caller of this function on this machine uses meanwhile, for tests and demonstrations.

    A lock on a file in the temporary folder stands for the domain; it is released when the process ends, however.
    """
    # Domains above 101 have ports that Linux also hands out to clients.
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
    raise TransportError("no DDS domain between 1 and 101 is free; end other tests or demonstrations on this machine")


def _open_lock(path: Path) -> int:
    """A handle to lock, whichever user made the file: for that it need not be writable."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        handle = os.open(path, os.O_CREAT | os.O_RDONLY, 0o644)
        os.fchmod(handle, 0o644)  # whatever the umask
        return handle
