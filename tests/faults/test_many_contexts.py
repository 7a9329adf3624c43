"""A study with more pairs of SOP class and transfer syntax than one association has contexts, of which only some are accepted.

That all of them arrive where all are accepted is tested in ``tests/chain/test_chain.py``.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

from examsend.config.settings import Settings
from examsend.db import engine
from examsend.demo import samples
from examsend.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, RLE_LOSSLESS
from tests.faults.checking import ran, sound
from tests.helpers import add, digests, prepare, rows, states
from tests.peers.scripted import Script, scripted

CLASSES = 70
"""With two transfer syntaxes each: 140 pairs."""


def _class(n: int) -> str:
    return f"1.2.826.0.1.3680043.10.1.{n}"


def _write(drop: Path) -> dict[tuple[str, str], str]:
    """Write one file for each pair; return the SOP Instance UID of each."""
    drop.mkdir()
    study, series = samples.new_uid(), samples.new_uid()
    made = {}
    then = time.time() - 3600
    for n in range(CLASSES):
        for syntax in (EXPLICIT_VR_LITTLE_ENDIAN, RLE_LOSSLESS):
            uid, native = samples.new_uid(), syntax == EXPLICIT_VR_LITTLE_ENDIAN
            image = samples.Image(samples.CT, study, series, 1, 2 * n + native, 4, 4, bits=16 if native else 8)
            pixels = samples.element(0x7FE00010, "OW", samples.picture(image, n))
            data = samples.data_set(image, uid, pixels if native else samples.rle_frames(4, 4, 1))
            data = (
                samples.element(0x00080016, "UI", _class(n)) + data[data.index(struct.pack("<HH", 8, 0x18) + b"UI") :]
            )
            path = drop / f"{n}-{'native' if native else 'rle'}.dcm"
            path.write_bytes(samples.file_of(data, _class(n), uid, syntax))
            os.utime(path, (then, then))
            made[_class(n), syntax] = uid
    return made


def test_of_140_pairs_the_accepted_ones_are_stored_and_the_others_fail_with_their_reason(
    settings: Settings, database: engine.Database, database_url: str, tmp_path: Path
) -> None:
    """The receiver takes one class in three in no syntax, one as RLE only, and one in native syntaxes only."""
    made = _write(tmp_path / "drop")

    def accept(sop_class: str, syntax: str) -> bool:
        kind = int(sop_class.rpartition(".")[2]) % 3
        return kind == (1 if syntax == RLE_LOSSLESS else 2)

    with scripted(Script(accept=accept)) as peer:
        add(settings, peer.address)
        prepare(settings, tmp_path / "drop")
        said = ran(database_url, "send", code=1)
        assert "FAILED" in said
        taken = {uid for (sop_class, syntax), uid in made.items() if accept(sop_class, syntax)}
        assert sorted(peer.offered) == sorted(taken), "what is accepted is offered once, and nothing else"
        content = digests(database)
        assert all(r.digest == content[r.sop_instance_uid] for r in peer.stored)
        # A native pair needs two contexts, its own and Implicit VR: 210 in all.
        assert peer.associations == 2
        sound(database, tmp_path / "drop", peers=[peer])
        outcomes = {
            uid: (outcome, comment)
            for uid, outcome, comment in rows(
                database, "SELECT sop_instance_uid, outcome, error_comment FROM exam_batch_instances"
            )
        }
        assert {uid for uid, (outcome, _) in outcomes.items() if outcome == "STORED"} == taken
        refused = [outcomes[uid] for uid in made.values() if uid not in taken]
        assert all(outcome == "FAILED" and "no presentation context" in comment for outcome, comment in refused), (
            refused[:3]
        )
        assert states(database) == ["FAILED"]
        # The receiver is set up for all classes: a retry sends the rest alone, over as few associations.
        peer.script.accept = lambda _class, _syntax: True
        ran(database_url, "retry", "1")
        ran(database_url, "send")
        assert len(peer.offered) == len(set(peer.offered)) == 2 * CLASSES
        assert peer.associations <= 4
        sound(database, tmp_path / "drop", peers=[peer])
    assert states(database) == ["SENT"]
