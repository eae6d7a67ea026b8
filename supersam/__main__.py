"""`python -m supersam COMMAND`: the same as the command `supersam`."""

from supersam.cli import main

if __name__ == "__main__":
    main()
