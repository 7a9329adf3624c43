"""Every file of the open corpus, if it is present: examsend accepts what dcmsend sends, with the listed exceptions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from examsend.dicom import identity
from examsend.errors import FileProblem

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "open"
MANIFEST = CORPUS / "manifest.csv"
ROWS = list(csv.DictReader(MANIFEST.read_text("utf-8").splitlines())) if MANIFEST.exists() else []

pytestmark = pytest.mark.skipif(not ROWS, reason="the open corpus is not present")

REJECTED_ALTHOUGH_DCMSEND_SENDS = {
    "pydicom_test_files/JPEGLSNearLossless_08.dcm": "no Study Instance UID",
    "pydicom_test_files/JPEGLSNearLossless_16.dcm": "no Study Instance UID",
    "pydicom_test_files/SC_rgb_jls_lossy_line.dcm": "no Study Instance UID",
    "pydicom_test_files/SC_rgb_jls_lossy_sample.dcm": "no Study Instance UID",
    "pydicom_data/bad_sequence.dcm": "Study Instance UID (0020,000D) is not a UID",
    # dcmsend writes the data set anew, and pads the value.
    "highdicom/dx_image.dcm": "(7FE0,0010) has 35659 bytes",
}

ACCEPTED_ALTHOUGH_DCMSEND_REFUSES = {
    # dcmsend requires file meta information; examsend also accepts a data set alone.
    "pydicom_test_files/ExplVR_BigEndNoMeta.dcm",
    "pydicom_test_files/ExplVR_LitEndNoMeta.dcm",
    "pydicom_test_files/rtstruct.dcm",
    "pydicom_data/OT-PAL-8-face.dcm",
    # The file meta information lacks UIDs that the data set has.
    "pynetdicom/CTImageStorage_bad_meta.dcm",
    "pynetdicom/RTImageStorage.dcm",
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["path"])
def test_a_corpus_file_is_accepted_if_dcmsend_sends_it(row: dict[str, str]) -> None:
    path = row["path"]
    try:
        found = identity.inspect(CORPUS / path)
    except FileProblem as problem:
        assert row["dcmsend"] != "sent" or REJECTED_ALTHOUGH_DCMSEND_SENDS[path] in str(problem)
        return
    assert row["dcmsend"] == "sent" or path in ACCEPTED_ALTHOUGH_DCMSEND_REFUSES
    assert path not in REJECTED_ALTHOUGH_DCMSEND_SENDS
    for column, value in (
        ("study_uid", found.study_instance_uid),
        ("series_uid", found.series_instance_uid),
        ("sop_uid", found.sop_instance_uid),
        ("sop_class", found.sop_class_uid),
        ("transfer_syntax", found.transfer_syntax_uid),
    ):
        assert row[column] in {"", value}
