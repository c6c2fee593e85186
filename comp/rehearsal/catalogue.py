"""The faults that a rehearsal can be asked for."""

from comp.rehearsal import call_faults, download_faults, submit_faults
from comp.rehearsal.faults import Fault, usage

FAULTS = {
    each.name: each
    for module in (call_faults, download_faults, submit_faults)
    for each in vars(module).values()
    if isinstance(each, Fault)
}


def table() -> list[tuple[str, str]]:
    """How to ask for each fault, and what it does on the wire."""
    return [(usage(each), each.effect) for each in FAULTS.values()]
