"""What a surgery found and did, and what a run of the model saw of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from dreluop._internal.cap_state import LearnedCap
from dreluop._internal.text_table import text_table
from dreluop.surgery import running
from dreluop.surgery.running import Modes, Observed

Action = Literal["replaced", "fused", "batch_norm", "left"]


@dataclass(frozen=True)
class Site:
    """One call of ReLU, ReLU6 or Hardtanh(0, c) in the code, or one attribute that holds such a module.

    Attributes:
        name: dotted name of its D-ReLU, as in ``model.named_modules()``.
        source: what it was: ``module relu, call 2 of 3``, ``F.relu``, ``Tensor.relu_``.
        owner: dotted name and class of the module whose code makes the call.
        bound: the fixed bound of the activation: 6 for ReLU6, c for Hardtanh(0, c), None for ReLU.
        inplace: whether it wrote over its input.
        modes: the modes in which a run reached it, such as ``"train"`` for auxiliary heads; None without a run, or if
            no run reached it.
        shape: of its input in the run; None without one.
        cap_shape: of its caps; None where it was left.
        action: ``"fused"``: replaced together with the residual sum before it. ``"batch_norm"``: the batch norm before
            it, whose name this site has, got the caps, and adds the residual.
        reason: why it was left, or replaced but not as asked (a sum not fused, a batch norm kept apart, caps shared);
            else empty.
        line: ``file.py:12``, the call; empty for a module that no readable code calls by name.
        module: dotted name of the owner.
    """

    name: str
    source: str
    owner: str
    bound: float | None
    inplace: bool
    modes: Modes | None = None
    shape: tuple[int, ...] | None = None
    cap_shape: tuple[int, ...] | None = None
    action: Action = "left"
    reason: str = ""
    line: str = ""
    module: str = ""


@dataclass(frozen=True)
class Remaining:
    """A ReLU that runs outside of a D-ReLU.

    Attributes:
        module: dotted name of the module whose forward calls it.
        line: ``file.py:12``, the nearest line outside of torch.
        what: the operator that a run saw (``aten.relu``), or what the source says.
        calls: how often a run saw it in its modes; 0 if it is known from the source alone.
        reason: why it was left, if that is known.
    """

    module: str
    line: str
    what: str
    calls: int = 0
    reason: str = ""


@dataclass
class Report:
    """The sites of a model, and what a run of it saw.

    Attributes:
        sites: all that were found, those left too.
        remaining: with a run, every ReLU that it saw outside of a D-ReLU; without one, those that the source shows.
        verified: the modes in which a run checked this; empty: not verified.
        not_run: the modes in which the model could not run on the example, with the reason.
    """

    sites: tuple[Site, ...]
    remaining: tuple[Remaining, ...] = ()
    verified: tuple[str, ...] = ()
    not_run: dict[str, str] = field(default_factory=dict)

    @property
    def replaced(self) -> tuple[Site, ...]:
        return self._done("replaced", "fused", "batch_norm")

    @property
    def fused(self) -> tuple[Site, ...]:
        return self._done("fused")

    @property
    def in_batch_norms(self) -> tuple[Site, ...]:
        return self._done("batch_norm")

    @property
    def left(self) -> tuple[Site, ...]:
        return self._done("left")

    def _done(self, *actions: Action) -> tuple[Site, ...]:
        return tuple(site for site in self.sites if site.action in actions)

    @property
    def unreached(self) -> tuple[Site, ...]:
        """The replaced sites that no run reached; empty without a run."""
        return tuple(site for site in self.replaced if self.verified and site.modes is None)

    def verify(self, model: nn.Module, *args: Any, **kwargs: Any) -> Report:
        """Run a copy of the model in eval and in train mode, and record which sites and which other ReLUs it reaches.

        Args:
            model: the one that the surgery changed.
            args, kwargs: what the model is called with.

        Returns:
            Report: this one, updated.

        Raises:
            ValueError: the model is not the one of this report, or runs in neither mode.
        """
        modules = dict(model.named_modules(remove_duplicate=False))
        for site in self.replaced:
            if not isinstance(modules.get(site.name), LearnedCap):
                raise ValueError(f"model: got one without a DReLU {site.name!r}; expected the one of this report")
        observed = running.observe(model, [site.name for site in self.replaced], (args, kwargs))
        if not observed.ran:
            raise ValueError(f"model: it cannot run on these arguments in eval mode: {observed.failed['eval']}")
        self.sites = tuple(noted(site, observed) for site in self.sites)
        unread = {one.module: one.reason for one in self.remaining if not one.calls}
        self.remaining = remaining(self.sites, unread, observed)
        self.verified, self.not_run = tuple(observed.ran), observed.failed
        return self

    def __str__(self) -> str:
        header = ("site", "was", "in", "mode", "input", "caps", "done", "note")
        rows = [
            (
                site.name,
                site.source + (f", bound {site.bound:g}" if site.bound is not None else ""),
                site.owner,
                site.modes or ("not reached" if self.verified and site.action != "left" else "-"),
                _shape(site.shape),
                _shape(site.cap_shape),
                site.action,
                site.reason,
            )
            for site in self.sites
        ]
        parts = [text_table(header, rows)] if rows else []
        for one in self.remaining:
            places = ", ".join(part for part in (one.module or "(model)", one.line) if part)
            seen = f" ({one.calls} calls)" if one.calls else ""
            parts.append(f"remaining: {one.what} in {places}{seen}: {one.reason}")
        parts += [f"not run in {mode} mode: {reason}" for mode, reason in self.not_run.items()]
        parts.append(
            f"{len(self.replaced)} of {len(self.sites)} sites replaced, {len(self.fused)} of them fused with a sum"
            + (f", {len(self.in_batch_norms)} with a batch norm" if self.in_batch_norms else "")
        )
        if self.verified:
            parts.append(
                f"verified in {' and '.join(self.verified)} mode: {len(self.remaining)} places with a ReLU remain, "
                f"{len(self.unreached)} sites were not reached"
            )
        else:
            parts.append("not verified: pass example_input=, or call report.verify(model, input)")
        return "\n".join(parts)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else "x".join(map(str, shape))


def noted(site: Site, observed: Observed) -> Site:
    """A site with what a run saw of it."""
    seen = observed.seen(site.name)
    return replace(site, modes=observed.modes(site.name), shape=seen[0].shape if seen else None)


def remaining(sites: Iterable[Site], unread: Mapping[str, str], observed: Observed) -> tuple[Remaining, ...]:
    """Every ReLU that a run saw and that no D-ReLU made, and the calls that it did not reach and that are left.

    Without a run, what the source alone shows.
    """
    left = [site for site in sites if site.action == "left"]
    lines = {line for _, line, _ in observed.relus}
    modules = {module for module, _, _ in observed.relus}
    found = [
        Remaining(module, line, what, calls, _why(module, line, left, unread))
        for (module, line, what), calls in observed.relus.items()
    ]
    for site in left:
        calls = observed.calls(site.name)
        # A placeholder stood for it in the run, or it is in code that no run reached.
        if calls or not observed.ran or (site.line and site.line not in lines):
            found.append(Remaining(site.module, site.line, site.source, calls, _reason(site)))
    # Code that cannot be read may have a ReLU that the run did not reach, if it saw none there.
    found += [
        Remaining(name, "", "code that may call a ReLU", 0, reason)
        for name, reason in unread.items()
        if name not in modules
    ]
    return tuple(found)


def _reason(site: Site) -> str:
    return site.reason.removeprefix("left: ")


def _why(module: str, line: str, left: list[Site], unread: Mapping[str, str]) -> str:
    reasons = [_reason(site) for site in left if line in (site.line, "") or site.name == module]
    reasons += [unread[module]] if module in unread else []
    return " or ".join(dict.fromkeys(reasons)) or "no call of it was found in the code of a module"
