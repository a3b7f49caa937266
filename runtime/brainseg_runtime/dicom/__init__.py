"""DICOM studies in, DICOM segmentations and reports out. Needs the extra ``dicom``."""
