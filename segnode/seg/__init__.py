"""The SEG engine: labelmaps to DICOM Segmentation objects and back; bytes and arrays in and out."""
