"""Which presentation contexts are proposed for which instances, and in which one each instance goes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examsend.dicom import uids
from examsend.dicom.uids import EXPLICIT_VR_BIG_ENDIAN as BIG
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN as EXPLICIT
from examsend.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN as IMPLICIT
from examsend.dimse import contexts
from examsend.dimse.contexts import Carrier
from examsend.states import Transcode

RLE = uids.RLE_LOSSLESS
JPEG_LS = "1.2.840.10008.1.2.4.80"
EITHER = "1.2.840.10008.1.2.4.91"
LOSSY = "1.2.840.10008.1.2.4.50"


@dataclass(frozen=True)
class _Instance:
    sop_class_uid: str
    transfer_syntax_uid: str


def _proposed(*syntaxes: str, transcode: Transcode = Transcode.NEVER, most: int = 128) -> list[str]:
    instances = [_Instance("ct", syntax) for syntax in syntaxes]
    return [p.transfer_syntax_uid for p in contexts.propose(instances, transcode, most)]


def _chosen(syntax: str, transcode: Transcode, *accepted: str) -> list[str]:
    """Return the syntaxes in which an instance is sent, given those that are proposed and accepted."""
    proposed = _proposed(syntax, transcode=transcode)
    ids = {("ct", s): n for n, s in enumerate(proposed) if s in accepted}
    return [c.transfer_syntax_uid for c in contexts.choose(_Instance("ct", syntax), ids, transcode)]


def test_contexts_are_proposed_per_class_and_syntax_with_implicit_vr_for_native_ones() -> None:
    made = contexts.propose(
        [_Instance("ct", EXPLICIT), _Instance("ct", RLE), _Instance("ct", EXPLICIT), _Instance("mr", IMPLICIT)]
    )
    assert [(p.context_id, p.sop_class_uid, p.transfer_syntax_uid) for p in made] == [
        (1, "ct", EXPLICIT),
        (3, "ct", IMPLICIT),
        (5, "ct", RLE),
        (7, "mr", IMPLICIT),
    ]


def test_a_native_files_own_syntax_is_used_unless_it_is_refused() -> None:
    explicit = _Instance("ct", EXPLICIT)
    both = {("ct", EXPLICIT): 1, ("ct", IMPLICIT): 3}
    assert contexts.choose(explicit, both) == (Carrier(1, EXPLICIT),)
    del both["ct", EXPLICIT]
    assert contexts.choose(explicit, both) == (Carrier(3, IMPLICIT),)
    assert contexts.choose(_Instance("ct", RLE), both) == ()


def test_a_fallback_is_proposed_for_what_can_be_decoded_without_loss() -> None:
    assert _proposed(RLE, transcode=Transcode.FALLBACK) == [RLE, IMPLICIT, EXPLICIT]
    assert _proposed(LOSSY, transcode=Transcode.FALLBACK) == [LOSSY]
    assert _proposed("1.2.3.4", transcode=Transcode.FALLBACK) == ["1.2.3.4"]
    assert _proposed(RLE) == [RLE]


def test_a_compressed_file_falls_back_to_explicit_then_implicit_vr_only_where_its_own_syntax_is_refused() -> None:
    fallback = Transcode.FALLBACK
    assert _chosen(RLE, fallback, RLE, EXPLICIT, IMPLICIT) == [RLE]
    assert _chosen(RLE, fallback, EXPLICIT, IMPLICIT) == [EXPLICIT]
    assert _chosen(RLE, fallback, IMPLICIT) == [IMPLICIT]
    assert _chosen(RLE, fallback) == []
    assert _chosen(LOSSY, fallback, EXPLICIT, IMPLICIT) == []


def test_fallbacks_are_left_out_where_they_do_not_fit() -> None:
    syntaxes = (RLE, JPEG_LS, LOSSY)
    assert _proposed(*syntaxes, transcode=Transcode.FALLBACK, most=4) == [*syntaxes, IMPLICIT]
    assert _proposed(*syntaxes, transcode=Transcode.FALLBACK, most=3) == [*syntaxes]
    with pytest.raises(ValueError, match="do not fit"):
        _proposed(*syntaxes, transcode=Transcode.FALLBACK, most=2)


def test_with_a_target_only_that_is_proposed_for_a_compressed_file() -> None:
    always = Transcode.ALWAYS_EXPLICIT
    assert _proposed(RLE, transcode=always) == [EXPLICIT]
    assert _proposed(LOSSY, transcode=always) == [LOSSY]
    assert _proposed(EITHER, transcode=always) == [EXPLICIT, EITHER]
    assert _proposed(RLE, transcode=Transcode.ALWAYS_RLE) == [RLE]
    assert _chosen(EITHER, always, EXPLICIT, EITHER) == [EXPLICIT, EITHER]
    assert _chosen(EITHER, always, EITHER) == []
    assert _chosen(RLE, always) == []


def test_with_a_target_a_native_file_goes_as_it_is_where_the_target_is_refused() -> None:
    assert _chosen(EXPLICIT, Transcode.ALWAYS_RLE, RLE, EXPLICIT, IMPLICIT) == [RLE, EXPLICIT]
    assert _chosen(EXPLICIT, Transcode.ALWAYS_RLE, IMPLICIT) == [IMPLICIT]
    assert _chosen(BIG, Transcode.ALWAYS_EXPLICIT, BIG) == [BIG]
    assert _chosen(IMPLICIT, Transcode.ALWAYS_RLE, RLE, IMPLICIT) == [RLE, IMPLICIT]
    assert _chosen(IMPLICIT, Transcode.ALWAYS_EXPLICIT, IMPLICIT) == [IMPLICIT]


@pytest.mark.parametrize(
    ("syntax", "transcode", "why"),
    [
        (EXPLICIT, Transcode.FALLBACK, "for ct in 1.2.840.10008.1.2.1"),
        (RLE, Transcode.NEVER, "transcode is never"),
        (LOSSY, Transcode.FALLBACK, "cannot be converted without loss"),
        (RLE, Transcode.FALLBACK, "nor uncompressed"),
        (
            RLE,
            Transcode.ALWAYS_EXPLICIT,
            "for ct in 1.2.840.10008.1.2.1, to which all that is in 1.2.840.10008.1.2.5 is",
        ),
    ],
)
def test_a_refused_instance_is_reported_with_the_reason_why_it_is_not_converted(
    syntax: str, transcode: Transcode, why: str
) -> None:
    proposed = {("ct", s) for s in _proposed(syntax, transcode=transcode)}
    assert why in contexts.refusal(_Instance("ct", syntax), transcode, proposed)


def test_a_fallback_for_which_there_was_no_room_is_not_said_to_be_refused() -> None:
    assert "no room" in contexts.refusal(_Instance("ct", RLE), Transcode.FALLBACK, {("ct", RLE)})


_SYNTAXES = st.sampled_from(
    [EXPLICIT, IMPLICIT, BIG, uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, RLE, JPEG_LS, EITHER, LOSSY, "1.9"]
)
_INSTANCES = st.lists(st.builds(_Instance, st.integers(0, 60).map(str), _SYNTAXES), max_size=300)


@given(_INSTANCES, st.sampled_from(Transcode), st.integers(3, 128))
def test_every_instance_can_go_in_a_context_of_its_part(
    instances: list[_Instance], transcode: Transcode, most: int
) -> None:
    parts = contexts.partition(instances, transcode, most)
    assert sorted(map(id, (i for part in parts for i in part))) == sorted(map(id, instances))
    place = {id(i): n for n, i in enumerate(instances)}
    for part in parts:
        assert [place[id(i)] for i in part] == sorted(place[id(i)] for i in part)
        proposals = contexts.propose(part, transcode, most)
        assert len(proposals) <= most
        assert [p.context_id for p in proposals] == list(range(1, 2 * len(proposals), 2))
        offered = {(p.sop_class_uid, p.transfer_syntax_uid): p.context_id for p in proposals}
        assert len(offered) == len(proposals)
        for instance in part:
            chosen = contexts.choose(instance, offered, transcode)
            own = instance.transfer_syntax_uid
            # What the receiver takes as it is, is not converted, except to the target.
            assert chosen[0].transfer_syntax_uid in ({own} if transcode.target is None else {own, transcode.target})
            assert all(offered[instance.sop_class_uid, c.transfer_syntax_uid] == c.context_id for c in chosen)


@given(_INSTANCES, st.sampled_from(Transcode), st.sets(_SYNTAXES))
def test_what_is_always_lossy_is_never_converted(
    instances: list[_Instance], transcode: Transcode, accepted: set[str]
) -> None:
    for instance in instances:
        ids = {(instance.sop_class_uid, syntax): 1 for syntax in accepted}
        chosen = contexts.choose(instance, ids, transcode)
        if instance.transfer_syntax_uid in {LOSSY, "1.9"}:
            assert {c.transfer_syntax_uid for c in chosen} <= {instance.transfer_syntax_uid}
