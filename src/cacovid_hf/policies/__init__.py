"""Policies: a score for every video token."""
