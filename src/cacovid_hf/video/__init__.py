"""Video files: frames, times and metadata."""
