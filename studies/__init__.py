"""What was found out once: evidence, ablations and one-off studies on the tiny model. LOG.md lists them."""
