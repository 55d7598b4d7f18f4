"""Runs in the container: a stand-in for Patroni, clients, and one function for each case."""

import http.server
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

ADDRESS = ("127.0.0.1", 8009)
FILE = "/etc/patroniglue.yml"
UNIT = "patroniglue.service"
CONFIG = """\
frontend: {host: 127.0.0.1, port: 8009}
backend: {host: 127.0.0.1, port: 8008}
cache: {ttl: 1}
"""
WAIT_S_MAX = 2.0


class Patroni(http.server.BaseHTTPRequestHandler):
    """Answers as a primary; while `silent` is set, not at all."""

    silent = threading.Event()

    def do_GET(self):
        while Patroni.silent.is_set():
            time.sleep(0.05)
        try:
            self.answer()
        except OSError:
            pass  # a fetch that was given up

    def answer(self):
        body = b'{"state": "running", "role": "primary", "timeline": 1}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Load:
    """Clients with a new connection for each check, which they reset as HAProxy does."""

    def __init__(self, clients=8, statuses=(b"200",), tls=None):
        self.statuses = statuses
        self.tls = tls
        self.certificates = set()
        self.counts = dict.fromkeys(("ok", "refused", "reset", "empty", "other", "timeout"), 0)
        self.wait_s_max = 0.0
        self.lock = threading.Lock()
        self.ends = threading.Event()
        self.threads = [threading.Thread(target=self.run) for _ in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        for thread in self.threads:
            thread.join()

    def run(self):
        while not self.ends.is_set():
            begun = time.monotonic()
            outcome = self.check()
            waited = time.monotonic() - begun
            with self.lock:
                self.counts[outcome] += 1
                self.wait_s_max = max(self.wait_s_max, waited)

    def check(self):
        client = socket.socket()
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            client.connect(ADDRESS)
            if self.tls:
                client = self.tls.wrap_socket(client)
                self.certificates.add(client.getpeercert(binary_form=True))
            client.sendall(b"GET /primary HTTP/1.0\r\n\r\n")
            answer = client.recv(4096)
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "timeout"
        except OSError:
            return "reset"
        finally:
            client.close()
        if not answer:
            return "empty"
        return "ok" if answer[9:12] in self.statuses else "other"

    def expect_nothing_lost(self, accepted_max=0):
        """`accepted_max`: connections that a killed process may have accepted."""
        lost = {name: count for name, count in self.counts.items() if count and name != "ok"}
        print(f"    {self.counts['ok']} checks, longest {self.wait_s_max * 1000:.0f} ms, {lost}")
        accepted = lost.pop("reset", 0) + lost.pop("empty", 0)
        expect(not lost and accepted <= accepted_max, f"lost: {lost}, {accepted} accepted")
        expect(self.counts["ok"] > 50, "too few checks")
        expect(self.wait_s_max < WAIT_S_MAX, f"a check waited for {self.wait_s_max:.2f} s")


def expect(condition, why):
    if not condition:
        raise AssertionError(why)


def run(*command, check=True):
    return subprocess.run(command, check=check, capture_output=True, text=True)


def show(name):
    return run("systemctl", "show", "-P", name, UNIT).stdout.strip()


def write(text):
    with open(FILE, "w", encoding="ascii") as file:
        file.write(text)


def wait_for(what, ask):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if ask():
            return
        time.sleep(0.05)
    raise AssertionError(f"waited in vain for {what}")


def kill_daemon(number):
    os.kill(int(show("MainPID")), number)


def is_active_again(process_id):
    return show("ActiveState") == "active" and show("MainPID") not in ("0", process_id)


def case_restart():
    """20 restarts lose nothing."""
    with Load() as load:
        for _ in range(20):
            run("systemctl", "restart", UNIT)
            time.sleep(0.1)
    load.expect_nothing_lost()


def case_restart_with_half_a_head():
    """A client that has sent half a head does not hold the others."""
    with Load() as load:
        for _ in range(3):
            half = socket.create_connection(ADDRESS)
            half.sendall(b"GET /primary HTT")
            run("systemctl", "restart", UNIT)
            half.close()
            time.sleep(0.3)
    load.expect_nothing_lost()


def case_restart_with_a_silent_patroni():
    """Waiting clients get a 503 at the end, and later ones are not refused."""
    Patroni.silent.set()
    try:
        with Load(statuses=(b"200", b"503")) as load:
            time.sleep(0.5)
            run("systemctl", "restart", UNIT)
            time.sleep(0.2)
            run("systemctl", "restart", UNIT)
            Patroni.silent.clear()
            time.sleep(0.5)
        load.expect_nothing_lost()
    finally:
        Patroni.silent.clear()


def case_kill():
    """A crash loses no connection of the backlog, only those that were accepted."""
    with Load() as load:
        process_id = show("MainPID")
        kill_daemon(signal.SIGKILL)
        wait_for("the next process", lambda: is_active_again(process_id))
        time.sleep(0.5)
    load.expect_nothing_lost(accepted_max=len(load.threads))


def case_reload():
    """20 reloads lose nothing."""
    with Load() as load:
        for number in range(20):
            write(CONFIG.replace("ttl: 1", f"ttl: {1 + number % 2}"))
            run("systemctl", "reload", UNIT)
            wait_for("the reload", lambda: show("ActiveState") == "active")
    load.expect_nothing_lost()
    expect(show("StatusText").startswith("reloaded "), show("StatusText"))


def case_reload_certificates():
    """20 reloads, each with another certificate, lose no TLS client."""
    for name in "ab":
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-subj", f"/CN={name}", "-days", "30",
            "-keyout", f"/etc/{name}.key", "-out", f"/etc/{name}.pem")
        os.chmod(f"/etc/{name}.key", 0o644)  # the service has a user of its own
    with_tls = lambda name: CONFIG.replace(
        "8009}", f"8009, certfile: /etc/{name}.pem, keyfile: /etc/{name}.key}}")
    write(with_tls("b"))
    run("systemctl", "reload", UNIT)
    wait_for("TLS", lambda: Load(tls=unverified()).check() == "ok")
    with Load(tls=unverified()) as load:
        for number in range(20):
            write(with_tls("ab"[number % 2]))
            run("systemctl", "reload", UNIT)
            wait_for("the reload", lambda: show("ActiveState") == "active")
    write(CONFIG)
    run("systemctl", "reload", UNIT)
    wait_for("plain HTTP", lambda: Load().check() == "ok")
    load.expect_nothing_lost()
    expect(len(load.certificates) == 2, f"{len(load.certificates)} certificates were seen")


def unverified():
    """Clients that take any certificate, with a full handshake each."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def case_broken_reload():
    """A broken file makes the reload fail, and changes nothing."""
    process_id = show("MainPID")
    write("frontend:\n  prot: 1\n")
    broken = run("systemctl", "reload", UNIT, check=False)
    write(CONFIG)
    expect(broken.returncode != 0, "the reload did not fail")
    expect(show("MainPID") == process_id and Load().check() == "ok", "something changed")


def case_watchdog():
    """A daemon that stands still is restarted."""
    process_id = show("MainPID")
    kill_daemon(signal.SIGSTOP)
    wait_for("the watchdog", lambda: is_active_again(process_id))
    expect(Load().check() == "ok", "no answer after the restart")


def case_journal():
    """Warnings have the priority of warnings, and nothing else has."""
    write(CONFIG.replace("ttl: 1", "ttl: 6"))
    run("systemctl", "restart", UNIT)
    write(CONFIG)
    run("journalctl", "--sync")
    invocation = show("InvocationID")
    read = lambda *more: run(
        "journalctl", "-q", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={invocation}", *more
    ).stdout.splitlines()
    warnings = read("-p", "warning")
    expect(len(warnings) == 1 and warnings[0].startswith("cache.ttl: "), f"{warnings}")
    expect(any("listening on" in line for line in read()), "no start line")


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8008), Patroni)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run("ip", "link", "set", "lo", "up", check=False)
    write(CONFIG)
    os.makedirs("/etc/systemd/system/patroniglue.service.d", exist_ok=True)
    with open("/etc/systemd/system/patroniglue.service.d/test.conf", "w", encoding="ascii") as file:
        file.write("[Service]\nWatchdogSec=2\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", UNIT)
    cases = {name[5:]: case for name, case in globals().items() if name.startswith("case_")}
    failed = []
    for name in sys.argv[1:] or cases:
        print(f"{name}: {cases[name].__doc__}", flush=True)
        try:
            cases[name]()
        except (AssertionError, OSError, subprocess.CalledProcessError) as error:
            failed.append(name)
            print(f"    FAILED: {error} {getattr(error, 'stderr', '')}")
            run("systemctl", "restart", UNIT, check=False)
    if failed:
        print(run("journalctl", "-n", "30", "-u", UNIT, check=False).stdout)
    print(f"failed: {', '.join(failed)}" if failed else "all passed", flush=True)
    server.shutdown()


if __name__ == "__main__":
    main()
