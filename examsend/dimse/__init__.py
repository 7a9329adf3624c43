"""DICOM networking: presentation contexts, PDUs, C-STORE over an association, C-ECHO, TLS. No access to the database."""
