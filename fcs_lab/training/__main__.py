"""`python -m fcs_lab.training mnist --data FOLDER`: train a bundled model, or go on with an interrupted run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fcs_lab.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in {
        "mnist": "the unconditional diffusion model of MNIST digits, 32×32",
        "classifier": "the digit classifier that judges completed digits",
    }.items():
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("--data", type=Path, help="folder with MNIST's idx files; without it they are downloaded")
        command.add_argument("--out", type=Path, default=Path("runs") / name, help="folder of the run (%(default)s)")
        command.add_argument("--device", default="cpu", help="where to train: cpu, cuda, mps (%(default)s)")
        command.add_argument("--max-steps", type=int, help="stop after so many steps; run again to go on")
        command.add_argument("--no-progress", action="store_true", help="no progress bar")
        if name == "mnist":
            command.add_argument("--bf16", action="store_true", help="bfloat16 autocast: about twice as fast")
    options = parser.parse_args(arguments)

    # torch and diffusers take seconds to import: only once the arguments are known to be right.
    from fcs_lab.data import read_mnist, scale

    images, labels = read_mnist(options.data, "train")
    common = {"max_steps": options.max_steps, "device": options.device, "progress": not options.no_progress}
    try:
        if options.command == "mnist":
            from fcs_lab.training.diffusion import MNIST, train

            path = train(MNIST, scale(images), options.out, bf16=options.bf16, **common)
        else:
            from fcs_lab.training.classifier import train_classifier

            test = read_mnist(options.data, "test")
            path = train_classifier(scale(images), labels, *test, out=options.out, **common)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {options.out}", file=sys.stderr)
        return 130
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
