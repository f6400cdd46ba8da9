"""The `retrograde` command."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 the numbers failed, 2 bad input, 130 interrupted."""
    try:
        try:
            from retrograde.cli.app import app
        except ModuleNotFoundError as error:
            print(
                f"retrograde: {error.name} is missing; install it with: pip install 'retrograde[app]'", file=sys.stderr
            )
            sys.exit(2)
        app()
    except KeyboardInterrupt:  # during the imports, say, which take a second or two
        sys.exit(130)


if __name__ == "__main__":
    main()
