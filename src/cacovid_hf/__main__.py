"""`python -m cacovid_hf` is `cacovid`."""

from .cli.main import main

main()
