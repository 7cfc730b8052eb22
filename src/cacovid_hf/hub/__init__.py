"""Checkpoints beyond one's own disk: pushing, cards, the published checkpoint, and code for those who have not installed this package."""
