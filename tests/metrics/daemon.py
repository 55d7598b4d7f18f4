"""The daemon under test with its clients, and the Prometheus that scrapes it."""

import http.client
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request

START_S = 10
END_S = 5
# How long the daemon may take to answer: backend.timeout and a little more.
ANSWER_S = 3
PAUSE_S = 0.1
# Between two rounds of checks, as of three load balancers.
CHECK_EVERY_S = 0.3
ROUTES = ["/primary", "/replica", "/health"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, happens, limit_s=START_S):
    """Waits until happens() is true."""
    end = time.monotonic() + limit_s
    while True:
        try:
            if happens():
                return
        except (OSError, http.client.HTTPException):
            pass  # not ready yet
        if time.monotonic() > end:
            raise AssertionError(f"no {what} within {limit_s} s")
        time.sleep(PAUSE_S)


class Process:
    """A child process, ended by its id."""

    def __init__(self, command, log):
        self.log = log
        with open(log, "w", encoding="utf-8") as file:
            self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file,
                                           stderr=file)

    def signal(self, number):
        self._child.send_signal(number)

    def close(self):
        self._child.terminate()
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Daemon(Process):
    """patroniglue with an admin listener. `extra` has more lines of sections."""

    def __init__(self, binary, work, name, patroni, extra=None, tls=None):
        self.name, self._tls = name, tls
        self.front, self.admin = free_port(), free_port()
        sections = {
            "frontend": {"host": "127.0.0.1", "port": self.front},
            "backend": {"host": "127.0.0.1", "port": patroni.port, "timeout": 2},
            "cache": {"ttl": 1, "grace": 10},
            "admin": {"host": "127.0.0.1", "port": self.admin},
        }
        for section, keys in (extra or {}).items():
            sections.setdefault(section, {}).update(keys)
        config = f"{work}/{name}.yml"
        with open(config, "w", encoding="utf-8") as file:
            json.dump(sections, file)  # JSON is YAML
        self._checks = None
        self._is_closed = threading.Event()
        super().__init__([binary, "-config", config], f"{work}/{name}.log")
        try:
            wait_for(f"/metrics of {name}", self.scrape)
        except AssertionError:
            self.close()
            with open(self.log, encoding="utf-8") as log:
                raise AssertionError(f"{name} does not start: {log.read()}") from None

    def scrape(self):
        """The text of /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics",
                                    timeout=ANSWER_S) as response:
            kind = response.headers["Content-Type"]
            assert kind == "text/plain; version=0.0.4; charset=utf-8", kind
            return response.read().decode()

    def check(self, route):
        """One health check: its status and Cache-Status."""
        connection = (http.client.HTTPSConnection("127.0.0.1", self.front, timeout=ANSWER_S,
                                                  context=self._tls) if self._tls else
                      http.client.HTTPConnection("127.0.0.1", self.front, timeout=ANSWER_S))
        try:
            connection.request("GET", route)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers["Cache-Status"] or ""
        finally:
            connection.close()

    def begin_checks(self):
        """Load balancers begin to ask."""
        self._checks = threading.Thread(target=self._check_always, daemon=True)
        self._checks.start()

    def _check_always(self):
        while not self._is_closed.wait(CHECK_EVERY_S):
            for route in ROUTES:
                try:
                    self.check(route)
                except (OSError, http.client.HTTPException):
                    pass  # the states are checked elsewhere

    def drain(self, begins):
        self.signal(signal.SIGUSR1 if begins else signal.SIGUSR2)

    def close(self):
        self._is_closed.set()
        super().close()


class Prometheus(Process):
    """A real server with its data in `work`, which scrapes the daemons each second."""

    def __init__(self, work, rules, daemons):
        targets = [f"127.0.0.1:{daemon.admin}" for daemon in daemons]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "patroniglue",
                                "static_configs": [{"targets": targets}]}],
        }
        with open(f"{work}/prometheus.yml", "w", encoding="utf-8") as file:
            json.dump(config, file)
        self._address = f"127.0.0.1:{free_port()}"
        super().__init__(["prometheus", f"--config.file={work}/prometheus.yml",
                          f"--storage.tsdb.path={work}/data", "--log.level=warn",
                          f"--web.listen-address={self._address}"], f"{work}/prometheus.log")
        try:
            wait_for("scrape", lambda: len(self.query("up == 1")) == len(daemons), 2 * START_S)
        except AssertionError:
            self.close()
            with open(self.log, encoding="utf-8") as log:
                raise AssertionError(f"Prometheus does not scrape: {log.read()}") from None

    def query(self, text):
        """The series of a query."""
        return self._ask("query?" + urllib.parse.urlencode({"query": text}))["result"]

    def rules(self):
        """The alerts, as Prometheus understood them."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, what):
        try:
            with urllib.request.urlopen(f"http://{self._address}/api/v1/{what}",
                                        timeout=START_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            if error.code == 503:
                raise  # an OSError: it is not ready yet
            raise AssertionError(f"{what}: {error.read().decode()}") from None


def client_context(certificate):
    """The TLS context of a client that trusts this certificate."""
    return ssl.create_default_context(cafile=certificate)


def server_context(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
