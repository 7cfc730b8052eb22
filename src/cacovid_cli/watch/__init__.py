"""Watching a video as it goes on."""
