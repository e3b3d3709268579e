"""The controller's account of the gateways: who there is, and what keys have used at each."""

from collections.abc import Mapping

from services.messages import GatewayReport, Use

LOST_AFTER_LEASES = 3  # one that is merely slow should not lose what it has under way
REMEMBERED_S = 3600.0  # no request lasts longer


class Gateways:
    """Plain; the clock is given."""

    def __init__(self, lease_s: float) -> None:
        """lease_s: seconds without a report after which a gateway counts as gone."""
        self._lease_s = lease_s
        self._reports: dict[str, GatewayReport] = {}
        self._heard_s: dict[str, float] = {}
        self._silent: dict[str, float] = {}  # when it was heard last

    def hear(self, report: GatewayReport, now_s: float) -> None:
        """A gateway says what went through it."""
        self._reports[report.gateway_id] = report
        self._heard_s[report.gateway_id] = now_s
        self._silent.pop(report.gateway_id, None)
        for silent in [g for g, at_s in self._heard_s.items() if now_s - at_s > self._lease_s]:
            del self._reports[silent]
            self._silent[silent] = self._heard_s.pop(silent)

    def lost(self, now_s: float) -> frozenset[str]:
        """Those that are dead: what they had asked engines for, nobody waits for."""
        since_s = {gateway: now_s - at_s for gateway, at_s in self._silent.items()}
        self._silent = {g: self._silent[g] for g, s in since_s.items() if s < REMEMBERED_S}
        least_s = LOST_AFTER_LEASES * self._lease_s
        return frozenset(gateway for gateway in self._silent if since_s[gateway] > least_s)

    @property
    def count(self) -> int:
        """Gateways that live."""
        return len(self._reports)

    @property
    def open_requests(self) -> int:
        """Requests at all gateways that are being answered or wait."""
        return sum(report.running + report.waiting for report in self._reports.values())

    @property
    def waiting(self) -> int:
        """Requests that no attention replica has yet."""
        return sum(report.waiting for report in self._reports.values())

    def others_than(self, gateway_id: str) -> Mapping[str, Use]:
        """Key → what went through all gateways but this one."""
        total: dict[str, Use] = {}
        for other, report in self._reports.items():
            if other != gateway_id:
                for name, use in report.uses.items():
                    total[name] = total.get(name, Use()) + use
        return total
