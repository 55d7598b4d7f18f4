"""The servers of bench/run: how each is configured, started, watched and ended."""

import ctypes
import glob
import os
import random
import signal
import socket
import subprocess
import time
import urllib.request

# What the answer of the stand-in looks like. The load generator knows the two marks.
STAMP, SEEN = "@STAMP@", "@SEEN@"
BODY_BYTES = 450


def body(failsafe=False):
    """A leader's answer of 450 bytes, once the marks are replaced."""
    text = '{"state": "running", "role": "primary", "timeline": 1, "dcs_last_seen": ' + SEEN
    if failsafe:
        text += ', "failsafe_mode_is_active": true'
    text += ', "patroni": {"version": "4.1.5", "scope": "bench", "name": "pg1"}'
    text += ', "asked_at": "' + STAMP + '", "filler": "'
    bytes_so_far = len(text) - len(SEEN) - len(STAMP) + 10 + 16
    return text + "x" * (BODY_BYTES - bytes_so_far - 2) + '"}'


def free_port():
    """A port below those that the kernel gives to connections."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def with_children(pid):
    """The process and all its descendants."""
    found = [pid]
    for path in glob.glob(f"/proc/{pid}/task/*/children"):
        try:
            with open(path) as file:
                for child in file.read().split():
                    found += with_children(int(child))
        except OSError:
            pass
    return found


def run_on(cpu, priority):
    """Moves this process to a CPU; a priority above 0 is a real-time one."""
    os.sched_setaffinity(0, {cpu})
    if priority:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))


class Process:
    """A program on one CPU, ended with this one."""

    all = []

    def __init__(self, command, cpu, log, priority=0, environment=None):
        def prepare():
            # SIGTERM when the parent ends, however that happens
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)
            run_on(cpu, priority)

        self.log = log
        self.began = time.monotonic()
        with open(log, "w") as file:
            self.popen = subprocess.Popen(
                command,
                preexec_fn=prepare,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(environment or {})},
            )
        Process.all.append(self)

    def pids(self):
        return with_children(self.popen.pid)

    def end(self):
        if self in Process.all:
            Process.all.remove(self)
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(5)
            except subprocess.TimeoutExpired:
                for pid in self.pids():
                    os.kill(pid, signal.SIGKILL)
                self.popen.wait()

    @staticmethod
    def end_all():
        for one in list(Process.all):
            one.end()


class StandIn(Process):
    """The stand-in for Patroni: bench/standin.c."""

    def __init__(self, lab, delay_ms=0, away=False):
        self.port = free_port()
        command = [lab.program("standin"), str(self.port), str(delay_ms)] + ["away"] * away
        self.body = lab.body_away if away else lab.body
        log = lab.path(f"standin-{self.port}.log")
        super().__init__(command, lab.load_cpu, log, 2 * lab.priority, {"BODY": self.body})
        wait_for_port(self, self.port)

    def fetches(self):
        url = f"http://127.0.0.1:{self.port}/bench/count"
        with urllib.request.urlopen(url) as answer:
            return int(answer.read())


def wait_for_port(process, port):
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        except OSError:
            if process.popen.poll() is not None:
                break
            time.sleep(0.01)
    with open(process.log) as file:
        raise SystemExit(f"{process.popen.args} does not listen:\n{file.read()}")


class Server:
    """A peer, the floor or patroniglue with one flavour of port."""

    def __init__(self, lab, name, flavour, standin, closes=False):
        self.name, self.flavour, self.port = name, flavour, free_port()
        self.tls = flavour != "plain"
        self.processes = []
        folder = lab.path(f"{name}-{flavour}-{self.port}".replace(" ", "-"))
        os.mkdir(folder)
        commands = PEERS[name if name in PEERS else "patroniglue"](
            lab, self, folder, standin, closes
        )
        for number, (command, port) in enumerate(commands):
            log = f"{folder}/{number}.log"
            environment = {"BODY": lab.body_fixed}
            one = Process(command, lab.server_cpu, log, lab.priority, environment)
            self.processes.append(one)
            if len(commands) > 1:
                wait_for_port(one, port)

    def ready(self):
        wait_for_port(self.processes[-1], self.port)
        return self

    def pids(self):
        return [pid for one in self.processes for pid in one.pids()]

    def resident(self):
        """Resident bytes of all processes."""
        total = 0
        for pid in self.pids():
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += sum(int(l.split()[1]) for l in file if l.startswith("Rss:")) * 1024
        return total

    def end(self):
        for one in reversed(self.processes):
            one.end()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return path


def floor(lab, server, folder, standin, closes, defers=False):
    command = [lab.program("floor"), str(server.port), "close" if closes else "keep"]
    command += ["defer"] * defers
    if server.tls:
        command += lab.certificate(server.flavour)
    return [(command, server.port)]


def floor_defer(*arguments):
    return floor(*arguments, defers=True)


def patroniglue(lab, server, folder, standin, closes, more=""):
    text = f"frontend:\n  host: 127.0.0.1\n  port: {server.port}\n{more}"
    if server.tls:
        certificate, key = lab.certificate(server.flavour)
        text += f"  certfile: {certificate}\n  keyfile: {key}\n"
    if server.flavour == "client":
        text += f"  cafile: {lab.path('ca.pem')}\n"
    text += f"backend:\n  host: 127.0.0.1\n  port: {standin.port}\n"
    path = write(f"{folder}/patroniglue.yml", text)
    binary = lab.binaries[server.name.removesuffix(" defer")]
    return [([binary, "-config", path], server.port)]


def patroniglue_defer(*arguments):
    return patroniglue(*arguments, more="  defer-accept: true\n")


def nginx(lab, server, folder, standin, closes, tuned=False):
    """One worker, an answer cached for 1 s, refreshed by one request while the old one is served.
    Tuned: cache files stay open, one accept for many connections, fewer fields."""
    listen = f"listen 127.0.0.1:{server.port}"
    if server.tls:
        certificate, key = lab.certificate(server.flavour)
        listen += f" ssl; ssl_certificate {certificate}; ssl_certificate_key {key}; "
        listen += "ssl_protocols TLSv1.3; ssl_session_cache shared:tls:10m"
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "fastcgi", "uwsgi", "scgi", "proxy")
    )
    events = "multi_accept on; accept_mutex off;" if tuned else ""
    more = "open_file_cache max=100 inactive=60s; open_file_cache_valid 60s;" if tuned else ""
    more += " tcp_nopush off; sendfile off; server_tokens off; etag off;" if tuned else ""
    text = f"""
user root; daemon off; worker_processes 1; worker_rlimit_nofile 20000;
pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 18000; {events} }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; {temporary} {more}
  proxy_cache_path {folder}/cache keys_zone=checks:1m;
  server {{
    {listen};
    location / {{
      proxy_pass http://127.0.0.1:{standin.port};
      proxy_cache checks; proxy_cache_valid any 1s; proxy_cache_lock on;
      proxy_cache_use_stale updating; proxy_cache_background_update on;
    }}
  }}
}}
"""
    path = write(f"{folder}/nginx.conf", text)
    return [(["nginx", "-p", folder, "-c", path, "-e", f"{folder}/error.log"], server.port)]


def nginx_tuned(*arguments):
    return nginx(*arguments, tuned=True)


def haproxy(lab, server, folder, standin, closes):
    """One thread, its own cache with answers of 1 s."""
    tls = ""
    if server.tls:
        certificate, key = lab.certificate(server.flavour)
        both = write(f"{folder}/both.pem", open(certificate).read() + open(key).read())
        tls = f" ssl crt {both} ssl-min-ver TLSv1.3"
    text = f"""
global
  nbthread 1
  maxconn 9000
  tune.ssl.default-dh-param 2048
defaults
  mode http
  timeout client 600s
  timeout server 10s
  timeout connect 3s
  timeout http-keep-alive 600s
cache checks
  total-max-size 4
  max-age 1
frontend checks
  bind 127.0.0.1:{server.port}{tls}
  http-request cache-use checks
  http-response set-header Cache-Control max-age=1
  http-response cache-store checks
  default_backend patroni
backend patroni
  server one 127.0.0.1:{standin.port}
"""
    path = write(f"{folder}/haproxy.cfg", text)
    return [(["haproxy", "-db", "-q", "-f", path], server.port)]


def varnish(lab, server, folder, standin, closes):
    """One thread pool, an answer of 1 s and a grace of 1 s; hitch in front for TLS."""
    text = f"""
vcl 4.1;
backend patroni {{ .host = "127.0.0.1"; .port = "{standin.port}"; }}
sub vcl_backend_response {{ set beresp.ttl = 1s; set beresp.grace = 1s; }}
"""
    path = write(f"{folder}/checks.vcl", text)
    port = free_port() if server.tls else server.port
    command = ["varnishd", "-j", "none", "-F", "-n", f"{folder}/varnish", "-f", path]
    command += ["-a", f"127.0.0.1:{port}", "-s", "malloc,16m", "-p", "timeout_idle=600"]
    command += ["-p", "thread_pools=1"]
    commands = [(command, port)]
    if server.tls:
        certificate, key = lab.certificate(server.flavour)
        both = write(f"{folder}/both.pem", open(certificate).read() + open(key).read())
        hitch = f'frontend = "[127.0.0.1]:{server.port}"\nbackend = "[127.0.0.1]:{port}"\n'
        hitch += f'pem-file = "{both}"\nworkers = 1\ndaemon = off\nlog-level = 0\n'
        hitch += "tls-protos = TLSv1.3\nuser = root\n"
        path = write(f"{folder}/hitch.conf", hitch)
        commands.append((["hitch", f"--config={path}"], server.port))
    return commands


PEERS = {
    "floor": floor,
    "floor defer": floor_defer,
    "nginx": nginx,
    "nginx tuned": nginx_tuned,
    "HAProxy": haproxy,
    "varnish": varnish,
    "patroniglue": patroniglue,
}
