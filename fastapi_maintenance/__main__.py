"""``python -m fastapi_maintenance``: the command line, without its script."""

from .cli import main

main()
