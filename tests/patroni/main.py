"""Options, the order of things, the last line. Started by run, with the environment's Python."""

import argparse
import glob
import os
import signal
import subprocess
import sys
import time
import traceback

import checks
import supervisor
from clients import Writer
from cluster import Cluster, NotReady, Settings, wait_for
from haproxy import HAProxy

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LIMIT_S = 600
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """SIGTERM or SIGINT, or the supervisor's time limit."""


class Report:
    """Says what happens, with seconds since the beginning, and counts."""

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
        sys.exit("tests/patroni/run: must be root, PostgreSQL is run as another user")
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
                        help="no glue: HAProxy asks Patroni itself")
    parser.add_argument("--binary", default=os.path.join(target, "release", "patroniglue"),
                        help="the glue; built if it is not there")
    parser.add_argument("--only", action="append", choices=checks.CHECKS, metavar="NAME",
                        help="this check alone; given again: these, in this order, of "
                        + " ".join(checks.CHECKS))
    parser.add_argument("--keep", action="store_true", help="leave the directory with all logs")
    parser.add_argument("--tls", action="store_true",
                        help="TLS everywhere, a private CA, Patroni with verify_client: required")
    parser.add_argument("--grace", type=int, default=0,
                        help="cache.grace of the glue; the usual checks are then those of it")
    for name in ("ttl", "loop_wait", "retry_timeout"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int,
                            default=getattr(default, name), help=f"Patroni's {name}, seconds")
    return parser.parse_args()


def test(options, directory):
    """In the supervisor's child: everything; the exit code."""
    report = Report()

    def interrupt(number, _):
        for further in SIGNALS:  # Ctrl-C comes twice, from the terminal and from the supervisor
            signal.signal(further, signal.SIG_IGN)
        raise Interrupted(signal.Signals(number).name)

    for number in SIGNALS:
        signal.signal(number, interrupt)
    try:
        run(options, directory, report)
    except Interrupted as problem:
        report.fail(f"ended by {problem}")
    except Exception as problem:  # whatever it is, the last line has to be said
        report.fail(explain(problem))
        show_logs(directory, report)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


def run(options, directory, report):
    settings = Settings(directory, options.binary, options.direct, options.ttl,
                        options.loop_wait, options.retry_timeout)
    settings.cache["grace"] = options.grace
    settings.tls = options.tls
    cluster = Cluster(settings)
    report.log(f"starting etcd and three Patroni nodes on {cluster.network}.*, ttl {settings.ttl},"
               f" loop_wait {settings.loop_wait}, retry_timeout {settings.retry_timeout}")
    cluster.start()
    haproxy = HAProxy(cluster)
    haproxy.start()
    asked = "Patroni itself" if options.direct else "the glue"
    report.log(f"{cluster.leader().name} leads, HAProxy asks {asked}")
    writer = Writer(haproxy.write)
    writer.start()
    setup = checks.Setup(cluster, haproxy, writer, report)
    start = time.monotonic()
    for name in options.only or (checks.GRACE if options.grace else checks.USUAL):
        check, needs_patroniglue = checks.CHECKS[name]
        if needs_patroniglue and options.direct:
            report.log(f"{name}: not run, there is no glue")
        else:
            report.log(f"{name}: {check.__doc__}")
            run_check(check, setup)
    writer.stop()
    everything = writer.since(start)
    report.log(f"{len(everything)} connections to the write port,"
               f" {sum(one.written for one in everything)} rows written")


def run_check(check, setup):
    """A check that cannot go on has failed; the next ones are tried all the same."""
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
    """The last lines of every log, once: where nobody can look later they are all there is."""
    if report.logs_shown:
        return
    report.logs_shown = True
    for log in sorted(glob.glob(f"{directory}/*/*log")):
        with open(log, encoding="utf-8", errors="replace") as lines:
            last = [line.rstrip()[:200] for line in lines.readlines()[-8:]]
        report.log("\n  ".join([f"end of {os.path.relpath(log, directory)}:", *last]))


if __name__ == "__main__":
    sys.exit(main())
