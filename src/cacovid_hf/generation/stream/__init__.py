"""A stream: frames without an end, a memory that does not grow, and questions at any time."""
