"""Families of models and their tokenizers: their face, LlamaGen, VAR, RAR, official files, sharding, likelihoods.

May import `storage` and `cluster`.
"""
