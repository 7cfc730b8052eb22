"""Checkpoints on disk and on the Hub."""
