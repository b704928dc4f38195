"""Where files lie: local places of URIs, copies of them, one process or driver at a time, files whole or not at all.

Imports `config` alone.
"""
