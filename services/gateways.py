"""The controller's account of the gateways: who there is, and what keys have used at each."""

from collections.abc import Mapping

from services.messages import GatewayReport, Use


class Gateways:
    """Plain; the clock is given."""

    def __init__(self, lease_s: float) -> None:
        """lease_s: seconds without a report after which a gateway counts as gone."""
        self._lease_s = lease_s
        self._reports: dict[str, GatewayReport] = {}
        self._heard_s: dict[str, float] = {}

    def hear(self, report: GatewayReport, now_s: float) -> None:
        """A gateway says what went through it."""
        self._reports[report.gateway_id] = report
        self._heard_s[report.gateway_id] = now_s
        for silent in [g for g, at_s in self._heard_s.items() if now_s - at_s > self._lease_s]:
            del self._reports[silent], self._heard_s[silent]

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
