"""CaCoVID for transformers (placeholder until the public names are in)."""
