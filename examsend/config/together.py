"""Rules over several settings of a destination."""

from __future__ import annotations

from collections.abc import Mapping

from examsend.config.destination import DestinationSettings, check_settings, option_of
from examsend.errors import UsageError
from examsend.states import Confirm


def check_together(settings: DestinationSettings) -> None:
    """Raise UsageError if settings contradict each other."""
    both = set((settings.accept_status or "").split(", ")) & set((settings.fail_status or "").split(", ")) - {""}
    if both:
        raise UsageError(f"status {min(both)} cannot be both in --accept-status and in --fail-status")
    if settings.confirm_backoff_max_seconds < settings.confirm_backoff_seconds:
        raise UsageError("--confirm-backoff-max cannot be less than --confirm-backoff")
    if settings.after != "keep" and settings.confirm == Confirm.NONE and not settings.sent_is_enough:
        raise UsageError(
            "--after lets sources go on the archive's proof: add --confirm, or --sent-is-enough if its answer to each C-STORE is enough"
        )
    if settings.backoff_max_seconds < settings.backoff_seconds:
        raise UsageError("--backoff-max cannot be less than --backoff")
    if settings.associations_per_study > settings.association_limit:
        raise UsageError("--associations-per-study cannot be more than --associations")
    if settings.fallback_sender == settings.sender:
        raise UsageError(f"--fallback-sender is to be another sender than --sender {settings.sender}")
    _check_identity(settings)
    certificates = (settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file, settings.tls_pin_sha256)
    if not settings.tls and any(certificates):
        raise UsageError("certificates are given but TLS is off: add --tls")
    if (settings.tls_cert_file is None) != (settings.tls_key_file is None):
        raise UsageError("a client certificate needs its key, and a key its certificate: give both")


_TIMEOUTS = ("connect_timeout", "accept_timeout", "answer_timeout", "stall_timeout")


def longest_timeout(settings: DestinationSettings) -> tuple[str, float]:
    """Return the option and the seconds of a destination's longest time-out."""
    name = max(_TIMEOUTS, key=lambda n: float(getattr(settings, n)))
    return option_of(name), float(getattr(settings, name))


def check_lease(values: Mapping[str, object], lease: float) -> None:
    """Raise UsageError if a time-out that is set now is longer than half the lease.

    Two renewals of a claim are never further apart than a time-out, and one of them may come late.
    """
    for name, value in check_settings({n: values.get(n) for n in _TIMEOUTS}).items():
        if value is not None and value > lease / 2:
            raise UsageError(
                f"{option_of(name)} {value:g} is longer than half the lease ({lease:g} s): give at most {lease / 2:g}, or"
                " raise the setting `lease` for every `examsend send`"
            )


def _check_identity(settings: DestinationSettings) -> None:
    kind = settings.user_identity_kind
    if kind is None and (settings.user_identity_name or settings.user_identity_file):
        raise UsageError("a user identity is given without its kind: add --user-identity-kind")
    if kind in {1, 2} and not settings.user_identity_name:
        raise UsageError(f"--user-identity-kind {kind} needs --user-identity-name")
    if kind in {2, 5} and not settings.user_identity_file:
        raise UsageError(f"--user-identity-kind {kind} needs --user-identity-file, which holds the secret")


def warnings(settings: DestinationSettings) -> list[str]:
    """Return what is allowed and deserves a second look, as sentences."""
    if settings.user_identity_kind in {2, 5} and not settings.tls:
        return ["the passcode or token goes over the network in plain text: use --tls"]
    return []
