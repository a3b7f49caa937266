"""Keras builds, trains and measures the networks that brainseg deploys."""
