"""When the sidecar runs the contract's rules again."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message

from vigil_sidecar.errors import ContractViolation
from vigil_sidecar.server.call import Call
from vigil_sidecar.server.rules import check_rules

__all__ = ["Revalidation"]


class Revalidation:
    """Direct calls: always. Calls that a gateway with the same contract has checked: all, a sample, or none.

    A disagreement with the gateway is reported, and the call refused.
    """

    def __init__(self, mode: str, every: int, disagreed: Callable[[Call, ContractViolation], None]) -> None:
        self._mode, self._every, self._disagreed = mode, every, disagreed
        self._count = 0

    def due(self, call: Call) -> bool:
        """Whether it is this call's turn to be checked. Asked once for each call."""
        if not call.context.validated:
            return True
        if self._mode == "sample":
            self._count += 1
            return self._count % self._every == 0
        return self._mode == "all"

    def check(self, call: Call, request: Message) -> None:
        """Run the rules; raises ``ContractViolation``."""
        try:
            check_rules(request)
        except ContractViolation as violation:
            if call.context.validated:
                self._disagreed(call, violation)
            raise
