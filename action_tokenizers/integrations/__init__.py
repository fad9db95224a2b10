"""Frameworks that tokenizers are used in, one module each; each imports its framework, nothing imports them."""
