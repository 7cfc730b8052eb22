"""The command `cacovid`: a package beside the library, because importing the library imports torch and transformers.

`cacovid --help` and shell completion answer at once; a command says what it waits for while it imports the library.
"""
