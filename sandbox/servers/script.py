"""What is to go wrong with which requests: tests write it while a server runs."""

import threading
from dataclasses import dataclass, replace
from typing import Generic, TypeVar


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """What every server's fault has. `times`: only so many requests (None: each one)."""

    times: int | None = None


FaultT = TypeVar("FaultT", bound=Scripted)


class Script(Generic[FaultT]):
    """Faults by what they happen to, and the end of the pauses that are among them."""

    def __init__(self) -> None:
        self._faults: dict[str, FaultT] = {}
        self._lock = threading.Lock()
        # Set, and replaced by a new one, when pauses that go on are to end.
        self._released = threading.Event()

    def set(self, target: str, fault: FaultT) -> None:
        """From now on this goes wrong there; it replaces an earlier fault."""
        with self._lock:
            self._faults[target] = fault

    def next(self, target: str, nothing: FaultT) -> tuple[FaultT, threading.Event]:
        """What to do wrong with this request, else `nothing`, and what its pauses wait for. Uses up one of `times`."""
        with self._lock:
            fault = self._faults.get(target, nothing)
            if fault.times == 0:
                return nothing, self._released
            if fault.times is not None:
                self._faults[target] = replace(fault, times=fault.times - 1)
            return fault, self._released

    def end_pauses(self, *, and_faults: bool = False) -> None:
        """End pauses that go on. In one step with the faults, so that no request takes one and misses its end."""
        with self._lock:
            if and_faults:
                self._faults.clear()
            released, self._released = self._released, threading.Event()
        released.set()
