"""etcd: its process, with TLS and users if the cluster has them, and the lease of the leader key.

The users are made over the JSON gateway, because etcdctl is another package. With etcdctl:

    etcdctl user add root:PASSWORD
    etcdctl role add root
    etcdctl user grant-role root root
    etcdctl role add reader
    etcdctl role grant-permission --prefix=true reader read /service/SCOPE/
    etcdctl user add reader:PASSWORD
    etcdctl user grant-role reader reader
    etcdctl auth enable

and for Patroni's own user the same with `readwrite` instead of `read`.
"""

import base64
import http.client
import json
import threading
import time
from dataclasses import dataclass

import supervisor
from waiting import free_port, wait_for

PASSWORD = "secret"
ASK_EVERY_S = 0.1
TIMEOUT_S = 2


@dataclass(frozen=True)
class Sample:
    """The lease of the leader key, with the wall clock's times before and after the question."""
    asked: float
    answered: float
    leader: str  # the key's value; None: there is no key
    left_s: int  # whole seconds, rounded down; None without a key


class Etcd:
    def __init__(self, host, directory, pki):
        self.host, self.port = host, free_port(host)
        self.directory = directory
        self.pki = pki  # None: plain text and no users
        self.process = None
        self._token = None

    def start(self):
        scheme = "https" if self.pki else "http"
        client = f"{scheme}://{self.host}:{self.port}"
        peer = f"http://{self.host}:{free_port(self.host)}"
        self.process = supervisor.spawn(
            ["etcd", "--name=e1", f"--data-dir={self.directory}/data", "--logger=zap",
             f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
             f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
             f"--initial-cluster=e1={peer}", *self._tls()],
            f"{self.directory}/log", self.directory)
        wait_for("etcd", lambda: b'"true"' in self._request("GET", "/health")[1], 20)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def kill(self):
        self.process.kill()

    def require_users(self, *namespaces):
        """Makes a user for Patroni, and one that can only read below these prefixes."""
        for name in ("root", "patroni", "reader"):
            self.ask("auth/user/add", {"name": name, "password": PASSWORD})
            self.ask("auth/role/add", {"name": name})
            self.ask("auth/user/grant", {"user": name, "role": name})
        for name, kind, prefixes in [("patroni", "READWRITE", namespaces[:1]),
                                     ("reader", "READ", namespaces)]:
            for prefix in prefixes:
                self.ask("auth/role/grant", {"name": name, "perm": {
                    "permType": kind, "key": encoded(prefix), "range_end": range_end(prefix)}})
        self.ask("auth/enable", {})
        self._sign_in()

    def patroni_section(self):
        """Patroni's section etcd3."""
        section = {"host": f"{self.host}:{self.port}"}
        if self.pki is not None:
            section |= {"protocol": "https", "cacert": self.pki.path("ca.pem"),
                        "cert": self.pki.path("nameless.pem"),
                        "key": self.pki.path("nameless.key"),
                        "username": "patroni", "password": PASSWORD}
        return section

    def patroniglue_section(self):
        """patroniglue's section dcs."""
        section = {"type": "etcd3", "hosts": f"{self.host}:{self.port}"}
        if self.pki is not None:
            section |= {"scheme": "https", "cafile": self.pki.path("ca.pem"),
                        "certfile": self.pki.path("nameless.pem"),
                        "keyfile": self.pki.path("nameless.key"),
                        "username": "reader", "password": PASSWORD}
        return section

    def ask(self, path, body):
        """The answer to a request of the JSON gateway. OSError: there is none, or not 200."""
        status, answer = self._request("POST", f"/v3/{path}", json.dumps(body))
        if status == 401:  # etcd was restarted: it keeps its tokens in memory
            self._sign_in()
            status, answer = self._request("POST", f"/v3/{path}", json.dumps(body))
        if status != 200:
            raise OSError(f"etcd: {path}: {status} {answer!r}")
        return json.loads(answer)

    def below(self, prefix):
        """The keys below a prefix, as etcd has them: base64."""
        return self.ask("kv/range", {"key": encoded(prefix), "range_end": range_end(prefix)})["kvs"]

    def put(self, key, value, lease="0"):
        self.ask("kv/put", {"key": encoded(key), "value": encoded(value), "lease": lease})

    def sample(self, key):
        """The lease of a leader key."""
        asked = time.time()
        found = self.ask("kv/range", {"key": encoded(key)}).get("kvs")
        if not found:
            return Sample(asked, time.time(), None, None)
        left = self.ask("lease/timetolive", {"ID": found[0]["lease"]}).get("TTL", "0")
        return Sample(asked, time.time(), decoded(found[0]["value"]), int(left))

    def lease_reads(self):
        """How many times etcd was asked for the time left of a lease."""
        lines = self._request("GET", "/metrics")[1].decode().splitlines()
        return sum(int(float(line.split()[1])) for line in lines
                   if line.startswith("grpc_server_handled_total{") and "LeaseTimeToLive" in line)

    def _tls(self):
        if self.pki is None:
            return []
        return [f"--cert-file={self.pki.path('server.pem')}", "--client-cert-auth",
                f"--key-file={self.pki.path('server.key')}",
                f"--trusted-ca-file={self.pki.path('ca.pem')}"]

    def _sign_in(self):
        self._token = None  # an invalid one would be refused here as well
        body = {"name": "root", "password": PASSWORD}
        status, answer = self._request("POST", "/v3/auth/authenticate", json.dumps(body))
        if status != 200:
            raise OSError(f"etcd: auth/authenticate: {status} {answer!r}")
        self._token = json.loads(answer)["token"]

    def _request(self, method, path, body=None):
        if self.pki is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                self.host, self.port, timeout=TIMEOUT_S, context=self.pki.context("nameless"))
        token = {"Authorization": self._token} if self._token else {}
        try:
            connection.request(method, path, body, token)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as problem:
            raise OSError(f"etcd: {path}: {problem!r}") from problem
        finally:
            connection.close()


class LeaseWatch:
    """Asks for the lease of a leader key for the duration of a `with` block."""

    def __init__(self, etcd, key):
        self.samples = []
        self._etcd, self._key = etcd, key
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join(5)

    def _run(self):
        while not self._done.wait(ASK_EVERY_S):
            try:
                self.samples.append(self._etcd.sample(self._key))
            except OSError:
                pass  # it is stopped

    def of(self, leader, since, until):
        return [one for one in self.samples
                if one.leader == leader and since <= one.asked < until and one.left_s >= 0]

    def gone_at(self, leader, since):
        """When the key was first seen without this leader, or None."""
        return next((one.answered for one in self.samples
                     if one.asked >= since and one.leader != leader), None)


def end_min(samples):
    """The earliest end of a lease that was not renewed while these samples were taken."""
    return max(one.asked + one.left_s for one in samples)


def end_max(samples):
    """Its latest end: etcd rounds down."""
    return min(one.answered + one.left_s + 1 for one in samples)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def decoded(text):
    return base64.b64decode(text).decode()


def range_end(prefix):
    """The end of the range of all keys with a prefix."""
    return encoded(prefix[:-1] + chr(ord(prefix[-1]) + 1))
