"""`python -m deepseek_ext` is `deepseek-ext`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
