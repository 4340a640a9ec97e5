"""Pure DICOM knowledge: headers, identifiers, transfer syntaxes, geometry, matching, DICOM JSON."""
