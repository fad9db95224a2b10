"""Measure and compare tokenizers on held-out episodes."""
