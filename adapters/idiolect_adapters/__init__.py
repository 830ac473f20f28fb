"""Idiolect's adapters: models, private training and the runtime. The only place for torch, transformers, peft,
opacus.
"""
