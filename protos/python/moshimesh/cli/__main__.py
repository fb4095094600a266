"""`python -m moshimesh.cli`."""

from moshimesh.cli.main import main

main()
