"""``python -m visionzip_ext``: the commands ``info`` and ``demo``; alone, what they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from visionzip_ext import info

_USER_ERROR = 2  # as argparse exits


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m visionzip_ext", description="VisionZip as PyTorch operators.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    info_parser = commands.add_parser("info", help="what is installed, what was built, and what runs here")
    info.add_arguments(info_parser)
    info_parser.set_defaults(run=info.run)

    demo_parser = commands.add_parser("demo", help="LLaVA-1.5 with and without compressed visual tokens, side by side")
    # The demo brings transformers and more with it, which nothing else should wait for, or need to have installed.
    if argv[:1] == ["demo"]:
        try:
            from visionzip_ext import demo
        except ImportError as error:
            install = "install what the demo needs with `pip install 'visionzip_ext[demo]'`"
            print(f"visionzip_ext demo: {error}; {install}", file=sys.stderr)
            return _USER_ERROR

        demo.add_arguments(demo_parser)
        demo_parser.set_defaults(run=demo.run)

    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
