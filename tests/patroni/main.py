"""Options, the order of the checks, the summary line. Started by run with the venv's Python."""

import argparse
import glob
import itertools
import os
import signal
import subprocess
import sys
import time
import traceback

import checks
import supervisor
from clients import Writer
from cluster import Cluster, Settings
from haproxy import HAProxy
from waiting import NotReady, wait_for

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIMIT_S = 600
PATRONI_DEFAULTS = {"ttl": 30, "loop_wait": 10, "retry_timeout": 10}
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """SIGTERM, SIGINT or the supervisor's time limit."""


class Report:
    """Prints each event with the seconds since the start, and counts the checks."""

    def __init__(self):
        self.start = time.monotonic()
        self.passed = self.failed = 0
        self.logs_shown = False

    def log(self, text):
        print(f"{time.monotonic() - self.start:6.1f} s  {text}")

    def check(self, text, good, detail=""):
        if good:
            self.passed += 1
            self.log(f"ok: {text}")
        else:
            self.fail(f"{text}: {detail}")

    def fail(self, text):
        self.failed += 1
        self.log(f"FAILED: {text}")


def main():
    options = parse()
    if os.geteuid() != 0:
        sys.exit("tests/patroni/run: run it as root; it starts PostgreSQL as another user")
    binary = options.binary
    if not options.direct and not os.path.exists(binary):
        subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
    return supervisor.watch(lambda directory: test(options, directory), LIMIT_S, options.keep)


def parse():
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    default = Settings("", "")
    parser = argparse.ArgumentParser(
        prog="tests/patroni/run", description="Tests patroniglue in a real Patroni cluster.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--direct", action="store_true",
                        help="without patroniglue: HAProxy checks Patroni itself")
    parser.add_argument("--binary", default=os.path.join(target, "release", "patroniglue"),
                        help="patroniglue; built if the file does not exist")
    parser.add_argument("--only", action="append", choices=checks.CHECKS, metavar="NAME",
                        help="run only this check; repeatable, in the order given: "
                        + " ".join(checks.CHECKS))
    parser.add_argument("--keep", action="store_true", help="keep the directory with all logs")
    parser.add_argument("--tls", action="store_true",
                        help="TLS on every connection, a private CA, verify_client: required")
    parser.add_argument("--grace", type=int, default=0,
                        help="patroniglue's cache.grace; not 0: run the checks of grace")
    parser.add_argument("--switchovers", type=int, default=10,
                        help="number of switchovers of the check switchovers")
    parser.add_argument("--dcs", action="store_true",
                        help="run the checks of the lease witness: patroniglue reads the lease"
                        " from etcd, with --tls over TLS and as a user; with Patroni's own"
                        " intervals")
    for name, usual in PATRONI_DEFAULTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int,
                            help=f"Patroni's {name}, seconds (default: {getattr(default, name)},"
                            f" with --dcs {usual})", default=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dcs and options.direct:
        parser.error("--dcs tests patroniglue, which --direct leaves out")
    if any(name in checks.DCS for name in options.only or []) and not options.dcs:
        parser.error("the checks dcs-* need --dcs")
    for name, usual in PATRONI_DEFAULTS.items():
        if name not in options:
            setattr(options, name, usual if options.dcs else getattr(default, name))
    return options


def test(options, directory):
    """Runs all checks, in the supervisor's child. Returns the exit code."""
    report = Report()

    def interrupt(number, _):
        for further in SIGNALS:  # Ctrl-C arrives twice: from the terminal and the supervisor
            signal.signal(further, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        run(options, directory, report)
    except Interrupted as problem:
        report.fail(f"ended by {problem}")
    except Exception as problem:  # the summary line is printed after any failure
        report.fail(explain(problem))
        show_logs(directory, report)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


def run(options, directory, report):
    settings = Settings(directory, options.binary, options.direct, options.ttl,
                        options.loop_wait, options.retry_timeout)
    settings.cache["grace"] = options.grace
    settings.tls, settings.dcs = options.tls, options.dcs
    cluster = Cluster(settings)
    report.log(f"starting etcd and three Patroni nodes on {cluster.network}.*, ttl {settings.ttl},"
               f" loop_wait {settings.loop_wait}, retry_timeout {settings.retry_timeout}")
    cluster.start()
    haproxy = HAProxy(cluster, direct=options.direct)
    haproxy.start()
    checked = "Patroni itself" if options.direct else "patroniglue"
    report.log(f"{cluster.leader().name} is the leader, HAProxy checks {checked}")
    writer = Writer(haproxy.write)
    writer.start()
    setup = checks.Setup(cluster, haproxy, writer, report, options.switchovers)
    start = time.monotonic()
    for name in options.only or _usual(options):
        check, needs_patroniglue = checks.CHECKS[name]
        if needs_patroniglue and options.direct:
            report.log(f"{name}: skipped, it needs patroniglue")
        else:
            report.log(f"{name}: {check.__doc__}")
            run_check(check, setup)
    writer.stop()
    everything = writer.since(start)
    report.log(f"{len(everything)} connections to the write port,"
               f" {sum(one.written for one in everything)} rows written")


def _usual(options):
    if options.dcs:
        return checks.DCS
    return checks.GRACE if options.grace else checks.USUAL


def run_check(check, setup):
    """Runs one check. An exception fails it; the next checks still run."""
    try:
        wait_for("healthy cluster", setup.cluster.is_healthy, 30)
        check(setup)
    except Interrupted:
        raise
    except Exception as problem:
        setup.report.fail(f"{check.__name__}: {explain(problem)}")
        show_logs(setup.cluster.settings.directory, setup.report)


def explain(problem):
    return str(problem) if isinstance(problem, NotReady) else traceback.format_exc()


def show_logs(directory, report):
    """Prints the last lines of every log, once: CI keeps no other trace of a failure."""
    if report.logs_shown:
        return
    report.logs_shown = True
    logs = (glob.glob(f"{directory}/{pattern}") for pattern in ("*/*log", "old/*/*log"))
    for log in itertools.chain(*map(sorted, logs)):
        with open(log, encoding="utf-8", errors="replace") as lines:
            last = [line.rstrip()[:200] for line in lines.readlines()[-8:]]
        report.log("\n  ".join([f"end of {os.path.relpath(log, directory)}:", *last]))


if __name__ == "__main__":
    sys.exit(main())
