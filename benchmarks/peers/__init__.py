"""Others beside us, each in an environment of its own, in turn within one run."""
