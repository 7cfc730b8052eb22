"""`python -m cacovid_hf` is `cacovid`."""

from cacovid_cli.main import main

main()
