"""`python -m distpro_cli` is `distpro`."""

from distpro_cli.cli import main

main()
