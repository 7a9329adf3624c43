"""The settings of a destination, each declared once: type, default, check, command-line option and help.

The columns of storage_backend_configs, the options of ``examsend destination add`` and ``set``, and the rows of ``destination
show`` are made from these declarations. Tests compare the migrations and docs/operating.md with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from examsend.config import checks
from examsend.errors import UsageError
from examsend.states import Confirm, LatePolicy, OnDisputed, OnIncomplete, SenderName, Transcode


@dataclass(frozen=True, slots=True)
class Declared:
    """The check, the help text and the command-line option of one setting."""

    check: checks.Check
    help: str
    option: str | None
    """The command-line option; "--a/--no-a" for a flag; None: part of the address, or set by a separate command."""
    metavar: str | None


_SECONDS = "SECONDS"

LONGEST_TIMEOUT = 86400.0
"""Seconds. The system counts time-outs of a connection in milliseconds, in 31 bits."""
_REQUIRED = object()


def _setting(
    default: Any, check: checks.Check, about: str, option: str | None = None, metavar: str | None = None
) -> Any:
    metadata = {"declared": Declared(check, about, option, metavar)}
    return field(metadata=metadata) if default is _REQUIRED else field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationSettings:
    """Address of a destination, how to send to it, and when a study for it is complete. Times in seconds."""

    host: str = _setting(_REQUIRED, checks.host, "Host name or address.")
    port: int = _setting(_REQUIRED, checks.whole(1, 65535), "TCP port.")
    called_aet: str = _setting(_REQUIRED, checks.ae_title, "Called AE title.")
    calling_aet: str = _setting("EXAMSEND", checks.ae_title, "Calling AE title.", "--calling-aet", "AET")
    sender: SenderName = _setting(
        SenderName.NATIVE, checks.member(SenderName), f"Sender to use: {', '.join(SenderName)}.", "--sender", "NAME"
    )
    fallback_sender: SenderName | None = _setting(
        None,
        checks.member(SenderName),
        "Sender to use once --fallback-after associations in a row have ended in protocol errors.",
        "--fallback-sender",
        "NAME",
    )
    fallback_after: int = _setting(
        3, checks.whole(1, 1000), "Protocol errors in a row before --fallback-sender is used.", "--fallback-after", "N"
    )
    transcode: Transcode = _setting(
        Transcode.NEVER,
        checks.member(Transcode),
        "Convert compressed instances, without loss: never, fallback (where the peer does not accept them as they are), or"
        " always:UID.",
        "--transcode",
        "POLICY",
    )
    enabled: bool = _setting(True, checks.flag, "Whether files are routed to it and batches are sent.")
    is_default: bool = _setting(
        True, checks.flag, "Whether ingest without --to routes to it.", "--default/--no-default"
    )

    quiet_seconds: float = _setting(
        60.0,
        checks.number(0, 1e9),
        "A study is complete this long after its last new instance.",
        "--quiet-period",
        _SECONDS,
    )
    longest_wait_seconds: float = _setting(
        5400.0,
        checks.number(0, 1e9),
        "A study is complete this long after its batch was opened, at the latest.",
        "--longest-wait",
        _SECONDS,
    )
    grace_seconds: float = _setting(
        2.0,
        checks.number(0, 1e9),
        "A study of which all announced instances are here goes this long after the last one.",
        "--grace",
        _SECONDS,
    )
    on_incomplete: OnIncomplete = _setting(
        OnIncomplete.SEND,
        checks.member(OnIncomplete),
        "After the longest wait, an incomplete study: send goes with a warning, hold waits for a person.",
        "--on-incomplete",
        "send|hold",
    )
    required_series: str | None = _setting(
        None,
        checks.required_series,
        'Series that each study must have: "CT=2; Scout*" is two of modality CT, and one so described.',
        "--required-series",
        "TEXT",
    )
    series_quiet_seconds: float = _setting(
        10.0,
        checks.number(0, 1e9),
        "A study with its required series is complete this long after their last new instance.",
        "--series-quiet",
        _SECONDS,
    )
    expect_from: str | None = _setting(
        None,
        checks.short_text(300),
        "Archive that is asked for the instances of quiet studies: AET@HOST:PORT, or a destination's name.",
        "--expect-from",
        "ARCHIVE",
    )
    late_policy: LatePolicy = _setting(
        LatePolicy.NEW_ONLY,
        checks.member(LatePolicy),
        "What arrives after the first attempt: new-only, resend-all (the whole study again) or never.",
        "--late-policy",
        "POLICY",
    )
    late_cutoff_hours: float | None = _setting(
        None,
        checks.number(0, 1e6),
        "What arrives so many hours after the study was SENT has another policy.",
        "--late-cutoff",
        "HOURS",
    )
    late_policy_after: LatePolicy = _setting(
        LatePolicy.NEVER,
        checks.member(LatePolicy),
        "The policy for what arrives after --late-cutoff.",
        "--late-policy-after",
        "POLICY",
    )

    confirm: Confirm = _setting(
        Confirm.NONE,
        checks.member(Confirm),
        "How the archive is asked whether it has what was SENT: none, commitment (Storage Commitment) or query (C-FIND).",
        "--confirm",
        "none|commitment|query",
    )
    confirm_to: str | None = _setting(
        None,
        checks.short_text(300),
        "Archive that is asked: AET@HOST:PORT, or a destination's name. Not set: the destination itself.",
        "--confirm-to",
        "ARCHIVE",
    )
    confirm_after_seconds: float = _setting(
        60.0,
        checks.number(0, 1e9),
        "The archive is asked this long after a batch is SENT.",
        "--confirm-after",
        _SECONDS,
    )
    confirm_timeout_seconds: float = _setting(
        86400.0,
        checks.number(1, 1e9),
        "A batch that is not confirmed for this long is for a person.",
        "--confirm-timeout",
        _SECONDS,
    )
    confirm_backoff_seconds: float = _setting(
        120.0,
        checks.number(0.01, 1e9),
        "First pause until the archive is asked again; it doubles. Never over 40 times a day.",
        "--confirm-backoff",
        _SECONDS,
    )
    confirm_backoff_max_seconds: float = _setting(
        3600.0,
        checks.number(0.01, 1e9),
        "Longest pause until the archive is asked again.",
        "--confirm-backoff-max",
        _SECONDS,
    )
    confirm_instances: int = _setting(
        500,
        checks.whole(1, 10_000),
        "Instances in one request for Storage Commitment, at most.",
        "--confirm-instances",
        "N",
    )
    on_disputed: OnDisputed = _setting(
        OnDisputed.RESEND,
        checks.member(OnDisputed),
        "Instances that the archive does not have: resend puts them in line again, once; report waits for a person.",
        "--on-disputed",
        "resend|report",
    )
    after: str = _setting(
        "keep",
        checks.after,
        "What confirm does with a source file once every destination it went to has confirmed it: keep, remove or move:DIR.",
        "--after",
        "keep|remove|move:DIR",
    )
    sent_is_enough: bool = _setting(
        False,
        checks.flag,
        "For --after, SENT is proof enough of this destination: what it stored need not be confirmed.",
        "--sent-is-enough/--no-sent-is-enough",
    )

    association_limit: int = _setting(1, checks.whole(1, 1000), "Associations open at a time.", "--associations", "N")
    associations_per_study: int = _setting(
        1,
        checks.whole(1, 64),
        "Split a large study over this many parallel associations, for a distant receiver that grants no window.",
        "--associations-per-study",
        "N",
    )
    async_window: int = _setting(
        1,
        checks.whole(0, 65535),
        "C-STORE requests outstanding (PS3.7 D.3.3.3): 1 proposes nothing, 0 asks for no limit.",
        "--async-window",
        "N",
    )
    priority: int = _setting(0, checks.whole(0, 2), "Priority: 0 medium, 1 high, 2 low.", "--priority", "N")

    accept_status: str | None = _setting(
        None,
        checks.statuses,
        "Statuses that count as stored at this destination, beyond success and warnings: 0111, A801.",
        "--accept-status",
        "CODES",
    )
    fail_status: str | None = _setting(
        None,
        checks.statuses,
        "Statuses that fail an instance for good at this destination, although the standard's table says otherwise.",
        "--fail-status",
        "CODES",
    )
    max_attempts: int = _setting(
        10, checks.whole(1, 10_000), "Attempts before a batch goes FAILED.", "--max-attempts", "N"
    )
    backoff_seconds: float = _setting(
        30.0, checks.number(0.01, 1e9), "First pause after a failure; it doubles.", "--backoff", _SECONDS
    )
    backoff_max_seconds: float = _setting(
        600.0, checks.number(0.01, 1e9), "Longest pause after a failure.", "--backoff-max", _SECONDS
    )
    expire_seconds: float = _setting(
        432000.0, checks.number(1, 1e9), "A batch that is READY for this long goes FAILED.", "--expire", _SECONDS
    )

    connect_timeout: float = _setting(
        10.0,
        checks.number(0.1, LONGEST_TIMEOUT),
        "Time-out to connect, TLS handshake included.",
        "--connect-timeout",
        _SECONDS,
    )
    accept_timeout: float = _setting(
        30.0,
        checks.number(0.1, LONGEST_TIMEOUT),
        "Time-out for the answer to A-ASSOCIATE-RQ.",
        "--accept-timeout",
        _SECONDS,
    )
    answer_timeout: float = _setting(
        60.0,
        checks.number(0.1, LONGEST_TIMEOUT),
        "Time-out for the answer to a C-STORE, from the last byte sent.",
        "--answer-timeout",
        _SECONDS,
    )
    stall_timeout: float = _setting(
        60.0,
        checks.number(0.1, LONGEST_TIMEOUT),
        "Time-out while the peer accepts no byte; it restarts with each byte.",
        "--stall-timeout",
        _SECONDS,
    )

    tls: bool = _setting(False, checks.flag, "Use TLS 1.2 or later, without a fallback to plain TCP.", "--tls/--no-tls")
    tls_ca_file: str | None = _setting(None, checks.file, "CA certificates (PEM).", "--tls-ca-file", "FILE")
    tls_cert_file: str | None = _setting(None, checks.file, "Client certificate (PEM).", "--tls-cert-file", "FILE")
    tls_key_file: str | None = _setting(
        None, checks.file, "Private key of the client certificate (PEM).", "--tls-key-file", "FILE"
    )
    tls_server_name: str | None = _setting(
        None, checks.host, "The name in the peer's certificate, if not the host.", "--tls-server-name", "NAME"
    )
    tls_pin_sha256: str | None = _setting(
        None,
        checks.sha256,
        "SHA-256 of the peer's certificate, checked instead of chain and name.",
        "--tls-pin",
        "HEX",
    )
    tls_check_name: bool = _setting(
        True,
        checks.flag,
        "The name in the peer's certificate must be right.",
        "--tls-check-name/--no-tls-check-name",
    )
    user_identity_kind: int | None = _setting(
        None,
        checks.one_of(1, 2, 5),
        "User identity (PS3.7 D.3.3.7): 1 username, 2 username and passcode, 5 JSON Web Token.",
        "--user-identity-kind",
        "N",
    )
    user_identity_name: str | None = _setting(
        None, checks.short_text(1024), "The username.", "--user-identity-name", "NAME"
    )
    user_identity_file: str | None = _setting(
        None, checks.file, "File that holds the passcode or the token.", "--user-identity-file", "FILE"
    )


DECLARED: Mapping[str, Declared] = {f.name: f.metadata["declared"] for f in fields(DestinationSettings)}
"""The declaration of each setting, by field name."""


def type_of(setting: Field[Any]) -> tuple[str, bool]:
    """Given a field of the settings, return the name of its type, and whether it may be None (not set)."""
    kind = str(setting.type)
    return kind.removesuffix(" | None"), kind.endswith(" | None")


def option_of(name: str) -> str:
    """Given the name of a destination's field, return its option, or the field name if it has no option."""
    option = DECLARED[name].option if name in DECLARED else None
    return option.split("/")[0] if option else name.replace("_", "-")


def label(name: str) -> str:
    """Given the name of a destination's field, return the name shown to users: its option without dashes."""
    return option_of(name).removeprefix("--")


def optional_setting(option: str) -> str:
    """Given an option, with or without its dashes, return the name of its field. Raises UsageError where there is none, or where
    the setting always has a value."""
    wanted = option.strip().removeprefix("--")
    for setting in fields(DestinationSettings):
        if DECLARED[setting.name].option is not None and label(setting.name) == wanted:
            if type_of(setting)[1]:
                return setting.name
            raise UsageError(f"--{wanted} always has a value: give it another one")
    raise UsageError(f"{option!r} is not an option of a destination")


def check_settings(values: Mapping[str, object]) -> dict[str, Any]:
    """Given settings by field name, return them checked and in their types. None (not set) stays None.

    Raises UsageError, which names the option.
    """
    checked: dict[str, Any] = {}
    for name, value in values.items():
        try:
            checked[name] = None if value is None else DECLARED[name].check(value)
        except ValueError as error:
            raise UsageError(f"{option_of(name)} {error}") from None
    return checked


def check_name(value: str) -> str:
    """Given a destination's name, return it: 1 to 64 letters, digits, ``.``, ``_`` and ``-``. Raises UsageError."""
    try:
        return checks.destination_name(value)
    except ValueError as error:
        raise UsageError(f"the name {value!r} {error}") from None


def host_port(host: str, port: int) -> str:
    """Return ``HOST:PORT`` as people write it: an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address(aet: str, host: str, port: int) -> str:
    """Return ``AET@HOST:PORT``, which ``parse_address`` reads."""
    return f"{aet}@{host_port(host, port)}"


_ADDRESS = re.compile(r"(?P<aet>.+)@(?:\[(?P<six>[^\]]+)\]|(?P<host>[^@:\[\]]+)):(?P<port>\d{1,5})", re.DOTALL)


def parse_address(value: str) -> dict[str, Any]:
    """Given ``AET@HOST:PORT`` (an IPv6 address in brackets), return called_aet, host and port. Raises UsageError."""
    match = _ADDRESS.fullmatch(value.strip())
    if match is None:
        raise UsageError(f"{value!r} is not AET@HOST:PORT, as in ARCHIVE@10.0.0.5:104 or ARCHIVE@[fe80::1]:104")
    parts = {"called_aet": match["aet"], "host": match["six"] or match["host"], "port": int(match["port"])}
    try:
        return check_settings(parts)
    except UsageError as error:
        raise UsageError(f"{value!r} is not AET@HOST:PORT: {error}") from None
