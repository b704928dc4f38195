"""What every plug-in must do, as classes of tests for its author to subclass.

May import everything above the verbs.
"""
