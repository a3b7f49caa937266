"""DICOM studies in, DICOM segmentations and reports out. Needs the extra ``dicom``."""

import logging
import warnings

# Both quote what stands in a header when they complain of it, and a header names the patient.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")
for _name in ("pydicom", "highdicom"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False
