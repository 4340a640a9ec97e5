"""A DICOM node that turns images into LABELMAP segmentations and delivers them."""
