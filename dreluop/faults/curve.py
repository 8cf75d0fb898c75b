"""How a network's accuracy falls with the bit error rate: many trials at each rate, kept in a file as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dreluop._internal import checks
from dreluop.caps.batches import evaluated, with_bar
from dreluop.faults.injection import Where, bit_flips

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Evaluate = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Trial:
    """One network with faults.

    Attributes:
        rate: the bit error rate.
        trial: its number, from 0.
        flips: bits that were flipped.
        score: the accuracy, or the number that ``evaluate`` gave.
        changed: share of the inputs whose predicted class is not that of the network without faults, as it is stored
            (silent data corruption); NaN where ``evaluate`` gives a number.
        nan: share of the inputs with NaN among their outputs; NaN where ``evaluate`` gives a number.
    """

    rate: float
    trial: int
    flips: int
    score: float
    changed: float
    nan: float


def fault_curve(
    model: nn.Module,
    evaluate: Evaluate,
    rates: Sequence[float],
    trials: int = 50,
    *,
    labels: Tensor | None = None,
    where: Where = "weights",
    dtype: torch.dtype | None = None,
    bits: Sequence[int] | None = None,
    seed: int = 0,
    path: str | Path | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Flip bits at each of several rates, and say what is left of the accuracy. Needs pandas.

    Args:
        model: put into eval mode, and back afterwards.
        evaluate: called with the model, without gradients; returns logits of shape (N, classes), always of the same
            inputs, or a number, such as an accuracy or a mean average precision.
        rates: bit error rates, in [0, 1].
        trials: at each rate, >= 1.
        labels: int64, shape (N,), >= 0, of the inputs behind the logits. None: the accuracy is the share of predictions
            that are those of the network without faults.
        where, dtype, bits: as in ``bit_flips``.
        seed: a trial's faults depend on it, its rate and its number alone.
        path: a file of JSON lines that gets each trial when it is done. If it exists, what it holds is not run again;
            it must be of this state_dict, these labels and the other arguments, of which rates and trials may be added.
            What ``evaluate`` does is not known to it.
        progress: show a bar; None: if tqdm is installed.

    Returns:
        A row for each rate, in order: ``rate``, ``trials``; ``mean``, ``p5`` (5th percentile) and ``std`` of the score;
        means of ``changed``, ``nan`` and ``flips`` (see ``Trial``). ``attrs["clean"]`` is the score without faults, of
        the weights as they are stored in ``dtype``.

    Raises:
        TypeError, ValueError: an argument is not as above, or ``evaluate`` returns something else; the file is of
            another model or other arguments.
        ImportError: progress is True and tqdm is not installed.
    """
    import pandas as pd  # noqa: PLC0415 (optional)

    rates, trials = _checked(model, rates, trials, labels)
    seed = checks.integer("seed", seed)
    with evaluated(model):
        # With a generator of its own, so that torch's default one stays as it is.
        with bit_flips(model, 0.0, where=where, dtype=dtype, bits=bits, generator=torch.Generator()):
            clean = _Outcome.of(evaluate(model), labels)
        settings = {
            "where": where, "dtype": str(dtype), "bits": None if bits is None else [int(bit) for bit in bits],
            "seed": seed, "clean": clean.score, "model": _fingerprint(model.state_dict()),
            "labels": None if labels is None else _fingerprint({"labels": labels}),
        }  # fmt: skip
        kept = _Kept(Path(path) if path is not None else None, settings)
        left = [(rate, trial) for rate in rates for trial in range(trials) if (rate, trial) not in kept.found]
        for rate, trial in with_bar(left, progress, desc="faults", unit="trial"):
            generator = torch.Generator().manual_seed(_seed_of(seed, rate, trial))
            with bit_flips(model, rate, where=where, dtype=dtype, bits=bits, generator=generator) as injection:
                outcome = _Outcome.of(evaluate(model), labels, clean)
            kept.add(Trial(rate, trial, injection.flips, outcome.score, outcome.changed(clean), outcome.nan))
    rows = [_row(rate, [kept.found[rate, trial] for trial in range(trials)]) for rate in rates]
    frame = pd.DataFrame(rows)
    frame.attrs.update(settings)
    return frame


def plot(curves: Mapping[str, pd.DataFrame], *, title: str = "", score: str = "accuracy") -> Figure:
    """Draw curves over the bit error rate: means as lines, 5th percentiles dashed, without faults at the left edge.

    Args:
        curves: by label, what ``fault_curve`` returned. A rate of 0 has no place on the axis; its score is the line at
            the left edge.
        title: of the picture.
        score: what the axis is called.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (optional)

    if not isinstance(curves, Mapping):
        raise TypeError(f"curves: got {type(curves).__name__}; expected a mapping from labels to frames")
    if not curves:
        raise ValueError("curves: got none; expected at least one")
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, frame in curves.items():
        (line,) = axes.plot(frame["rate"], frame["mean"], marker="o", label=label)
        axes.plot(frame["rate"], frame["p5"], "--", color=line.get_color(), linewidth=1)
        if "clean" in frame.attrs:
            axes.plot(
                [0, 0.02], [frame.attrs["clean"]] * 2, color=line.get_color(), transform=axes.get_yaxis_transform()
            )
    axes.set(xscale="log", xlabel="bit error rate", ylabel=f"{score}: mean, and 5th percentile (dashed)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


@dataclass(frozen=True)
class _Outcome:
    score: float
    predicted: Tensor | None
    nan: float

    @classmethod
    def of(cls, given: Any, labels: Tensor | None, clean: _Outcome | None = None) -> _Outcome:
        if not isinstance(given, Tensor) or given.ndim == 0:
            return cls(checks.number("evaluate: its result", given), None, math.nan)
        if given.ndim != 2 or (labels is not None and labels.shape != given.shape[:1]):
            expected = "(N, classes)" if labels is None else f"({len(labels)}, classes)"
            raise ValueError(f"evaluate: gave shape {tuple(given.shape)}; expected logits of shape {expected}")
        predicted = given.argmax(1)
        wrong = given.isnan().any(1)
        # NaN is the largest number for argmax: whatever class that names, it is none.
        predicted = torch.where(wrong, -1, predicted)
        if clean is not None and (clean.predicted is None or clean.predicted.shape != predicted.shape):
            before = "a number" if clean.predicted is None else f"{len(clean.predicted)} predictions"
            raise ValueError(f"evaluate: gave {len(predicted)} predictions, and {before} before; expected the same")
        right = labels if labels is not None else predicted if clean is None else clean.predicted
        assert right is not None
        return cls(_share(predicted == right.to(predicted.device)), predicted, _share(wrong))

    def changed(self, clean: _Outcome) -> float:
        if self.predicted is None or clean.predicted is None:
            return math.nan
        return _share(self.predicted != clean.predicted)


class _Kept:
    """The trials that are done, in a file too."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[tuple[float, int], Trial] = {}
        if path is None:
            return
        if not path.exists() or path.stat().st_size == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(settings) + "\n")
            return
        # Only whole lines: the last may be cut, where a process was killed.
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        try:
            head, *lines = [json.loads(line) for line in whole.splitlines()]
            trials = [Trial(**line) for line in lines]
        except (ValueError, TypeError) as error:
            raise ValueError(f"path: {path} is no file of fault_curve: {error}") from error
        for key, value in settings.items():
            # As text, in which NaN is NaN.
            if json.dumps(head.get(key)) != json.dumps(value):
                raise ValueError(f"path: {path} is of {key} {head.get(key)}; expected {value}, or another file")
        if whole != text:
            path.write_text(whole)
        self.found = {(trial.rate, trial.trial): trial for trial in trials}

    def add(self, trial: Trial) -> None:
        self.found[trial.rate, trial.trial] = trial
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(trial)) + "\n")


def _row(rate: float, trials: Sequence[Trial]) -> dict[str, float]:
    scores = torch.tensor([trial.score for trial in trials], dtype=torch.float64)
    means = {name: sum(getattr(trial, name) for trial in trials) / len(trials) for name in ("changed", "nan", "flips")}
    return {
        "rate": rate, "trials": len(trials), "mean": float(scores.mean()), "p5": float(scores.quantile(0.05)),
        "std": float(scores.std(correction=0)), **means,
    }  # fmt: skip


def _checked(model: Any, rates: Any, trials: Any, labels: Any) -> tuple[list[float], int]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(rates, Iterable) or isinstance(rates, str):
        raise TypeError(f"rates: got {type(rates).__name__}; expected several numbers")
    if labels is not None:
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels: got {type(labels).__name__}; expected a torch.Tensor")
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise ValueError(
                f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; expected torch.int64 of shape (N,)"
            )
        if len(labels) and int(labels.min()) < 0:
            raise ValueError(f"labels: got {int(labels.min())}; expected numbers of classes, >= 0")
    found = [checks.number("rates", rate) for rate in rates]
    if not found or not all(0 <= rate <= 1 for rate in found):
        raise ValueError(f"rates: got {found}; expected at least one, in [0, 1]")
    if len(set(found)) < len(found):
        raise ValueError(f"rates: got {found}; expected different ones")
    return found, checks.positive_int("trials", trials)


def _seed_of(seed: int, rate: float, trial: int) -> int:
    return int.from_bytes(sha256(f"{seed} {rate!r} {trial}".encode()).digest()[:7], "big")


def _fingerprint(tensors: Mapping[str, Any]) -> str:
    """Of tensors, bit for bit."""
    found = sha256()
    for name, t in tensors.items():
        if isinstance(t, Tensor):
            found.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
            found.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def _share(which: Tensor) -> float:
    return float(which.double().mean())
