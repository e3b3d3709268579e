"""The controller's account of the gateways: who lives, and who is dead."""

from monitoring.totals import Account
from services.gateways import REMEMBERED_S, Gateways
from services.messages import GatewayReport


def report(gateway: str) -> GatewayReport:
    return GatewayReport(gateway, {}, Account("gateway", gateway, 0.0, {}, {}))


def test_a_gateway_counts_no_more_after_its_lease_and_is_dead_after_three() -> None:
    gateways = Gateways(lease_s=5.0)
    gateways.hear(report("a"), 0.0)
    gateways.hear(report("b"), 4.0)
    assert gateways.count == 2
    gateways.hear(report("b"), 6.0)
    assert (gateways.count, gateways.lost(6.0)) == (1, frozenset())
    assert gateways.lost(15.1) == {"a"}
    assert gateways.lost(REMEMBERED_S + 1) == frozenset()


def test_one_that_is_heard_again_was_not_dead() -> None:
    gateways = Gateways(lease_s=5.0)
    for gateway, now_s in (("a", 0.0), ("b", 20.0), ("a", 21.0)):
        gateways.hear(report(gateway), now_s)
    assert gateways.lost(22.0) == frozenset()
    assert gateways.count == 2


def test_a_controller_that_comes_back_calls_nobody_dead() -> None:
    assert Gateways(lease_s=5.0).lost(100.0) == frozenset()
