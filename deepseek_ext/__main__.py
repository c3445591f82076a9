"""`python -m deepseek_ext` is `deepseek-ext`."""

import sys


def main() -> int:
    """The command line, `deepseek_ext.cli.main`; importing it takes a second, in which Ctrl-C may come."""
    try:
        from . import cli
    except KeyboardInterrupt:
        print("deepseek-ext: stopped at once", file=sys.stderr)
        return 130
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
