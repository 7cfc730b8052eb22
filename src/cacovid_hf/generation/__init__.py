"""Calls on compressed prompts."""
