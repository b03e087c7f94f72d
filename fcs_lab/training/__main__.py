"""`python -m fcs_lab.training mnist --data FOLDER`: train a bundled model, or go on with an interrupted run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

COMMANDS = {
    "mnist": "the unconditional diffusion model of MNIST digits, 32×32",
    "mnist-inpainting": "the same U-Net tuned to inpainting: it also sees the mask and the masked digit",
    "fashion": "the latent text-to-image model of Fashion-MNIST garments, in Stable Diffusion's layout",
    "emoji": "the latent text-to-image model of emoji, in colour, in Stable Diffusion's layout",
    "cifar10": "an unconditional RGB diffusion model of CIFAR-10 images, or of any folder of images, 32×32",
    "classifier": "the digit classifier that judges completed digits",
    "emoji-classifier": "the judge of emoji: fifty things, or something else",
    "fashion-classifier": "the garment classifier that judges generated garments",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fcs_lab.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        if name == "cifar10":
            command.add_argument(
                "--data", type=Path, required=True, help="cifar10_train.npz, CIFAR-10's own python batches, or images"
            )
        elif name.startswith("emoji"):
            archives = "folder with the npm packages' archives; without it npm fetches them"
            command.add_argument("--data", type=Path, help=archives)
            command.add_argument("--smoke", action="store_true", help="small networks, two steps of each part")
        else:
            command.add_argument("--data", type=Path, help="folder with the idx files; without it they are downloaded")
        if name == "emoji":
            command.add_argument(
                "--start-from", type=Path, help="a pipeline's folder to go on from, such as fcs_lab/weights/emoji"
            )
            command.add_argument("--only", choices=("autoencoder", "decoder", "unet"), help="one of the three parts")
        command.add_argument("--out", type=Path, default=Path("runs") / name, help="folder of the run (%(default)s)")
        command.add_argument("--device", default="cpu", help="where to train: cpu, cuda, mps (%(default)s)")
        command.add_argument("--max-steps", type=int, help="stop after so many steps; run again to go on")
        command.add_argument("--no-progress", action="store_true", help="no progress bar")
        if "classifier" not in name or name.startswith("emoji"):
            command.add_argument("--bf16", action="store_true", help="bfloat16 autocast: about twice as fast")
    bundle = commands.add_parser("bundle", help="make a run's model a bundled one, in half precision")
    bundle.add_argument("out", type=Path, metavar="RUN", help="the run's folder, such as runs/emoji")
    bundle.add_argument("name", help="its name, such as emoji")
    options = parser.parse_args(arguments)
    if options.command == "bundle":
        from fcs_lab.training.bundle import bundle_model

        print(bundle_model(options.out, options.name))
        return 0
    common = {"max_steps": options.max_steps, "device": options.device, "progress": not options.no_progress}
    if hasattr(options, "bf16"):
        common["bf16"] = options.bf16
    try:
        if options.command.startswith("emoji"):
            print(_run_emoji(options, common))
        else:
            print(_run(options.command, options.data, options.out, common))
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on from {options.out}", file=sys.stderr)
        return 130
    return 0


def _run(command: str, data: Path | None, out: Path, common: dict) -> Path:
    # torch and diffusers take seconds to import: only once the arguments are known to be right.
    from fcs_lab.data import read_fashion_mnist, read_mnist, scale

    if command == "cifar10":
        from fcs_lab.data import read_cifar10
        from fcs_lab.training.diffusion import CIFAR10, train

        return train(CIFAR10, read_cifar10(data), out, **common)
    read = read_fashion_mnist if command.startswith("fashion") else read_mnist
    images, labels = read(data, "train")
    if command in ("mnist", "mnist-inpainting"):
        from fcs_lab.training.diffusion import MNIST, MNIST_INPAINTING, train

        return train(MNIST if command == "mnist" else MNIST_INPAINTING, scale(images), out, **common)
    if command == "fashion":
        from fcs_lab.training.fashion import FASHION, train_fashion

        return train_fashion(FASHION, scale(images), labels, out, **common)
    from fcs_lab.training.classifier import train_classifier

    garments = {"flip": True, "steps": 6000} if command.startswith("fashion") else {}
    return train_classifier(scale(images), labels, *read(data, "test"), out=out, **garments, **common)


def _run_emoji(options: argparse.Namespace, common: dict) -> Path:
    import torch

    from fcs_lab.training.emoji_pictures import held_out_concepts, read_pictures

    cache = Path("runs") / "emoji" if options.command == "emoji-classifier" else options.out
    pictures = read_pictures(options.data, cache, progress=common["progress"])
    pictures = pictures.without(set(held_out_concepts(pictures)))
    if options.command == "emoji-classifier":
        from fcs_lab.training.emoji_classifier import train_emoji_classifier

        if options.smoke:
            common["max_steps"] = 2
        return train_emoji_classifier(pictures, options.out, **common)
    from fcs_lab.training.emoji import EMOJI, smoke, train_emoji
    from fcs_lab.training.latent import Run

    recipe = EMOJI
    if options.smoke:
        recipe, pictures = smoke(EMOJI), pictures.select(list(range(0, len(pictures), 100)))
    run = Run(torch.device(common.pop("device")), **common)
    return train_emoji(recipe, pictures, options.out, run, only=options.only, start_from=options.start_from)


if __name__ == "__main__":
    sys.exit(main())
