"""Tokenizer families: one file, one algorithm."""
