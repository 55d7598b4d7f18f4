"""Checks with a silent Patroni on the leader: stale answers are served within D, never past it."""

import json
import os
import signal
import time
from dataclasses import dataclass

from bad_clients import BadClients
from clients import PromotionWatch, ask
from pollers import Pollers
from waiting import wait_for

POLL_EVERY_S = 0.05
# Patroni is stopped for its ttl and this time, so that another node is promoted.
STOPPED_BEYOND_TTL_S = 30
# HAProxy checks every second with a timeout of a second, and the third failure takes a server out.
# With Patroni checked directly, a stopped one is DOWN after 5.4 to 6.0 s.
DOWN_AFTER_S = 6.5
# Allowed between patroniglue's decision and the time measured here.
MOMENT_S = 0.05


@dataclass(frozen=True)
class Validity:
    """Until when patroniglue's answer may be served, by the wall clock."""
    lease: float  # D, from the latest dcs_last_seen
    served_min: float  # it is served at least until then
    served_max: float  # and at most until then


def poll_primary(setup, node):
    return Pollers(POLL_EVERY_S, "/primary", [node.patroniglue], setup.cluster.pki)


def validity(setup, node):
    """The validity of the answer that patroniglue has in memory."""
    settings = setup.cluster.settings
    before = time.time()
    answer = ask(node.patroniglue, "GET", "/primary")
    seen = json.loads(answer.body)["dcs_last_seen"]
    lease = seen + settings.ttl - settings.loop_wait - settings.retry_timeout
    ttl, grace = settings.cache["ttl"], settings.cache["grace"]
    # Age is in whole seconds, rounded down
    age = int(answer.headers["age"])
    asked_first, asked_last = before - age - 1, time.time() - age
    # Stale it is served at most until D; fresh at most until the lease ends, which is after D.
    return Validity(lease,
                    max(min(lease, asked_first + ttl + grace), asked_first + ttl),
                    max(min(lease, asked_last + ttl + grace), asked_last + ttl))


def silent_patroni(setup):
    """Five silent clients freeze the leader's Patroni for 8 s: every write succeeds."""
    leader = setup.cluster.leader()
    # patroniglue has just read /config, which is a DCS read: the dcs_last_seen of that second does
    # not count. Wait for the next cycle of the HA loop.
    time.sleep(setup.cluster.settings.loop_wait + 1.5)
    before = setup.haproxy.servers()["write", leader.name]
    start = time.monotonic()
    with BadClients("silent", 5, [leader.patroni]):
        time.sleep(0.3)
        frozen = ask(leader.patroni, "OPTIONS", "/primary", 2.0)
        time.sleep(5.7)
    setup.report.check("Patroni itself was frozen", "timed out" in frozen.error, str(frozen))
    time.sleep(2)
    length = sum(one.length for one in setup.writer.outages(start))
    after = setup.haproxy.servers()["write", leader.name]
    setup.report.check("no write outage, the leader was never DOWN",
                       length == 0 and after.times_down == before.times_down,
                       f"{length:.1f} s, {before} -> {after}")


def stopped_shortly(setup):
    """SIGSTOP of the leader's Patroni for 4 s, then for 8 s: 200 until D."""
    for seconds in (4, 8):
        leader = setup.cluster.leader()
        start = time.monotonic()
        before = setup.haproxy.servers()["write", leader.name]
        samples, until_when = _stop_for(setup, leader, seconds)
        _check_bounds(setup, samples, until_when, f"stopped for {seconds} s")
        early = [one for one in samples
                 if one.answered < until_when.served_min and one.status != 200]
        served = until_when.served_min - samples[0].asked
        setup.report.check(f"stopped for {seconds} s: 200 for the {served:.1f} s for which it has"
                           " to be served", not early, str(early[:3]))
        length = sum(one.length for one in setup.writer.outages(start))
        after = setup.haproxy.servers()["write", leader.name]
        times = after.times_down - before.times_down
        setup.report.log(f"stopped for {seconds} s: {length:.1f} s of write outage,"
                         f" {times} times DOWN")
        # the third failed check takes the server out: two may fail
        if served + 2 > seconds:
            setup.report.check(f"stopped for {seconds} s: no write outage, never DOWN",
                               length == 0 and times == 0, f"{length:.1f} s, {times} times")
        wait_for("the leader again", lambda: setup.cluster.leader() is leader, 10)
        setup.haproxy.wait_for_leader(leader, 20)


def stopped_for_good(setup):
    """SIGSTOP of the leader's Patroni until another is promoted: no write to the stopped one."""
    settings = setup.cluster.settings
    old = setup.cluster.leader()
    watch = PromotionWatch(setup.cluster.others(old))
    start = time.monotonic()
    samples, until_when = _stop_for(setup, old, settings.ttl + STOPPED_BEYOND_TTL_S)
    watch.stop()
    _check_bounds(setup, samples, until_when, "stopped for good")
    setup.report.check("another node was promoted", watch.at is not None)
    if watch.at is None:
        return
    setup.report.log(f"{watch.node.name} was promoted after {watch.at - start:.1f} s, "
                     f"D was {until_when.lease - samples[0].asked:.1f} s after the stop")
    wrong = [one for one in setup.writer.since(watch.at)
             if one.written and one.server == (old.host, old.postgres_port)]
    setup.report.check(f"no write reached {old.name} after {watch.node.name} was promoted",
                       not wrong, f"{len(wrong)} writes")
    wait_for("previous leader as a streaming replica", setup.cluster.is_healthy, 60, 0.3)
    setup.haproxy.wait_for_leader(watch.node, 20)


def _stop_for(setup, node, seconds):
    """Stops Patroni. Returns patroniglue's answers meanwhile and their validity."""
    wait_for("answer of patroniglue",
             lambda: ask(node.patroniglue, "GET", "/primary").status == 200, 5)
    down, done = setup.haproxy.watch_for_down("write", node)
    with poll_primary(setup, node) as pollers:
        time.sleep(0.5)
        os.kill(node.patroni_process.pid, signal.SIGSTOP)
        try:
            stopped = time.time()
            until_when = validity(setup, node)
            setup.report.log(f"Patroni of {node.name} is stopped for {seconds} s, D is"
                             f" {until_when.lease - stopped:.1f} s away")
            time.sleep(seconds)
            resumed = time.time()
        finally:
            os.kill(node.patroni_process.pid, signal.SIGCONT)
            done.set()
    samples = [one for one in pollers.samples[node.patroniglue]
               if stopped <= one.asked < resumed]
    check_ages(setup, node, samples, f"stopped for {seconds} s")
    limit = until_when.served_max + DOWN_AFTER_S
    if down or time.time() > limit:
        after = f"{down[0] - stopped:.1f} s after the stop" if down else "never"
        setup.report.check(
            f"DOWN {after}: at most {DOWN_AFTER_S:.1f} s after the last 200",
            down and down[0] <= limit, f"that was {until_when.served_max - stopped:.1f} s after it")
    return samples, until_when


def check_ages(setup, node, samples, when):
    """Checks by Patroni's log that each 200 is at most ttl + grace old."""
    cache = setup.cluster.settings.cache
    allowed = cache["ttl"] + cache["grace"]
    time.sleep(1)  # Patroni writes its log in batches
    gave = [at for at, target, status in node.answers() if target == "/primary" and status == 200]
    good = [one for one in samples if one.status == 200]
    ages = [one.asked - max((at for at in gave if at <= one.answered + MOMENT_S), default=0.0)
            for one in good]
    oldest = max(ages, default=0.0)
    setup.report.check(f"{when}: the oldest 200 was {oldest:.2f} s old, ttl + grace is"
                       f" {allowed} s", ages and oldest <= allowed + MOMENT_S)


def _check_bounds(setup, samples, until_when, when):
    good = [one for one in samples if one.status == 200]
    late = [one for one in good if one.asked >= until_when.served_max + MOMENT_S]
    late_by = max((one.asked - until_when.served_max for one in late), default=0)
    grace = setup.cluster.settings.cache["grace"]
    bound = "at or after D" if grace else "past its ttl"
    setup.report.check(f"{when}: {len(good)} of {len(samples)} answers were 200, none {bound}",
                       good and not late, f"{len(late)}, the last one {late_by:.2f} s late")
