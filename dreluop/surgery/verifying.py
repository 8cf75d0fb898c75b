"""What a run says about a surgery: the sites that it reached, and the ReLUs that remain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    report.sites = tuple(map(observed.noted, report.sites))
    unread = {one.module: one.reason for one in report.remaining if not one.calls}
    report.remaining = remaining(report.sites, unread, observed)
    report.verified, report.not_run = tuple(observed.ran), observed.failed
    return report


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
