"""`python -m retrograde`."""

from retrograde.cli.main import main

if __name__ == "__main__":
    main()
