"""LlamaGen, VAR and their tokenizers with the official names; their files, sharding and likelihoods.

May import `storage` and `cluster`.
"""
