"""One fine-tuning: losses, the reference's log-likelihoods, checkpoints, the Ray Train loop, a trial.

May import `evaluation` and what is above it.
"""
