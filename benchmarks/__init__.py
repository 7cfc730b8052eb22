"""Measurements that a user would run; see README.md."""
