"""A trained model for other programs: `python -m recblr.inference --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from recblr.inference.export import export, no_onnx
from recblr.inference.recommender import Recommender


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m recblr.inference", description="Use a trained model elsewhere."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "weights as safetensors, item ids, and ONNX of a model with a step"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("checkpoint", type=Path, metavar="RUN", help="a run folder or checkpoint")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        recommender = Recommender.load(options.checkpoint, scan="auto", device="cpu")
        for path in export(recommender, options.out):
            print(f"written: {path}")
        if why := no_onnx(recommender.model):
            print(f"{recommender.name} {why}: no ONNX")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
