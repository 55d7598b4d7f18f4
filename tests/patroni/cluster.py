"""The cluster under test: one etcd, three Patroni nodes, and a patroniglue on each."""

import datetime
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import clients
import etcd_server
import pki
import supervisor
from waiting import NotReady, free_port, wait_for

PG_BIN = "/usr/lib/postgresql/15/bin"
SCOPE = "test"
PREFIX = f"/service/{SCOPE}/"  # of its keys in etcd
OTHER_PREFIX = f"/other/{SCOPE}/"  # the same scope in another namespace
ANSWERED = re.compile(r'(\S+ \S+) DEBUG: .*"(?:GET|OPTIONS) (\S+) HTTP/1\.0" (\d+)')


@dataclass
class Settings:
    directory: str
    binary: str
    direct: bool = False  # HAProxy checks Patroni itself; patroniglue does not run
    ttl: int = 20
    loop_wait: int = 2
    retry_timeout: int = 3
    environment: str = sys.prefix  # the Python environment of Patroni
    nodes: int = 3
    tls: bool = False  # for patroniglue and Patroni; Patroni requires client certificates
    dcs: bool = False  # patroniglue reads the lease from etcd; with tls, etcd has TLS and users
    cache: dict = field(default_factory=lambda: {"ttl": 1, "interval": 0.25})


@dataclass
class Node:
    """One node of the cluster: its own address, Patroni, PostgreSQL and patroniglue."""
    name: str
    host: str
    directory: str
    postgres_port: int
    patroni_port: int
    patroniglue_port: int
    patroni_process: subprocess.Popen = None
    patroniglue_process: subprocess.Popen = None

    @property
    def patroni(self):
        return self.host, self.patroni_port

    @property
    def patroniglue(self):
        return self.host, self.patroniglue_port

    @property
    def data(self):
        return f"{self.directory}/data"

    @property
    def patroni_file(self):
        return f"{self.directory}/patroni.json"

    def connect(self, timeout_s=2):
        return clients.connect(self.host, self.postgres_port, timeout_s)

    def answers(self):
        """(when, target, status) of each request in Patroni's log. Only HTTP/1.0 requests: the
        test's own are HTTP/1.1, those of patroniglue and HAProxy are 1.0."""
        with open(f"{self.directory}/patroni.log", encoding="utf-8", errors="replace") as lines:
            found = list(filter(None, map(ANSWERED.match, lines)))
        return [(datetime.datetime.fromisoformat(one[1].replace(",", ".")).timestamp(),
                 one[2], int(one[3])) for one in found]

    def postmaster(self):
        """(process id, shared memory id), or None if no postmaster runs in the data directory."""
        try:
            with open(f"{self.data}/postmaster.pid", encoding="ascii") as lines:
                lines = lines.read().split("\n")
            pid = int(lines[0])
            if os.readlink(f"/proc/{pid}/cwd") != os.path.realpath(self.data):
                return None
            return pid, lines[6].split()[1]
        except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            return None

    def kill(self):
        """Kills Patroni and PostgreSQL with SIGKILL, as a power failure does."""
        self.patroni_process.kill()  # first, because it would restart PostgreSQL
        self.patroni_process.wait()
        self.patroni_process = None
        running = self.postmaster()
        if running:
            pid, shared_memory = running
            for process in [pid, *supervisor.descendants(pid)]:
                supervisor.kill(process, signal.SIGKILL)
            # The killed postmaster could not remove its segment.
            subprocess.run(["ipcrm", "-m", shared_memory], check=False,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Cluster:
    def __init__(self, settings):
        self.settings = settings
        # Each node has its own address, each run its own range. Outgoing connections use
        # 127.0.0.1, so they take no port there: a port found free is still free when its daemon
        # binds it later.
        self.network = f"127.{random.randint(16, 250)}.{random.randint(1, 250)}"
        self.nodes = [self._node(number) for number in range(1, settings.nodes + 1)]
        self.pki = None
        etcd_host = f"{self.network}.1"
        if settings.tls:
            hosts = [etcd_host, *(node.host for node in self.nodes)]
            self.pki = pki.Pki(f"{settings.directory}/pki", hosts)
            clients.SECURITY = self.pki.context()
        self.etcd = etcd_server.Etcd(etcd_host, f"{settings.directory}/etcd",
                              self.pki if settings.dcs else None)
        # Of a patroniglue whose password for etcd is wrong.
        self.password_log, self.password_since = None, None

    def _node(self, number):
        host = f"{self.network}.{10 + number}"
        directory = f"{self.settings.directory}/n{number}"
        ports = [free_port(host) for _ in range(3)]
        return Node(f"n{number}", host, directory, *ports)

    def start(self):
        """Starts everything and waits for a leader and streaming replicas."""
        self.make_directory(f"{self.settings.directory}/etcd")
        self.etcd.start()
        if self.etcd.pki is not None:
            self.etcd.require_users(PREFIX, OTHER_PREFIX)
        for node in self.nodes:
            self.make_directory(node.directory)
            self.start_patroni(node)
        wait_for("leader and streaming replicas", self.is_healthy, 60, 0.3)
        self._create_table()
        if not self.settings.direct:
            shutil.copy(self.settings.binary, f"{self.settings.directory}/patroniglue")
            for node in self.nodes:
                self.start_patroniglue(node)
            if self.settings.dcs:
                _, self.password_log = self.another_patroniglue(
                    self.nodes[0], "password", username="reader", password="wrong")
                self.password_since = time.monotonic()

    def kill(self):
        for node in self.alive:
            node.kill()
            if node.patroniglue_process:
                node.patroniglue_process.kill()
        self.etcd.kill()

    def start_patroni(self, node):
        # JSON is YAML, and Patroni reads YAML.
        with open(node.patroni_file, "w", encoding="utf-8") as file:
            json.dump(self._patroni_configuration(node), file, indent=1)
        node.patroni_process = supervisor.spawn(
            [f"{self.settings.environment}/bin/patroni", node.patroni_file],
            f"{node.directory}/patroni.log", node.directory)

    def _patroni_configuration(self, node):
        settings = self.settings
        own = {"max_connections": 60, "shared_buffers": "16MB", "fsync": "off",
               "wal_keep_size": "128MB"}
        restapi = f"{node.host}:{node.patroni_port}"
        postgres = f"{node.host}:{node.postgres_port}"
        return {
            "scope": SCOPE, "name": node.name,
            "restapi": {"listen": restapi, "connect_address": restapi, **self._restapi_tls()},
            "ctl": self._ctl_tls(),
            "etcd3": self.etcd.patroni_section(),
            # one line for each request: the checks count them
            "log": {"loggers": {"patroni.api": "DEBUG"}},
            "bootstrap": {
                "dcs": {"ttl": settings.ttl, "loop_wait": settings.loop_wait,
                        "retry_timeout": settings.retry_timeout,
                        # the leader stays one while etcd is stopped
                        **({"failsafe_mode": True} if settings.dcs else {}),
                        "postgresql": {"use_pg_rewind": True, "parameters": own}},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "no-sync"]},
            "postgresql": {
                "listen": postgres, "connect_address": postgres, "bin_dir": PG_BIN,
                "data_dir": node.data, "pgpass": f"{node.directory}/pgpass",
                "basebackup": [{"checkpoint": "fast"}, "no-sync"],
                "authentication": {"superuser": {"username": "postgres"},
                                   "replication": {"username": "replicator"}},
                "pg_hba": ["local all all trust", "host all all 127.0.0.0/8 trust",
                           "host replication all 127.0.0.0/8 trust"],
                # In the node's directory, not in /dev/shm, so that it is removed with it.
                "parameters": {"unix_socket_directories": node.directory,
                               "dynamic_shared_memory_type": "mmap"}}}

    def _restapi_tls(self):
        if self.pki is None:
            return {}
        return {"certfile": self.pki.path("server.pem"), "keyfile": self.pki.path("server.key"),
                "cafile": self.pki.path("ca.pem"), "verify_client": "required"}

    def _ctl_tls(self):
        """TLS of requests from patronictl and other members to a member."""
        if self.pki is None:
            return {}
        return {"certfile": self.pki.path("client.pem"), "keyfile": self.pki.path("client.key"),
                "cacert": self.pki.path("ca.pem")}

    def start_patroniglue(self, node):
        dcs = self.etcd.patroniglue_section() if self.settings.dcs else {}
        node.patroniglue_process = self._spawn_patroniglue(
            node, node.patroniglue, f"{node.directory}/patroniglue", dcs)

    def another_patroniglue(self, node, name, **dcs):
        """Starts one more patroniglue on a node, with other keys of dcs. Returns its address and
        its log."""
        address = node.host, free_port(node.host)
        files = f"{node.directory}/{name}"
        self._spawn_patroniglue(node, address, files, self.etcd.patroniglue_section() | dcs)
        # It rehearses once it knows what its node is, and HAProxy does not ask it.
        clients.ask(address, "GET", "/primary")
        return address, f"{files}.log"

    def _spawn_patroniglue(self, node, address, files, dcs):
        host, port = address
        sections = {
            "frontend": {"host": host, "port": port},
            "backend": {"host": node.host, "port": node.patroni_port, "scheme": "http",
                        "timeout": 3, "connections": 3},
            "cache": self.settings.cache}
        if self.pki is not None:
            sections["frontend"] |= {"certfile": self.pki.path("server.pem"),
                                     "keyfile": self.pki.path("server.key")}
            sections["backend"] |= {"scheme": "https", "cafile": self.pki.path("ca.pem"),
                                    "certfile": self.pki.path("client.pem"),
                                    "keyfile": self.pki.path("client.key")}
        if dcs:
            sections["dcs"] = dcs
        with open(f"{files}.yml", "w", encoding="utf-8") as output:
            for name, keys in sections.items():
                output.write(f"{name}:\n")
                output.writelines(f"  {key}: {value}\n" for key, value in keys.items())
        process = supervisor.spawn(
            [f"{self.settings.directory}/patroniglue", "-config", f"{files}.yml"],
            f"{files}.log", node.directory)
        wait_for(f"patroniglue of {node.name}",
                 lambda: clients.ask(address, "GET", "/liveness").status, 10)
        return process

    def _create_table(self):
        connection = self.leader().connect()
        connection.autocommit = True
        connection.cursor().execute(
            "create table writes (id bigserial primary key, at timestamptz default now())")
        connection.close()

    def make_directory(self, path):
        os.mkdir(path, 0o700)
        shutil.chown(path, supervisor.USER, supervisor.USER)

    def leader(self):
        """The node whose Patroni says that it holds the lease, or None."""
        for node in self.alive:
            if clients.ask(node.patroni, "GET", "/leader", 1).status == 200:
                return node
        return None

    def others(self, leader):
        return [node for node in self.alive if node is not leader]

    @property
    def alive(self):
        return [node for node in self.nodes if node.patroni_process is not None]

    def is_healthy(self):
        """Whether there is a leader and every other node streams from it."""
        leader = self.leader()
        return leader is not None and all(
            answer.status == 200 and b'"replication_state": "streaming"' in answer.body
            for answer in (clients.ask(node.patroni, "GET", "/replica", 1)
                           for node in self.others(leader)))

    def patronictl(self, *arguments):
        """Returns the output of patronictl, which uses etcd and Patroni, not patroniglue."""
        done = subprocess.run(
            supervisor.as_user(f"{self.settings.environment}/bin/patronictl", "-c",
                               self.nodes[0].patroni_file, *arguments),
            env=supervisor.environment(self.settings.directory),
            cwd=self.settings.directory, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise NotReady(f"patronictl {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout
