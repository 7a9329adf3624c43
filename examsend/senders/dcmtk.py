"""The sender that runs DCMTK's storescu.

Not dcmsend, with or without TLS: dcmsend has no TLS, tells what it did only at its end, and chooses its presentation contexts
itself. storescu shows each response as it comes, and proposes exactly the contexts of a file.
"""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path

from examsend.config import files
from examsend.config.settings import Settings
from examsend.dimse import tls
from examsend.dimse.contexts import Proposal, propose
from examsend.errors import ConfigError
from examsend.senders import child, external
from examsend.senders.base import Capabilities
from examsend.senders.dcmtk_output import StorescuReader
from examsend.senders.program_search import Search, Unfit
from examsend.states import SenderName, Transcode
from examsend.transfer import AssociationEnd, Item, Peer, Tls, UserIdentity, Watcher

_OLDEST = (3, 6, 2)
"""The first release with a time-out of the socket and the TLS profile of BCP 195."""

_IP6 = (3, 6, 8)
"""The first release that connects to IPv6 addresses."""

_VERSION = re.compile(r"\$dcmtk: storescu v(\d+)\.(\d+)\.(\d+)\b.*\$")

_VERSION_SECONDS = 8.0

_PDU = (4096, 131072)
"""Lengths that storescu takes for the longest P-DATA-TF that the peer may send."""

_UNDER_WAY = 1 << 20
"""Bytes that the buffers of both ends may hold of a data set that is written wholly."""

_LONGEST_ADDRESS = 63
"""Characters of host, colon and port; storescu cuts longer ones."""

_PROFILE = "Batch"

_INSTALL = "install DCMTK 3.6.2 or later (Debian: dcmtk), or set EXAMSEND_DCMTK to its storescu"


class DcmtkSender:
    """See ``base.Sender``."""

    name = SenderName.DCMTK.value
    capabilities = Capabilities(
        checks_certificate_name=False,
        pins_certificate=False,
        user_identity_kinds=(1, 2, 5),
        priority=False,
        live_progress=False,
        stops_after_instance=False,
        keeps_bytes=False,
        converts_byte_order=True,
        notes=(
            (
                "storescu encodes each data set anew: other bytes, the same elements, but no Data Set Trailing Padding "
                "(FFFC,FFFC), and other group lengths (gggg,0000)."
            ),
            "storescu does not show whether the peer aborted the association or closed the connection.",
            "Told to stop, storescu is killed: the peer sees the connection close, without A-ABORT.",
            "A client certificate is sent without intermediate certificates.",
        ),
    )

    def __init__(self, settings: Settings) -> None:
        self._given = settings.dcmtk

    def check(self, peer: Peer) -> None:
        """See ``base.Sender.check``."""
        _check(peer, _find(self._given)[1])
        if peer.tls is not None:
            tls.context(peer.tls)

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        return external.run(_Storescu(self._given), peer, items, watcher)


class _Storescu:
    """See ``program_output.Program``."""

    def __init__(self, given: Path | None) -> None:
        self._given = given

    def check(self, item: Item) -> None:
        """See ``program_output.Program``: it reads what the data set says."""

    def command(self, peer: Peer, items: Sequence[Item], files: Path, private: Path) -> list[str]:
        """See ``program_output.Program``."""
        program, version = _find(self._given)
        _check(peer, version)
        profile, arguments = private / "contexts.cfg", private / "files"
        profile.write_text(_profile(propose(items)))
        # Files in a file of arguments are sent in that order, and there may be more than a command line can hold.
        arguments.write_text("".join(f"{os.path.relpath(name, private)}\n" for name in sorted(files.iterdir())))
        pdu = min(max(peer.max_pdu or _PDU[1], _PDU[0]), _PDU[1])
        return [
            str(program), "-d", "-nh", "-aet", peer.calling_aet, "-aec", peer.called_aet,
            "-to", _seconds(peer.connect_timeout), "-ta", _seconds(peer.accept_timeout),
            "-ts", _seconds(peer.stall_timeout), "-td", _seconds(_answer_time(peer, items)),
            "-pdu", str(pdu), "-xf", str(profile), _PROFILE,
            *_tls(peer.tls), *_identity(peer.user_identity, private), peer.host, str(peer.port), f"@{arguments}",
        ]  # fmt: skip

    def environment(self, private: Path) -> dict[str, str]:
        """See ``program_output.Program``. Without TCP_NODELAY each request waits for the acknowledgement of its first part."""
        return {"LC_ALL": "C", "TMPDIR": str(private), "TCP_NODELAY": "1"}

    def reader(self, items: Sequence[Item]) -> StorescuReader:
        """See ``program_output.Program``."""
        return StorescuReader(items, propose(items))


def _find(given: Path | None) -> tuple[Path, tuple[int, ...]]:
    """Given the setting, return DCMTK's storescu and its version. Raises ConfigError.

    dcm4che has a program of the same name: on PATH, the first that is DCMTK's is taken.
    """
    try:
        return _SEARCH.find(given)
    except Unfit as why:
        raise ConfigError(f"the sender dcmtk needs DCMTK's storescu, and {why}: {_INSTALL}") from None


def _version(program: Path) -> tuple[int, ...]:
    """Return the version of DCMTK's storescu. Raises Unfit where it is another program or too old, OSError."""
    environment = {**external.inherited(), "LC_ALL": "C"}
    lines = child.output([str(program), "--version"], environment, _VERSION_SECONDS)
    if lines is None:
        raise Unfit(f"did not show its version within {_VERSION_SECONDS:g} s")
    found = _VERSION.match(lines[0]) if lines else None
    if found is None:
        raise Unfit("is not DCMTK's")
    version = tuple(map(int, found.groups()))
    if version < _OLDEST:
        raise Unfit(f"is of DCMTK {'.'.join(map(str, version))}, which is too old")
    return version


_SEARCH = Search(_version)


def _check(peer: Peer, version: tuple[int, ...]) -> None:
    """Raise ConfigError where storescu of a version cannot do what a setting asks for."""
    name = peer.user_identity.name if peer.user_identity is not None else None
    if any(value.startswith("@") for value in (peer.calling_aet, peer.called_aet, name or "", peer.host)):
        raise ConfigError("the sender dcmtk takes no AE title or user name that begins with @: choose another sender")
    if peer.priority != 0:
        raise ConfigError("the sender dcmtk cannot set a priority: leave it at medium, or choose another sender")
    if peer.transcode is not Transcode.NEVER:
        raise ConfigError("the sender dcmtk cannot convert pixel data: set --transcode never, or choose another sender")
    if len(f"{peer.host}:{peer.port}") > _LONGEST_ADDRESS:
        raise ConfigError(f"the sender dcmtk cannot use a host name of {len(peer.host)} characters: use the address")
    if ":" in peer.host and version < _IP6:
        raise ConfigError("DCMTK before 3.6.8 cannot connect to an IPv6 address: choose another sender")
    if peer.tls is not None and peer.tls.pin_sha256 is not None:
        raise ConfigError("the sender dcmtk cannot pin a certificate: choose another sender")
    if peer.tls is not None and peer.tls.check_name:
        raise ConfigError(
            "the sender dcmtk cannot check the name in the peer's certificate: use --tls-ca-file with a CA of your own "
            "and --no-tls-check-name, or choose another sender"
        )


def _seconds(value: float) -> str:
    """Return a time-out as storescu takes it: whole seconds, of which 0 would mean none."""
    return str(max(1, math.ceil(value)))


def _answer_time(peer: Peer, items: Sequence[Item]) -> float:
    """Return the time-out for a response. storescu counts from the last byte that it wrote, when much of it is still under way."""
    largest = max(item.file_size - item.dataset_offset for item in items)
    return peer.answer_timeout + peer.stall_timeout + min(largest, _UNDER_WAY) / external.SLOWEST


def _profile(proposals: Sequence[Proposal]) -> str:
    """Return a file of association profiles with these contexts, in their order."""
    syntaxes = {uid: f"Syntax{n}" for n, uid in enumerate(dict.fromkeys(p.transfer_syntax_uid for p in proposals), 1)}
    lines = ["[[TransferSyntaxes]]"]
    for uid, name in syntaxes.items():
        lines += [f"[{name}]", f"TransferSyntax1 = {uid}"]
    lines += ["[[PresentationContexts]]", "[Contexts]"]
    for n, p in enumerate(proposals, 1):
        lines.append(f"PresentationContext{n} = {p.sop_class_uid}\\{syntaxes[p.transfer_syntax_uid]}")
    lines += ["[[Profiles]]", f"[{_PROFILE}]", "PresentationContexts = Contexts"]
    return "\n".join(lines) + "\n"


def _tls(settings: Tls | None) -> list[str]:
    """Return the options for TLS. Raises ConfigError where a file cannot be used: storescu would ask for a pass phrase."""
    if settings is None:
        return []
    tls.context(settings)
    own = ["+tla"]
    if settings.cert_file is not None:
        own = ["+tls", settings.key_file or settings.cert_file, settings.cert_file, "-pw"]
    trusted: list[str] = []
    if settings.ca_file is not None:
        trusted = ["+cf", settings.ca_file]
    else:
        system = ssl.get_default_verify_paths()
        trusted += ["+cf", system.cafile] if system.cafile else []
        trusted += ["+cd", system.capath] if system.capath else []
    return [*own, *trusted, "-rc"]


def _identity(settings: UserIdentity | None, private: Path) -> list[str]:
    """Return the options for User Identity Negotiation. What is secret goes into a file of arguments."""
    if settings is None:
        return []
    secret = files.read_secret(settings.secret_file) if settings.secret_file is not None else b""
    if settings.kind == 1 and settings.name is not None:
        return ["-usr", settings.name]
    if settings.kind == 2 and settings.name is not None:
        arguments = private / "identity"
        arguments.write_bytes(b"-pwd\n" + _quoted(secret) + b"\n")
        return ["-usr", settings.name, f"@{arguments}"]
    if settings.kind == 5:
        token = private / "token"
        token.write_bytes(secret)
        return ["--jwt", str(token)]
    raise ConfigError(f"the sender dcmtk does not offer user identity kind {settings.kind}")


def _quoted(secret: bytes) -> bytes:
    """Return a passcode as one argument in a file of arguments, which knows quotes and no other escape."""
    for quote in (b'"', b"'"):
        if quote not in secret and b"\n" not in secret and b"\r" not in secret and b"\0" not in secret:
            return quote + secret + quote
    raise ConfigError("the sender dcmtk cannot send a passcode with both kinds of quotes, or with line ends")
