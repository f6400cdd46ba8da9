"""The `retrograde` command."""

from __future__ import annotations

import sys

from retrograde import starting


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
        starting.over()
        app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
