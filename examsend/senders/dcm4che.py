"""The sender that runs dcm4che's storescu.

It takes UIDs and transfer syntax from the file meta information, so these are compared with what was ingested before it is
started. It decompresses what the peer does not take compressed: unless the destination wants that, its decoders are taken away.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from examsend.config.settings import Settings
from examsend.dicom import plugins, uids
from examsend.dicom.start import meta_information
from examsend.dimse.contexts import MAX_CONTEXTS
from examsend.dimse.payload import Unusable
from examsend.errors import ConfigError, FileProblem
from examsend.senders import child, external, keystores
from examsend.senders.base import Capabilities
from examsend.senders.dcm4che_output import Dcm4cheReader, configuration
from examsend.senders.program_search import Search, Unfit
from examsend.states import SenderName, Transcode
from examsend.transfer import AssociationEnd, Item, Peer, Problem, Tls, UserIdentity, Watcher

_OPTIONS = ("--no-evrle", "--no-ivrle", "--tls-eia-https", "--tls-protocol", "--max-ops-invoked", "--response-timeout")
"""Options that are used, of which older releases lack some. The newest are --no-evrle and --no-ivrle, of 5.34.2."""

_HELP_SECONDS = 8.0

_INSTALL = "install dcm4che 5.34.2 or later, and set EXAMSEND_DCM4CHE to its storescu or to the directory that holds bin/storescu"

_CIPHERS = (
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_DHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_DHE_RSA_WITH_AES_256_GCM_SHA384",
)
"""Cipher suites of BCP 195 that Java has had since TLS 1.3; the first two are of TLS 1.3."""

_LOGGING, _DECODERS = "examsend-logging.xml", "examsend-decoders.properties"

_LONGEST_PDU = 131072
"""Bytes of a P-DATA-TF that it sends at most. It allocates one."""


class Dcm4cheSender:
    """See ``base.Sender``."""

    name = SenderName.DCM4CHE.value
    capabilities = Capabilities(
        pins_certificate=False,
        async_window=True,
        user_identity_kinds=(1,),
        keeps_order=False,
        live_progress=False,
        stops_after_instance=False,
        converts_byte_order=True,
        most_contexts=MAX_CONTEXTS - 1,  # it always proposes Verification
        notes=(
            "Instances are sent in no particular order.",
            "With transcode fallback, dcm4che's own decoders are used, if all compressed instances of the batch are in lossless syntaxes.",
            "Files whose file meta information is missing or differs from their data set, and deflated ones of odd length, are not sent.",
            "TLS: the name in the certificate must be the host that is connected to. Needs `pip install examsend[dcm4che]`.",
            "Told to stop, storescu is killed: the peer sees the connection close, without A-ABORT.",
        ),
    )

    def __init__(self, settings: Settings) -> None:
        self._given = settings.dcm4che

    def check(self, peer: Peer) -> None:
        """See ``base.Sender.check``."""
        _find(self._given)
        _check(peer)
        if peer.tls is not None:
            keystores.check(peer.tls)

    def send(self, peer: Peer, items: Sequence[Item], watcher: Watcher) -> AssociationEnd:
        """See ``base.Sender.send``."""
        return external.run(_Storescu(self._given, peer), peer, items, watcher)


class _Storescu:
    """See ``program_output.Program``. Used once."""

    def __init__(self, given: Path | None, peer: Peer) -> None:
        self._given = given
        self._peer = peer
        self._token = secrets.token_hex(16)
        self._decodes = False

    def check(self, item: Item) -> None:
        """See ``program_output.Program``."""
        _check_item(item)

    def command(self, peer: Peer, items: Sequence[Item], files: Path, private: Path) -> list[str]:
        """See ``program_output.Program``."""
        program = _find(self._given)
        _check(peer)
        self._decodes = _may_decode(peer.transcode, items)
        (private / _LOGGING).write_text(configuration(self._token))
        (private / _DECODERS).touch()
        pdu = max(peer.max_pdu, 4096) if peer.max_pdu else 0
        return [
            str(program), "-b", peer.calling_aet, "-c", f"{peer.called_aet}@{peer.host}:{peer.port}",
            "--connect-timeout", _milliseconds(peer.connect_timeout),
            "--accept-timeout", _milliseconds(peer.accept_timeout),
            "--release-timeout", _milliseconds(peer.answer_timeout),
            "--max-pdulen-rcv", str(pdu), "--max-pdulen-snd", str(_LONGEST_PDU), "--tmp-file-dir", ".",
            *_window(peer), *_priority(peer.priority), *_contexts(items, decodes=self._decodes),
            *_tls(peer.tls, private), *_identity(peer.user_identity), os.path.relpath(files, private),
        ]  # fmt: skip

    def environment(self, private: Path) -> dict[str, str]:  # noqa: ARG002
        """See ``program_output.Program``. What the user has set for Java is kept; paths are relative, as they may have spaces."""
        # Without UsePerfData it leaves no file behind when it is killed.
        options = ["-XX:-UsePerfData", "-Djava.awt.headless=true", f"-Dlogback.configurationFile={_LOGGING}"]
        added = {}
        if not self._decodes:
            options.append(f"-Dorg.dcm4che3.imageio.codec.ImageReaderFactory=file:{_DECODERS}")
            # dcm4che's own script gives this one to Java.
            added["IMAGE_READER_FACTORY"] = f"file:{_DECODERS}"
        own = os.environ.get("JAVA_TOOL_OPTIONS", "")
        return {**added, "JAVA_TOOL_OPTIONS": " ".join(filter(None, (own, *options)))}

    def reader(self, items: Sequence[Item]) -> Dcm4cheReader:
        """See ``program_output.Program``."""
        return Dcm4cheReader(items, self._token, converts=self._decodes, tls=self._peer.tls is not None)


# --- the program ---


def _find(given: Path | None) -> Path:
    """Given the setting, return dcm4che's storescu. Raises ConfigError.

    DCMTK has a program of the same name: on PATH, the first that is dcm4che's is taken.
    """
    try:
        return _SEARCH.find(given)[0]
    except Unfit as why:
        raise ConfigError(f"the sender dcm4che needs dcm4che's storescu, and {why}: {_INSTALL}") from None


def _prove(program: Path) -> None:
    """Raise Unfit where a program is not a storescu of dcm4che that is new enough, OSError where it cannot be run."""
    lines = child.output([str(program), "--help"], external.inherited(), _HELP_SECONDS)
    if lines is None:
        raise Unfit(f"did not end within {_HELP_SECONDS:g} s")
    shown = {word for line in lines for word in line.split()[:2]}
    if "--max-ops-invoked" not in shown:
        if any("$dcmtk" in line for line in lines):
            raise Unfit("is DCMTK's")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        quote = "".join(c if c.isprintable() else "?" for c in last)[:200]
        raise Unfit(f"is not dcm4che's, or cannot be run (it says: {quote})")
    missing = [option for option in _OPTIONS if option not in shown]
    if missing:
        raise Unfit(f"is too old: it has no option {missing[0]}")


_SEARCH = Search(_prove)


def _check(peer: Peer) -> None:
    """Raise ConfigError where storescu cannot do what a setting asks for."""
    if peer.transcode not in {Transcode.NEVER, Transcode.FALLBACK}:
        raise ConfigError("the sender dcm4che converts only what the peer does not take as it is: "
                          "set --transcode never or fallback, or choose another sender")  # fmt: skip
    if ":" in peer.host:
        raise ConfigError(
            "the sender dcm4che cannot be given an IPv6 address: use a host name, or choose another sender"
        )
    if not peer.host.isascii():
        raise ConfigError("the sender dcm4che cannot be given this host name: use its ASCII form")
    _check_title(peer.called_aet, "called", "@")
    _check_title(peer.calling_aet, "calling", "@:")
    if peer.tls is not None:
        _check_tls(peer.tls, peer.host)
    _identity(peer.user_identity)


def _check_title(title: str, which: str, separators: str) -> None:
    if title.startswith(("-", '"')) or any(c in title for c in separators):
        raise ConfigError(f"the sender dcm4che cannot be given the {which} AE title {title}: choose another sender")


def _check_tls(settings: Tls, host: str) -> None:
    if settings.pin_sha256 is not None:
        raise ConfigError("the sender dcm4che cannot pin a certificate: choose another sender")
    if settings.check_name and settings.server_name not in {None, host}:
        raise ConfigError("the sender dcm4che checks that the certificate names the host that is connected to, and no other "
                          "name: connect to that name, use --no-tls-check-name, or choose another sender")  # fmt: skip


# --- its arguments ---


def _may_decode(transcode: Transcode, items: Sequence[Item]) -> bool:
    """Return whether it may decompress. It cannot be told which files, so that all must be lossless."""
    compressed = {item.transfer_syntax_uid for item in items} - uids.NATIVE
    return transcode is Transcode.FALLBACK and compressed <= plugins.DECODED - plugins.MAY_BE_LOSSY


def _contexts(items: Sequence[Item], *, decodes: bool) -> list[str]:
    """Return the options by which it proposes no more contexts than those that are of use, and not more than fit.

    It proposes each class in Explicit and in Implicit VR Little Endian also, Verification, and what the files are in.
    """
    pairs = {(item.sop_class_uid, item.transfer_syntax_uid) for item in items}
    implicit = pairs | {(sop_class, uids.IMPLICIT_VR_LITTLE_ENDIAN) for sop_class, _ in pairs}
    both = implicit | {(sop_class, uids.EXPLICIT_VR_LITTLE_ENDIAN) for sop_class, _ in pairs}
    native = any(item.transfer_syntax_uid in uids.NATIVE for item in items)
    options = [] if decodes and len(both) < MAX_CONTEXTS else ["--no-evrle"]
    if not (decodes or native) or len(implicit) >= MAX_CONTEXTS:
        options.append("--no-ivrle")
    return options


def _window(peer: Peer) -> list[str]:
    if peer.async_window == 1:
        # The time-out runs from the last byte of a data set, so that it is of use only where no other waits before it.
        return ["--not-async", "--response-timeout", _milliseconds(peer.answer_timeout)]
    return ["--max-ops-invoked", str(peer.async_window), "--max-ops-performed", "1"]


def _priority(priority: int) -> list[str]:
    return {1: ["--prior-high"], 2: ["--prior-low"]}.get(priority, [])


def _milliseconds(seconds: float) -> str:
    """Return a time-out as storescu takes it: milliseconds, of which 0 would mean none."""
    return str(min(max(1, math.ceil(seconds * 1000)), 2**31 - 1))


def _tls(settings: Tls | None, private: Path) -> list[str]:
    """Return the options for TLS. Never its built-in test certificates: both stores are given always."""
    if settings is None:
        return []
    trust, key = keystores.write(settings, private)
    options = ["--trust-store", trust.name, "--key-store", key.name]
    for protocol in ("TLSv1.2", "TLSv1.3"):
        options += ["--tls-protocol", protocol]
    for cipher in _CIPHERS:
        options += ["--tls-cipher", cipher]
    return options + (["--tls-eia-https"] if settings.check_name else [])


def _identity(settings: UserIdentity | None) -> list[str]:
    """Return the options for User Identity Negotiation. Raises ConfigError."""
    if settings is None:
        return []
    if settings.kind != 1 or settings.name is None:
        raise ConfigError(
            "the sender dcm4che would show passcode or token to other users of this host: choose another sender"
        )
    if not settings.name.isascii() or settings.name.startswith(("-", '"')):
        raise ConfigError("the sender dcm4che cannot be given this user name: choose another sender")
    return ["--user", settings.name]


# --- its files ---


def _check_item(item: Item) -> None:
    """Raise Unusable where dcm4che would send something else than the item. The file may be missing; that is found later."""
    if (
        item.transfer_syntax_uid == uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN
        and (item.file_size - item.dataset_offset) % 2
    ):
        raise Unusable(
            Problem.ODD_LENGTH, "the deflated data set has an odd length, and dcm4che does not pad it (PS3.5 A.5)"
        )
    objection = _meta_objection(item)
    if objection is not None:
        raise Unusable(Problem.UNCONVERTIBLE, objection)


def _meta_objection(item: Item) -> str | None:
    try:
        fd = os.open(item.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        head = os.pread(fd, item.dataset_offset + 8, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    begin = 132 if head[128:132] == b"DICM" else 0
    if head[begin : begin + 2] != b"\x02\x00":
        return "the file has no file meta information, from which dcm4che takes the UIDs"
    try:
        _, meta = meta_information(head, begin)
    except FileProblem as problem:
        return f"dcm4che cannot read the file meta information: {problem}"
    if not meta.get(0x00020010):
        return "the file has no Transfer Syntax UID (0002,0010), which dcm4che takes from there"
    for tag, own in (
        (0x00020002, item.sop_class_uid),
        (0x00020003, item.sop_instance_uid),
        (0x00020010, item.transfer_syntax_uid),
    ):
        # Where one of the first two is missing, dcm4che looks into the data set.
        if meta.get(tag) and meta[tag] != own:
            name = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
            return f"{name} of the file meta information is not that of the data set, and dcm4che would send it"
    if head[begin + 2 : begin + 8] == b"\x00\x00UL\x04\x00":
        end = begin + 12 + int.from_bytes(head[begin + 8 : begin + 12], "little")
        if end < item.dataset_offset:
            return "the length (0002,0000) of the file meta information is too short, and dcm4che would send the rest of it too"
    return None
