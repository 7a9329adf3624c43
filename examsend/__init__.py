"""examsend: DICOM files, gathered by study, each study delivered over one DIMSE association."""

__version__ = "0.1.0"
