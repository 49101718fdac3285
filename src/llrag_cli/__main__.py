"""``python -m llrag_cli``."""

from llrag_cli.app import main

main()
