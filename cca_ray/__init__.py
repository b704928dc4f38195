"""Hyperparameters of Condition Contrastive Alignment for autoregressive image generators, found with Ray and Optuna."""

__version__ = "0.1.0"
