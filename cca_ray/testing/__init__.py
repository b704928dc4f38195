"""Conformance suites for who writes a plug-in, and for us. Imports all packages, and pytest; nothing imports it."""
