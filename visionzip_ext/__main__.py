"""``python -m visionzip_ext``: the commands ``info``, ``demo`` and ``tune``; alone, what they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

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

    demo = _imported("demo") if argv[:1] == ["demo"] else None
    demo_parser = commands.add_parser("demo", help="LLaVA-1.5 with and without compressed visual tokens, side by side")
    if demo is not None:
        demo.add_arguments(demo_parser)
        demo_parser.set_defaults(run=demo.run)

    tune = _imported("tune") if argv[:1] == ["tune"] else None
    trainers = [] if tune is None else tune.parents()
    tune_parser = commands.add_parser("tune", parents=trainers, help="train a projector, or more, on few visual tokens")
    if tune is not None:
        tune.add_arguments(tune_parser)
        tune_parser.set_defaults(run=tune.run)

    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    return args.run(args)


def _imported(command: str) -> Any:
    """A command that brings transformers and more with it; nothing else should wait for that, or need it installed.

    Exits where something is missing, and names the extra that has it.
    """
    try:
        return import_module(f"visionzip_ext.{command}")
    except ImportError as error:
        install = f"install what the {command} needs with `pip install 'visionzip_ext[{command}]'`"
        print(f"visionzip_ext {command}: {error}; {install}", file=sys.stderr)
        sys.exit(_USER_ERROR)


if __name__ == "__main__":
    sys.exit(main())
