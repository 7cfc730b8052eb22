"""The embedded tiny video language model, its clips and its questions."""
