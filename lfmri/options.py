"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

#: Written again here, since importing the runtime's would make help slow; a test compares them.
BACKENDS = ("onnxruntime", "onnxruntime-cuda", "openvino", "tensorrt")
PRECISIONS = ("float32", "float16", "bfloat16")


def bundle_option(command: Command) -> Command:
    """--bundle."""
    return click.option("--bundle", type=click.Path(path_type=Path), help="Model to use.  [default: the built-in one]")(
        command
    )


def subjects_option(command: Command) -> Command:
    """--subjects."""
    return click.option(
        "--subjects",
        required=True,
        type=click.Path(path_type=Path),
        help="Folder of high-field subjects: HCP naming, BIDS, or a folder each.",
    )(command)


def backend_options(command: Command) -> Command:
    """--backend, --precision and --threads."""
    for option in (
        click.option(
            "--threads",
            default=0,
            show_default=True,
            type=click.IntRange(min=0),
            help="Of the network; 0 takes all cores.",
        ),
        click.option("--precision", type=click.Choice(PRECISIONS), help="Of the arithmetic.  [default: the fastest]"),
        click.option(
            "--backend",
            default="auto",
            show_default=True,
            type=click.Choice(["auto", *BACKENDS]),
            help="What runs the network; auto takes the fastest that is right on this machine.",
        ),
    ):
        command = option(command)
    return command
