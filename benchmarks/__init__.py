"""Speed and agreement, measured: ``make bench``."""

from brainseg_trainer.backend import set_backend

set_backend()
