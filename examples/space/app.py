"""The page of `cacovid app` as a Hugging Face Space; its variable MODEL names a model other than the embedded one."""

import os

from cacovid_cli.main import main

model = os.environ.get("MODEL")
address = ["--host", "0.0.0.0", "--port", os.environ.get("GRADIO_SERVER_PORT", "7860")]
main(["app", *address, *(["--model", model] if model else [])])
