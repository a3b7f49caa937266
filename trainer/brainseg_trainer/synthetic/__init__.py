"""Made-up heads with made-up gliomas: scans with perfect truth for the demo, the tests and first trials.

They prove a pipeline and say nothing about patients: the generator is also the examiner.
"""

from brainseg_trainer.synthetic.scan import SyntheticScan, synthesise, write_scans

__all__ = ["SyntheticScan", "synthesise", "write_scans"]
