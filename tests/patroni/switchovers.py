"""Switchovers in a row: the delay of patroniglue's answers and its effect on HAProxy's clients."""

import time
from dataclasses import dataclass

from clients import PromotionWatch, Writer
from haproxy import HAProxy
from pollers import Pollers
from waiting import wait_for

POLL_EVERY_S = 0.02
# From Patroni's first answer of a kind to patroniglue's first one of it.
FIRST_503_MAX_S = 0.15
FIRST_200_MAX_S = 0.8


class Path:
    """An application that writes through HAProxy, and its result for each switchover."""

    def __init__(self, name, haproxy, writer):
        self.name = name
        self.haproxy = haproxy
        self.writer = writer
        self.on_standby = []  # connections that ended on a standby
        self.back_after_s = []  # from the promotion to the first write

    def first_write(self, start, node):
        return next((one for one in self.writer.since(start)
                     if one.written and one.server == (node.host, node.postgres_port)), None)

    def record(self, start, promoted, node):
        self.on_standby.append(sum(bool(one.server and one.on_standby)
                                   for one in self.writer.since(start)))
        self.back_after_s.append(self.first_write(start, node).ended - promoted)

    def summary(self):
        back = self.back_after_s
        return (f"{self.name}: {sum(self.on_standby)} connections on a standby"
                f" ({' '.join(map(str, self.on_standby))}), writes back after"
                f" {sum(back) / len(back):.2f} s ({' '.join(f'{one:.2f}' for one in back)})")


@dataclass(frozen=True)
class Delays:
    """Seconds by which patroniglue followed Patroni; None if either did not change."""
    first_503_s: float
    first_200_s: float
    resolution_s: float  # between Patroni's last answer before a change and the first one after it


def switchovers(setup):
    """Switchovers in a row: patroniglue follows Patroni; prints the effect on HAProxy's clients."""
    paths = [Path("patroniglue, with observe", setup.haproxy, setup.writer)]
    for name, direct in (("patroniglue", False), ("Patroni itself", True)):
        haproxy = HAProxy(setup.cluster, f"haproxy-{len(paths)}", direct, observe=False)
        haproxy.start()
        paths.append(Path(name, haproxy, Writer(haproxy.write)))
        paths[-1].writer.start()
    delays = []
    try:
        for number in range(1, setup.switchovers + 1):
            delays.append(_switch(setup, number, paths))
    finally:
        for path in paths[1:]:
            path.writer.stop()
            path.haproxy.stop()
    for path in paths:
        setup.report.log(f"  HAProxy checks {path.summary()}")
    _check(setup, "503", "previous", [one.first_503_s for one in delays], FIRST_503_MAX_S)
    _check(setup, "200", "new", [one.first_200_s for one in delays], FIRST_200_MAX_S)


def _switch(setup, number, paths):
    cluster = setup.cluster
    wait_for("healthy cluster", cluster.is_healthy, 30)
    old = cluster.leader()
    new = cluster.nodes[(cluster.nodes.index(old) + 1) % len(cluster.nodes)]
    for path in paths:
        path.haproxy.wait_for_leader(old, 20)
    watch = PromotionWatch([new])
    start = time.monotonic()
    addresses = [old.patroni, old.patroniglue, new.patroni, new.patroniglue]
    try:
        with Pollers(POLL_EVERY_S, "/primary", addresses, cluster.pki) as pollers:
            cluster.patronictl("switchover", "--leader", old.name, "--candidate", new.name,
                               "--force")
            wait_for("writes on the new leader",
                     lambda: all(path.first_write(start, new) for path in paths), 20)
    finally:
        watch.stop()
    # A server that is wrongly UP ends connections on a standby until then.
    for path in paths:
        path.haproxy.wait_for_leader(new, 20)
        path.record(start, watch.at, new)
    delays = _delays(pollers, old, new)
    setup.report.log(f"switchover {number}, {old.name} to {new.name}: patroniglue's first 503"
                     f" {_text(delays.first_503_s)} after Patroni's, its first 200"
                     f" {_text(delays.first_200_s)} (± {delays.resolution_s:.3f} s)")
    return delays


def _delays(pollers, old, new):
    found, resolution_s = [], 0.0
    for node, status in ((old, 503), (new, 200)):
        patroni = pollers.samples[node.patroni]
        first = next((at for at, one in enumerate(patroni) if one.status == status), 0)
        through = next((one.answered for one in pollers.samples[node.patroniglue]
                        if one.status == status), None)
        # Patroni's first sample is from before the switchover
        known = first > 0 and through is not None
        found.append(through - patroni[first].answered if known else None)
        resolution_s = max(resolution_s, patroni[first].answered - patroni[first - 1].answered)
    return Delays(*found, resolution_s)


def _check(setup, status, leader, delays, limit_s):
    setup.report.check(f"patroniglue's first {status} on the {leader} leader came at most"
                       f" {limit_s} s after Patroni's in each of {len(delays)} switchovers",
                       all(one is not None and one <= limit_s for one in delays),
                       " ".join(map(_text, delays)))


def _text(delay):
    return "never" if delay is None else f"{delay:+.3f} s"
