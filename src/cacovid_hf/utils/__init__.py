"""Small helpers that any part of the package may use; they import nothing of it but each other."""
