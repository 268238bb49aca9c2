"""Measure what the router does, and interfere with it."""
