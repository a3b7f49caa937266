"""Speed and agreement, measured: ``make bench``."""
