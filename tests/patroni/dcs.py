"""Checks of the lease witness: while Patroni is silent, stale answers rest on the lease in etcd."""

import collections
import contextlib
import json
import os
import re
import signal
import time

import etcd_server
from bad_clients import BadClients
from clients import PromotionWatch, ask
from cluster import OTHER_PREFIX, PREFIX
from lease import MOMENT_S, POLL_EVERY_S, STOPPED_BEYOND_TTL_S, poll_primary
from pollers import Pollers
from waiting import wait_for

FREEZE_S = 45.0
FOREIGN_FREEZE_S = 8.0
STOP_S = 15.0
# dcs.margin by default
MARGIN_S = 10
# The lease is read once a second, its time left is in whole seconds, rounded down.
EARLY_S = 2.5
# In the first of them a silence becomes one: 250 ms, then a read.
SILENT_AFTER_S = 2.0
# A change in etcd is read within a second, and the answer within another one.
BOTH_200_MAX_S = 2.0
# etcd elects itself, Patroni and patroniglue get new tokens.
BACK_WITHIN_S = 15
# Writes on the previous leader would show in this time after a promotion.
WATCHED_AFTER_S = 5
# Two rehearsals, a minute apart.
REHEARSALS_S = 65
# A wrong section dcs (keys that differ from the right one) and words of its line in the log.
MISTAKES = {
    "other-namespace": ({"namespace": "third"}, "there is no key of the cluster"),
}
MISTAKES_WITH_TLS = {
    "no-permission": ({"namespace": "third"}, "grant its role READ"),
    "no-certificate": ({"certfile": "", "keyfile": ""}, "requires a client certificate"),
    "no-ca": ({"cafile": ""}, "not signed by a trusted CA"),
}
REHEARSED = re.compile(r"\bdcs: (.*)")
BEGINS, ENDS = "stale answers rest on", "no longer rest on the dcs"


def frozen_for_long(setup):
    """Five silent clients freeze the leader's Patroni for 45 s: every write succeeds."""
    leader = setup.cluster.leader()
    before, reads = setup.haproxy.servers(), setup.cluster.etcd.lease_reads()
    start = time.monotonic()
    with poll_primary(setup, leader) as polled, _frozen(setup, leader) as said:
        time.sleep(FREEZE_S)
        reads = setup.cluster.etcd.lease_reads() - reads
    _check_all_200(setup, polled.samples[leader.patroniglue])
    _check_no_outage(setup, leader, before, start)
    setup.report.check(f"the lease was read {reads} times in {FREEZE_S:.0f} s: once a second",
                       0.5 * FREEZE_S <= reads <= FREEZE_S + 5)
    wait_for("end in the log", lambda: any(ENDS in line for line in said()), 5)
    begun, ended = ([line for line in said() if text in line] for text in (BEGINS, ENDS))
    setup.report.check("one log line says that answers rest on etcd, one that they no longer do",
                       len(begun) == len(ended) == 1, str(begun + ended))


def foreign_cluster(setup):
    """Keys of another cluster with the same scope and names are never evidence."""
    leader = setup.cluster.leader()
    _copy_keys(setup.cluster.etcd)
    address, log = setup.cluster.another_patroniglue(leader, "foreign", namespace="other")
    said = _wait_for_rehearsal(log)
    setup.report.check(f"the keys are another cluster's: \"{said}\"", "database system" in said)
    both = [address, leader.patroniglue]
    with (Pollers(POLL_EVERY_S, "/primary", both, setup.cluster.pki) as polled,
          _frozen(setup, leader)):
        silent = time.time() + SILENT_AFTER_S
        time.sleep(FOREIGN_FREEZE_S)
        ended = time.time()
    for where, wanted, what in [(address, 503, "the other cluster's keys"),
                                (leader.patroniglue, 200, "our keys")]:
        statuses = [one.status for one in polled.samples[where]
                    if silent <= one.asked and one.answered < ended]
        setup.report.check(f"with {what} {len(statuses)} answers of /primary were {wanted}",
                           set(statuses) == {wanted}, str(set(statuses)))
    setup.report.check("the log never says that answers rest on etcd",
                       not any(BEGINS in line for line in _lines(log)))


def access(setup):
    """A user that can only read is enough; a mistake in the section dcs shows in the log, once."""
    cluster = setup.cluster
    secured = cluster.etcd.pki is not None
    how = "over TLS as a user" if secured else "without TLS and users"
    for node in cluster.nodes:
        said = _wait_for_rehearsal(f"{node.directory}/patroniglue.log")
        setup.report.check(f"{node.name}, {how}: the first line is \"{said}\"", "readable" in said)
    leader = cluster.leader()
    for name, (keys, words) in (MISTAKES_WITH_TLS if secured else MISTAKES).items():
        _, log = cluster.another_patroniglue(leader, name, **keys)
        said = _wait_for_rehearsal(log)
        setup.report.check(f"{name}: \"{said}\"", words in said)
    time.sleep(max(0.0, cluster.password_since + REHEARSALS_S - time.monotonic()))
    said = _rehearsals(cluster.password_log)
    if secured:
        setup.report.check(f"a wrong password: one line in two rehearsals, \"{said[0]}\"",
                           len(said) == 1 and "does not accept" in said[0], str(said))
    else:
        setup.report.check("without users in etcd a password has no effect",
                           "readable" in said[0], str(said))


def stopped_shortly(setup):
    """SIGSTOP of the leader's Patroni for 15 s: every write succeeds."""
    leader = setup.cluster.leader()
    # From a renewal, so that the lease without its margin lasts longer than that.
    _wait_for_time_left(setup, leader, setup.cluster.settings.ttl - 1)
    before = setup.haproxy.servers()
    start = time.monotonic()
    with poll_primary(setup, leader) as polled, _stopped(leader):
        time.sleep(STOP_S)
    _check_all_200(setup, polled.samples[leader.patroniglue])
    _check_no_outage(setup, leader, before, start)


def etcd_stopped(setup):
    """etcd stops while the API is frozen: 200 to the end of the evidence, 503, 200 again."""
    cluster = setup.cluster
    leader = cluster.leader()
    wait_for("failsafe topology", lambda: all(
        ask(node.patroni, "GET", "/failsafe").status == 200 for node in cluster.nodes), 20)
    with (poll_primary(setup, leader) as polled, _frozen(setup, leader),
          _lease_watch(cluster) as watch):
        time.sleep(SILENT_AFTER_S)
        # Just before a renewal, so that the evidence ends soon.
        spare = cluster.settings.loop_wait - 2
        _wait_for_time_left(setup, leader, cluster.settings.ttl - spare)
        read = time.time() - 1
        cluster.etcd.stop()
        stopped = time.time()
        try:
            wait_for("503", lambda: ask(leader.patroniglue, "GET", "/primary").status == 503, 30)
            ended = time.time()
            time.sleep(1)
        finally:
            cluster.etcd.start()
        started = time.time()
        wait_for("200", lambda: ask(leader.patroniglue, "GET", "/primary").status == 200,
                 BACK_WITHIN_S)
        back = time.time()
        time.sleep(1)
        frozen = ask(leader.patroni, "OPTIONS", "/primary", 1.0).error
    left = watch.of(leader.name, read, stopped)
    _check_ends(setup, polled.samples[leader.patroniglue], left, stopped, started)
    setup.report.check(f"503 {ended - stopped:.1f} s after etcd was stopped, 200 again"
                       f" {back - started:.1f} s after its start, still frozen",
                       "timed out" in frozen, frozen)
    wait_for("the same leader", lambda: cluster.leader() is leader, 10)
    setup.haproxy.wait_for_leader(leader, 20)


def switchover_while_frozen(setup):
    """A switchover through etcd while the API is frozen: two nodes say 200 for at most 2 s."""
    cluster = setup.cluster
    old = cluster.leader()
    new = cluster.others(old)[0]
    start = time.monotonic()
    addresses = [old.patroniglue, new.patroniglue]
    with (Pollers(POLL_EVERY_S, "/primary", addresses, cluster.pki) as polled,
          _promotion([new]) as promotion, _frozen(setup, old)):
        time.sleep(SILENT_AFTER_S)
        asked = time.time()
        # What patronictl writes if the leader's Patroni cannot be reached. A silent one would make
        # it wait: it sets no time limit.
        request = json.dumps({"leader": old.name, "member": new.name})
        cluster.etcd.put(f"{PREFIX}failover", request)
        wait_for("promotion", lambda: promotion.at, 40)
        wait_for("200 of the new leader",
                 lambda: ask(new.patroniglue, "GET", "/primary").status == 200, 10)
        time.sleep(BOTH_200_MAX_S + 1)
    good = {address: [one for one in polled.samples[address] if one.status == 200]
            for address in addresses}
    last = max(one.answered for one in good[old.patroniglue])
    both = last - min(one.asked for one in good[new.patroniglue])
    setup.report.log(f"{new.name} was promoted {_wall(promotion.at) - asked:.1f} s after the"
                     f" request; the last 200 of {old.name} came {last - asked:.1f} s after it")
    setup.report.check(f"{old.name} said 200 while frozen, until the switchover", last > asked)
    setup.report.check(f"the last 200 of {old.name} came {both:+.2f} s after the first one of"
                       f" {new.name}, at most {BOTH_200_MAX_S} s", both <= BOTH_200_MAX_S)
    _check_no_old_writes(setup, old, new, promotion.at)
    on_standby = sum(one.on_standby for one in setup.writer.since(start) if one.server)
    setup.report.log(f"{on_standby} connections of the write port ended on a standby")
    wait_for("previous leader as a streaming replica", cluster.is_healthy, 60, 0.3)
    setup.haproxy.wait_for_leader(new, 20)


def stopped_for_good(setup):
    """SIGSTOP of the leader's Patroni: HAProxy takes it out before another node is promoted."""
    cluster = setup.cluster
    old = cluster.leader()
    down, done = setup.haproxy.watch_for_down("write", old)
    with (poll_primary(setup, old) as polled, _lease_watch(cluster) as watch,
          _promotion(cluster.others(old)) as promotion, _stopped(old) as stopped):
        wait_for("promotion", lambda: promotion.at, cluster.settings.ttl + STOPPED_BEYOND_TTL_S)
        time.sleep(WATCHED_AFTER_S)
        resumed = time.time()
    done.set()
    promoted = _wall(promotion.at)
    gone = watch.gone_at(old.name, stopped)
    left = watch.of(old.name, stopped, resumed)
    _check_ends(setup, polled.samples[old.patroniglue], left, stopped, resumed)
    setup.report.log(f"the leader key was gone {gone - stopped:.1f} s after the stop,"
                     f" {promotion.node.name} was promoted after {promoted - stopped:.1f} s")
    before = f"{promoted - down[0]:.1f} s before the promotion" if down else "never"
    setup.report.check(f"HAProxy took {old.name} out {before}", down and down[0] < promoted)
    _check_no_old_writes(setup, old, promotion.node, promotion.at)
    wait_for("previous leader as a streaming replica", cluster.is_healthy, 60, 0.3)
    _check_no_old_writes(setup, old, promotion.node, promotion.at)


@contextlib.contextmanager
def _frozen(setup, node):
    """Five silent clients on a node's Patroni, which has five workers. Gives a function that
    returns the lines of patroniglue's log since then."""
    log = f"{node.directory}/patroniglue.log"
    known = len(_lines(log))
    with BadClients("silent", 5, [node.patroni]):
        time.sleep(0.3)
        frozen = ask(node.patroni, "OPTIONS", "/primary", 1.0)
        yield lambda: _lines(log)[known:]
    setup.report.check(f"Patroni of {node.name} was frozen", "timed out" in frozen.error,
                       str(frozen))
    wait_for(f"Patroni of {node.name}", lambda: ask(node.patroni, "GET", "/patroni").status, 10)


@contextlib.contextmanager
def _stopped(node):
    """SIGSTOP of a node's Patroni, then SIGCONT. Gives the time of the first."""
    os.kill(node.patroni_process.pid, signal.SIGSTOP)
    try:
        yield time.time()
    finally:
        os.kill(node.patroni_process.pid, signal.SIGCONT)


@contextlib.contextmanager
def _promotion(nodes):
    watch = PromotionWatch(nodes)
    try:
        yield watch
    finally:
        watch.stop()


def _lease_watch(cluster):
    return etcd_server.LeaseWatch(cluster.etcd, f"{PREFIX}leader")


def _wait_for_time_left(setup, leader, seconds):
    """Waits until the leader's lease lasts for this number of seconds, rounded down."""
    def lasts():
        sample = setup.cluster.etcd.sample(f"{PREFIX}leader")
        return sample.leader == leader.name and sample.left_s == seconds
    wait_for(f"lease of {seconds} s", lasts, 25, 0.1)


def _check_all_200(setup, samples):
    statuses = collections.Counter(one.status for one in samples)
    setup.report.check(f"all {len(samples)} answers of /primary were 200", set(statuses) == {200},
                       str(dict(statuses)))


def _check_no_outage(setup, leader, before, start):
    """No write failed, and no server of the write port changed between UP and DOWN."""
    time.sleep(1)
    length = sum(one.length for one in setup.writer.outages(start))
    old, new = before["write", leader.name], setup.haproxy.servers()["write", leader.name]
    setup.report.check(f"no write outage, {new.failed_checks - old.failed_checks} failed checks,"
                       " never DOWN", length == 0 and new.times_down == old.times_down,
                       f"{length:.1f} s, {old} -> {new}")
    setup.haproxy.wait_for_leader(leader, 20)


def _check_ends(setup, samples, left, begin, end):
    """The answers between these times are 200 until the margin of the lease begins, then 503."""
    if not left:
        setup.report.fail("the lease was never read in this time")
        return
    earliest, latest = (end(left) - MARGIN_S for end in (etcd_server.end_min, etcd_server.end_max))
    within = [one for one in samples if begin <= one.asked < end]
    late = [one for one in within if one.status == 200 and one.asked > latest + MOMENT_S]
    early = [one for one in within
             if one.status != 200 and one.answered < earliest - EARLY_S]
    last = max((one.asked for one in within if one.status == 200), default=begin)
    setup.report.check(f"the last 200 came {latest + MARGIN_S - last:.1f} s before the lease ended,"
                       f" the margin is {MARGIN_S} s", not late, f"{len(late)} were later")
    setup.report.check(f"200 for the {earliest - EARLY_S - begin:.1f} s for which the lease allows"
                       " it", not early, f"{len(early)} others, the first one {early[:1]}")


def _check_no_old_writes(setup, old, new, promoted):
    wrong = [one for one in setup.writer.since(promoted)
             if one.written and one.server == (old.host, old.postgres_port)]
    setup.report.check(f"no write reached {old.name} after {new.name} was promoted",
                       not wrong, f"{len(wrong)} writes")


def _copy_keys(server):
    """Another cluster that differs only in its system identifier, and whose lease never ends."""
    lease = server.ask("lease/grant", {"TTL": "600"})["ID"]
    for key in server.below(PREFIX):
        name = etcd_server.decoded(key["key"]).removeprefix(PREFIX)
        value = etcd_server.decoded(key["value"]) if name != "initialize" else "7000000000000000007"
        server.put(OTHER_PREFIX + name, value, lease if key.get("lease", "0") != "0" else "0")


def _wait_for_rehearsal(log):
    """Waits for the first rehearsal and returns its line."""
    wait_for("rehearsal", lambda: _rehearsals(log), 10)
    return _rehearsals(log)[0]


def _rehearsals(log):
    return [found[1] for found in map(REHEARSED.search, _lines(log)) if found]


def _lines(log):
    with open(log, encoding="utf-8", errors="replace") as lines:
        return [line.rstrip() for line in lines]


def _wall(monotonic):
    return monotonic - time.monotonic() + time.time()
