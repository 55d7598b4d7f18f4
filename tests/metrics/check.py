"""Scrapes the daemon in each of its states, and asks a real Prometheus every query of extra/.

Usage: check.py DAEMON FOLDER, with promtool and prometheus in PATH; from the project's folder.
"""

import contextlib
import glob
import json
import re
import signal
import socket
import subprocess
import sys
import time

import daemon
import names
import standins

LIMIT_S = 110
RULES, BOARD = "extra/prometheus-rules.yml", "extra/grafana.json"
DOCUMENTED = ["README.md", *glob.glob("docs/*.md"), "extra/patroniglue.8",
              *glob.glob("extra/prometheus*.yml"), BOARD]
TABLE = "docs/operation.md"
# Until the HA loop was seen to move twice, also next to our own fetches of /config.
LOOP_SEEN_S = 4
# Two scrapes of Prometheus.
SCRAPED_S = 2.5
WINDOW = "2m"
# A selector of series in an expression.
SELECTOR = re.compile(r"\b(?:(?:patroniglue|process)_\w+|up)\b(?:\{[^}]*\})?")
# Lines that are not written before Patroni's first answer.
UNKNOWN = [r"patroniglue_node_info\{", r"patroniglue_node_role\{", "patroniglue_node_timeline ",
           "patroniglue_node_dcs_last_seen", "patroniglue_patroni_last_answer"]
# Alerts that the states of `main` cause, at least as pending.
CAUSED = ["PatroniDoesNotAnswer", "PatroniglueServesStaleAnswers", "PatroniglueDraining",
          "PatroniglueCertificateExpires"]

# A change of these is a restart, or a reload.
CONSTANT = ["process_start_time_seconds",
            "patroniglue_config_last_reload_success_timestamp_seconds"]


class Scrapes:
    """The scrapes of all states."""

    def __init__(self):
        self.texts = []

    def judge(self, state, one, present=(), absent=()):
        """Scrapes a daemon: promtool accepts it, and it has lines that begin or do not so."""
        text = one.scrape()
        result = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                                capture_output=True, check=False)
        said = result.stdout + result.stderr
        assert result.returncode == 0, f"{state}: promtool: {said}\n{text}"
        for start in present:
            assert _has(text, start), f"{state}: no line {start}:\n{text}"
        for start in absent:
            assert not _has(text, start), f"{state}: a line {start}:\n{text}"
        self.texts.append(text)
        print(f"metrics: {state}: {len(text.splitlines())} lines")


def _has(text, start):
    """Whether a line matches from its beginning on."""
    return re.search("^" + start, text, re.MULTILINE) is not None


def main(binary, work):
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT_S)
    scrapes = Scrapes()
    with contextlib.ExitStack() as stack:
        def start(*arguments, **more):
            one = daemon.Daemon(binary, work, *arguments, **more)
            return stack.enter_context(contextlib.closing(one))

        certificate, key = _certificate(work)
        patroni = standins.Patroni("main")
        tls_patroni = standins.Patroni("tls", tls=daemon.server_context(certificate, key))
        frozen, etcd = standins.Patroni("witness"), standins.Etcd("witness")
        # without grace nothing is asked before the first check
        fresh = start("fresh", patroni, extra={"cache": {"grace": 0}})
        scrapes.judge("just started", fresh,
                      present=[r'patroniglue_patroni_state\{state="unknown"\} 1$',
                               r'patroniglue_frontend_info\{scheme="http",client_certificates="none"\} 1$',
                               r'patroniglue_draining 0$'],
                      absent=[*UNKNOWN, "patroniglue_patroni_up ", "patroniglue_tls_",
                              "patroniglue_witness", r"patroniglue_answer_status\{"])
        plain = start("plain", patroni)
        tls = start("tls", tls_patroni, tls=daemon.client_context(certificate), extra={
            "frontend": {"certfile": certificate, "keyfile": key},
            "backend": {"scheme": "https", "cafile": certificate}})
        witness = start("witness", frozen, extra={
            "cache": {"grace": 0},
            "dcs": {"type": "etcd3", "hosts": f"127.0.0.1:{etcd.port}"}})
        prometheus = stack.enter_context(contextlib.closing(
            daemon.Prometheus(work, _absolute(RULES), [plain, tls, witness])))

        never_seen(scrapes, plain)
        for one in (patroni, tls_patroni, frozen):
            one.listen()
        for one in (plain, tls, witness):
            one.begin_checks()
        roles(scrapes, plain, patroni)
        both_sides_with_tls(scrapes, tls)
        stale_by_the_witness(scrapes, witness, frozen)
        time.sleep(SCRAPED_S)
        ask_board(prometheus)
        ask_alerts(prometheus)
    names.compare(scrapes.texts, DOCUMENTED, TABLE)


def never_seen(scrapes, plain):
    assert plain.check("/primary")[0] == 503
    scrapes.judge("Patroni never seen", plain,
                  present=[r'patroniglue_patroni_up 0$',
                           r'patroniglue_patroni_state\{state="gone"\} 1$',
                           r'patroniglue_fetch_failures_total\{reason="refused"\} [1-9]',
                           r'patroniglue_answer_status\{route="/primary"\} 503$',
                           r'patroniglue_requests_total\{[^}]*cache="failed"[^}]*\} [1-9]'],
                  absent=UNKNOWN)


def roles(scrapes, plain, patroni):
    """A primary, then frozen, then a replica, then a primary that is drained."""
    daemon.wait_for("200", lambda: plain.check("/primary")[0] == 200)
    scrapes.judge("primary", plain,
                  present=[r'patroniglue_patroni_up 1$', r'patroniglue_node_info\{',
                           r'patroniglue_node_role\{role="primary"\} 1$',
                           r'patroniglue_node_role\{role="replica"\} 0$',
                           r'patroniglue_answer_status\{route="/primary"\} 200$'])
    time.sleep(LOOP_SEEN_S)
    patroni.mood = "silent"
    daemon.wait_for("stale answer", lambda: _is_stale(plain.check("/primary")))
    scrapes.judge("frozen, stale by grace", plain,
                  present=[r'patroniglue_patroni_state\{state="silent"\} 1$',
                           r'patroniglue_requests_total\{[^}]*cache="stale"[^}]*\} [1-9]',
                           r'patroniglue_lease_sure_until_timestamp_seconds 1\d{9}'])
    time.sleep(SCRAPED_S)  # with clients that wait, and more stale answers
    patroni.mood = "replica"
    daemon.wait_for("200", lambda: plain.check("/replica")[0] == 200)
    scrapes.judge("replica", plain,
                  present=[r'patroniglue_node_role\{role="replica"\} 1$',
                           r'patroniglue_node_role\{role="primary"\} 0$',
                           r'patroniglue_node_role_changes_total 1$',
                           r'patroniglue_lease_sure_until_timestamp_seconds 0$'])
    patroni.mood = "primary"
    daemon.wait_for("200", lambda: plain.check("/primary")[0] == 200)
    plain.drain(True)
    daemon.wait_for("503", lambda: plain.check("/primary")[0] == 503)
    scrapes.judge("draining", plain, present=[r'patroniglue_draining 1$'])
    time.sleep(SCRAPED_S)
    plain.drain(False)
    daemon.wait_for("200", lambda: plain.check("/primary")[0] == 200)


def both_sides_with_tls(scrapes, tls):
    daemon.wait_for("200", lambda: tls.check("/primary")[0] == 200)
    with socket.create_connection(("127.0.0.1", tls.front)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no TLS: a failed handshake
        client.settimeout(daemon.ANSWER_S)
        with contextlib.suppress(OSError):
            client.recv(64)
    handshakes = r'patroniglue_tls_handshakes_total\{[^}]*'
    scrapes.judge("TLS on both sides", tls,
                  present=[handshakes + r'side="client"', handshakes + r'side="patroni"',
                           r'patroniglue_frontend_info\{scheme="https",'
                           r'client_certificates="none"\} 1$',
                           handshakes + r'outcome="full"', handshakes + r'outcome="failed"',
                           r'patroniglue_tls_certificate_not_after_timestamp_seconds\{'
                           r'key="frontend.certfile"\} 1\d{9}'])


def stale_by_the_witness(scrapes, witness, frozen):
    daemon.wait_for("200", lambda: witness.check("/primary")[0] == 200)
    frozen.mood = "silent"
    daemon.wait_for("stale answer", lambda: _is_stale(witness.check("/primary")))
    scrapes.judge("frozen, stale by the witness", witness,
                  present=[r'patroniglue_witness_up 1$',
                           r'patroniglue_witness_reads_total\{outcome="evidence"\} [1-9]',
                           r'patroniglue_witness_reads_total\{outcome="contradiction"\} 0$',
                           r'patroniglue_lease_remaining_seconds [1-9]'])


def _is_stale(check):
    status, cache_status = check
    return status == 200 and "detail=silent" in cache_status


def ask_board(prometheus):
    """Each query of the dashboard has a series, each panel a question as its title."""
    with open(BOARD, encoding="utf-8") as file:
        board = json.load(file)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids)), "two panels with one id"
    variables = board["templating"]["list"]
    assert [one["name"] for one in variables] == ["datasource", "scope", "instance"], variables
    queries = []
    for one in variables[1:]:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", one["definition"]).groups()
        queries.append((one["name"], f"group by ({label}) ({series})"))
    for panel in board["panels"]:
        assert panel["title"].endswith("?"), f"no question: {panel['title']}"
        queries += [(panel["title"], target["expr"]) for target in panel.get("targets", [])]
    for title, query in queries:
        query = re.sub(r"\$__rate_interval\b", WINDOW, query)
        query = re.sub(r"\$(instance|scope)\b", ".+", query)
        assert "$" not in query, f"{title}: an unknown variable: {query}"
        assert prometheus.query(query), f"{title}: no series: {query}"
    print(f"metrics: the dashboard's {len(queries)} queries have series")


def ask_alerts(prometheus):
    """Each alert is evaluated, its series exist, and the states above caused some of them."""
    rules = prometheus.rules()
    for rule in rules:
        assert rule["health"] == "ok", f"{rule['name']}: {rule.get('lastError')}"
        prometheus.query(rule["query"])
        for selector in SELECTOR.findall(rule["query"]):
            assert prometheus.query(f"last_over_time({selector}[{WINDOW}])"), \
                f"{rule['name']}: no series: {selector}"
        for alert in rule["alerts"]:
            for text in alert["annotations"].values():
                assert "<" not in text, f"{rule['name']}: {text}"
    for name in CAUSED:
        was_there = f'count_over_time(ALERTS{{alertname="{name}"}}[{WINDOW}])'
        assert prometheus.query(was_there), f"{name} was neither pending nor firing"
    for name in CONSTANT:
        changed = prometheus.query(f"changes({name}[{WINDOW}]) > 0")
        assert not changed, f"{name} changes without a restart or reload: {changed}"
    with open("extra/prometheus-rules-test.yml", encoding="utf-8") as file:
        cases = re.findall(r"- name: (\w+) (fires|does not fire)", file.read())
    alerts = {rule["name"] for rule in rules}
    missing = {(name, what) for name in alerts for what in ("fires", "does not fire")} - set(cases)
    assert not missing, f"no case of {sorted(missing)}"
    print(f"metrics: {len(rules)} alerts are evaluated, their series exist")


def _certificate(work):
    """A certificate of 127.0.0.1, which is its own CA, and its key."""
    certificate, key = f"{work}/certificate.pem", f"{work}/key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3", "-subj", "/CN=test",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
                   check=True, capture_output=True)
    return certificate, key


def _absolute(path):
    return subprocess.check_output(["realpath", path], text=True).strip()


def _too_long(*_):
    raise AssertionError(f"not done within {LIMIT_S} s")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except AssertionError as failure:
        sys.exit(f"metrics: failed: {failure}")
