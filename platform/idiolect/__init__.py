"""Idiolect's platform: the words, rules and stores. Decides; holds no tensors and speaks no HTTP."""
