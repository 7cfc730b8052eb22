"""`python -m cacovid_hf` is `cacovid`."""

from .cli import main

main()
