"""One process of several that tune together: notes the weights and the losses that it has in the end, then exits.

The first argument is the folder for the notes, the others are those of the command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from visionzip_ext.tune import command


def main(notes: Path, arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(parents=command.parents())
    command.add_arguments(parser)
    trainer = command.tune(parser.parse_args(arguments))
    rank = trainer.args.process_index
    own = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    save_file({name: own[name].detach() for name in trainer.trained_weights()}, notes / f"{rank}.safetensors")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    (notes / f"{rank}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
