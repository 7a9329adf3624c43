"""What the page calls senders and receivers."""

from __future__ import annotations

RECEIVERS = {
    "storescp": "DCMTK's storescp",
    "nodelay": "DCMTK's storescp with TCP_NODELAY",
    "fork": "DCMTK's storescp --fork",
    "orthanc": "Orthanc",
    "dcm4che": "dcm4che's storescp",
    "window": "a receiver that grants a window and discards",
    "sink": "a receiver that discards",
}
SENDERS = {
    "native": "examsend",
    "pynetdicom": "examsend, sender `pynetdicom`",
    "dcmsend": "dcmsend",
    "storescu": "DCMTK's storescu",
    "pynetdicom-storescu": "pynetdicom's storescu",
    "dcm4che-storescu": "dcm4che's storescu",
}
