"""Who computes where: ways to place a trial, the queue for cards, the wish to stop, what a machine is doing.

May import `storage`.
"""
