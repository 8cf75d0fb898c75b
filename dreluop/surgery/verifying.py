"""What a run says about a surgery: the sites that it reached, and the ReLUs that remain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from dreluop.modules import DReLU
from dreluop.surgery import running
from dreluop.surgery.report import Remaining, Report, Site
from dreluop.surgery.running import Observed


def verify(report: Report, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Report:
    """``Report.verify``."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for site in report.replaced:
        if not isinstance(modules.get(site.name), DReLU):
            raise ValueError(f"model: got one without a DReLU {site.name!r}; expected the one of this report")
    names = [site.name for site in report.replaced]
    observed = running.observe(model, names, (args, dict(kwargs)))
    if not observed.ran:
        raise ValueError(f"model: it cannot run on these arguments in eval mode: {observed.failed['eval']}")
    report.sites = tuple(_reached(site, observed) for site in report.sites)
    unread = {one.module: one.reason for one in report.remaining if not one.calls}
    report.remaining = seen_to_remain(report.sites, unread, observed)
    report.verified, report.not_run = tuple(observed.ran), observed.failed
    return report


def _reached(site: Site, observed: Observed) -> Site:
    seen = observed.seen(site.name)
    return replace(site, modes=observed.modes(site.name), shape=seen[0].shape if seen else None)


def known_to_remain(sites: Iterable[Site], unread: Mapping[str, str]) -> tuple[Remaining, ...]:
    """What the source alone shows."""
    left = [_remaining(site, 0) for site in sites if site.action == "left"]
    return (*left, *(_unread(name, reason) for name, reason in unread.items()))


def seen_to_remain(sites: Iterable[Site], unread: Mapping[str, str], observed: Observed) -> tuple[Remaining, ...]:
    """Every ReLU that a run saw and that no D-ReLU made, and the calls that it did not reach and that are left."""
    left = [site for site in sites if site.action == "left"]
    counted = {line for _, line, _ in observed.relus}
    found = [
        Remaining(module, line, what, calls, _why(module, line, left, unread))
        for (module, line, what), calls in observed.relus.items()
    ]
    # Those that a placeholder stood for in the run, and calls in code that it did not reach.
    stood_for = [site for site in left if observed.calls(site.name) or (site.line and site.line not in counted)]
    # Code that cannot be read and in which the run saw none: it may have one that the run did not reach.
    unseen = set(unread).difference(module for module, _, _ in observed.relus)
    return (
        *found,
        *(_remaining(site, observed.calls(site.name)) for site in stood_for),
        *(_unread(name, unread[name]) for name in unread if name in unseen),
    )


def _unread(module: str, reason: str) -> Remaining:
    return Remaining(module, "", "code that may call a ReLU", 0, reason)


def _remaining(site: Site, calls: int) -> Remaining:
    return Remaining(_module(site), site.line, site.source, calls, site.reason.removeprefix("left: "))


def _why(module: str, line: str, left: list[Site], unread: Mapping[str, str]) -> str:
    reasons = [site.reason.removeprefix("left: ") for site in left if line in (site.line, "") or site.name == module]
    reasons += [unread[module]] if module in unread else []
    return " or ".join(dict.fromkeys(reasons)) or "no call of it was found in the code of a module"


def _module(site: Site) -> str:
    name = site.owner.rpartition(" (")[0]
    return "" if name == "(model)" else name
