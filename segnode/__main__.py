"""`python -m segnode` is the command `segnode`."""

from segnode.cli import main

main()
