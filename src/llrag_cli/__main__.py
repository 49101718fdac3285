"""``python -m llrag_cli``."""

from llrag_cli.cli.main import main

main()
