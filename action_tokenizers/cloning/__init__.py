"""Behaviour cloning on tokens: a small policy, its training, its execution, and the model-based remedy."""
