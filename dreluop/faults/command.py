"""``python -m dreluop.faults curve CONFIG``: how a network's accuracy falls with flipped bits, from a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tomllib
import torch
from torch import Tensor, nn

from dreluop.cli import sources
from dreluop.faults.curve import fault_curve, plot
from dreluop.faults.weights import ProtectedWeights, protect_weights

KEYS = (
    "model", "data", "rates", "trials", "where", "dtype", "bits", "seed", "batch_size", "device", "records", "picture",
    "protect_weights",
)  # fmt: skip
NEEDED = ("model", "data", "rates")
DTYPES = {str(one).removeprefix("torch."): one for one in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
DTYPES["int8"] = torch.int8
EXAMPLE = """\
model = "mynet:trained"        # a function without arguments that gives the network
data = "mynet:test_data"       # one that gives inputs and labels, or a file .npz with arrays x and y
rates = [1e-6, 1e-5, 1e-4]     # bit error rates
trials = 50
where = "weights"              # or "caps", "activations", "inputs_of_activations"
protect_weights = true         # dreluop.faults.protect_weights, and a repair before each evaluation
# dtype = "bfloat16"           # instead: in which weights are stored; left out: the one they have
records = "curve.jsonl"        # trials that are in it are not run again
picture = "curve.png"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dreluop.faults", description="Bit flips in a network's memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    curve = commands.add_parser(
        "curve",
        help="the accuracy over the bit error rate",
        description=f"The accuracy over the bit error rate. CONFIG is a file in TOML, such as:\n\n{EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    curve.add_argument("config", metavar="CONFIG", type=Path)
    options = parser.parse_args(arguments)
    try:
        run(read(options.config))
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read(path: Path) -> dict[str, Any]:
    """The configuration in a file.

    Raises:
        ValueError: there is no such file, it is no TOML, or has a key that is not known, or lacks one.
    """
    try:
        config = tomllib.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    sources.check_keys(str(path), config, KEYS, NEEDED)
    return config


def run(config: dict[str, Any]) -> None:
    """Make the curve, print it, and write what the configuration asks for."""
    dtype = config.get("dtype")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f'dtype: got "{dtype}"; expected {", ".join(DTYPES)}')
    if dtype is not None and config.get("protect_weights", False):
        raise ValueError(
            "protect_weights: not with dtype, which would round the check bits away; let the network's function give "
            "it in that dtype"
        )
    device = torch.device(config.get("device", "cpu"))
    model: nn.Module = sources.model_of("model", config["model"]).to(device)
    x, labels = sources.inputs_and_labels("data", config["data"])
    repaired: ProtectedWeights | None = None
    subject = model
    if config.get("protect_weights", False):
        repaired = protect_weights(model)
        # Its copies lie in memory too, and are hit like the rest.
        subject = nn.ModuleList([model, repaired])
    frame = fault_curve(
        subject,
        evaluation(model, repaired, x.to(device), int(config.get("batch_size", 256))),
        config["rates"],
        config.get("trials", 50),
        labels=labels.to(device),
        where=config.get("where", "weights"),
        dtype=None if dtype is None else DTYPES[dtype],
        bits=config.get("bits"),
        seed=config.get("seed", 0),
        path=config.get("records"),
    )
    print(f"without faults: {frame.attrs['clean']:.4f}")
    print(frame.to_string(index=False))
    if "picture" in config:
        plot({config["model"]: frame}).savefig(config["picture"])
        print(f"drawn: {config['picture']}")


def evaluation(
    model: nn.Module, repaired: ProtectedWeights | None, x: Tensor, batch_size: int
) -> Callable[[nn.Module], Tensor]:
    """What gives the logits of all inputs, after a repair of the weights."""

    def evaluate(_: nn.Module) -> Tensor:
        if repaired is not None:
            repaired.repair(model)
        return torch.cat([model(batch) for batch in x.split(batch_size)]).float()

    return evaluate
