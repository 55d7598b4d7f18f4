"""What becomes of a leader whose Patroni falls silent: served old within its lease, never past it."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass

from clients import Promotion, ask
from cluster import until
from crowd import Crowd

ASK_EVERY_S = 0.05
# A load balancer's request is answered a moment after the decision, and both clocks round.
MOMENT_S = 0.05


@dataclass(frozen=True)
class Said:
    """One answer of the glue, with the wall clock's times around it."""
    asked: float
    answered: float
    status: int


class Listener(threading.Thread):
    """Asks a node's glue for /primary all along."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node = node
        self.said = []
        self._done = threading.Event()
        self.start()

    def run(self):
        while not self._done.wait(ASK_EVERY_S):
            asked = time.time()
            answer = ask(self.node.glue, "OPTIONS", "/primary", 5.0)
            self.said.append(Said(asked, time.time(), answer.status))

    def stop(self):
        self._done.set()
        self.join(6)


def sure_until(bench, node):
    """D: until when the lease surely holds, by what the glue knew last; and until when it may
    serve that at all."""
    settings = bench.cluster.settings
    answer = ask(node.glue, "GET", "/primary")
    seen = json.loads(answer.body)["dcs_last_seen"]
    lease = seen + settings.ttl - settings.loop_wait - settings.retry_timeout
    cache = settings.glue_cache
    asked = time.time() - int(answer.headers["age"]) - 1
    return lease, min(lease, asked + cache["ttl"] + cache.get("grace", 0))


def silent_patroni(bench):
    """Five silent clients freeze the leader's Patroni for 8 s: nobody who writes notices."""
    leader = bench.cluster.leader()
    # The glue has just read /config, and what it then sees of the DCS in that second counts for
    # nothing: the HA loop has to move on once.
    time.sleep(bench.cluster.settings.loop_wait + 1.5)
    before = bench.haproxy.servers()["write", leader.name]
    start = time.monotonic()
    with Crowd("silent", 5, [leader.patroni]):
        time.sleep(0.3)
        frozen = ask(leader.patroni, "OPTIONS", "/primary", 2.0)
        time.sleep(5.7)
    bench.report.check("Patroni itself was frozen", "timed out" in frozen.error, str(frozen))
    time.sleep(2)
    length = sum(one.length for one in bench.writer.outages(start))
    after = bench.haproxy.servers()["write", leader.name]
    bench.report.check("no write outage, the leader was never DOWN",
                       length == 0 and after.times_down == before.times_down,
                       f"{length:.1f} s, {before} -> {after}")


def stopped_shortly(bench):
    """SIGSTOP of the leader's Patroni for 4 s, then for 8 s: 200 as long as the lease is sure."""
    for seconds in (4, 8):
        leader = bench.cluster.leader()
        start = time.monotonic()
        said, lease, old = _stop_for(bench, leader, seconds)
        _never_past(bench, said, lease, f"stopped for {seconds} s")
        early = [one for one in said if one.answered < old and one.status != 200]
        bench.report.check(f"stopped for {seconds} s: 200 for the {old - said[0].asked:.1f} s for"
                           " which it may be served", not early, str(early[:3]))
        length = sum(one.length for one in bench.writer.outages(start))
        if old > said[0].asked + seconds:
            bench.report.check(f"stopped for {seconds} s: no write outage", length == 0,
                               f"{length:.1f} s")
        until("the leader again", lambda: bench.cluster.leader() is leader, 10)
        bench.haproxy.until_it_knows(leader, 20)


def stopped_for_good(bench):
    """SIGSTOP of the leader's Patroni until another leads: nothing is written to the old one."""
    settings = bench.cluster.settings
    old = bench.cluster.leader()
    watch = Promotion(bench.cluster.others(old))
    start = time.monotonic()
    said, lease, _ = _stop_for(bench, old, settings.ttl + 15)
    watch.stop()
    _never_past(bench, said, lease, "stopped for good")
    bench.report.check("another node was promoted meanwhile", watch.at is not None)
    if watch.at is None:
        return
    bench.report.say(f"{watch.node.name} was promoted after {watch.at - start:.1f} s, "
                     f"D was {lease - said[0].asked:.1f} s after the stop")
    wrong = [one for one in bench.writer.since(watch.at)
             if one.written and one.server == (old.host, old.postgres_port)]
    bench.report.check(f"not one write reached {old.name} after {watch.node.name} was promoted",
                       not wrong, f"{len(wrong)} writes")
    until("old leader as a streaming replica", bench.cluster.is_healthy, 60, 0.3)
    bench.haproxy.until_it_knows(watch.node, 20)


def _stop_for(bench, node, seconds):
    """What the glue said meanwhile, D, and until when it could say 200 at the most."""
    until("/config read by the glue", lambda: ask(node.glue, "GET", "/primary").status == 200, 5)
    listener = Listener(node)
    time.sleep(0.5)
    os.kill(node.patroni_process.pid, signal.SIGSTOP)
    try:
        stopped = time.time()
        lease, old = sure_until(bench, node)
        bench.report.say(f"Patroni of {node.name} is stopped for {seconds} s, D is"
                         f" {lease - stopped:.1f} s away")
        time.sleep(seconds)
        said = [one for one in listener.said if one.asked >= stopped]
    finally:
        os.kill(node.patroni_process.pid, signal.SIGCONT)
        listener.stop()
    return said, lease, old


def _never_past(bench, said, lease, when):
    late = [one for one in said if one.status == 200 and one.asked >= lease + MOMENT_S]
    good = sum(one.status == 200 for one in said)
    bench.report.check(f"{when}: {good} of {len(said)} answers were 200, none at D or after it",
                       good > 0 and not late,
                       f"{len(late)}, the last {max((o.asked - lease for o in late), default=0):.2f}"
                       " s after it")
