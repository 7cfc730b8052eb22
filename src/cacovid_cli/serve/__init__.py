"""An OpenAI-compatible server for one model in one process, fit to listen to people who mean harm.

A request goes through `guards` (who asks, and how much), `requests` (what is asked), `reading` (addresses to the model's inputs), `generation` (the
one thread that computes) and `answers` (OpenAI's forms). `limits` holds every bound that the operator may set.
"""
