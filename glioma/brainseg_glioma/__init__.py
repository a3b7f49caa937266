"""The default model of brainseg, as data: the bundle lies in ``bundle/`` beside this file."""
