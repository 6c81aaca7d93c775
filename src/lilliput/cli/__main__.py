"""``python -m lilliput.cli``: the command, where it is not installed on the path."""

from lilliput.cli.app import main

main()
