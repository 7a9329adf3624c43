"""DICOM files: identity and wholeness, the element walk, re-encoding. Knows nothing of the database or the network."""
