"""A Patroni that is older than 2.1.5 and speaks HTTPS: it ends TLS without close_notify."""

import dataclasses
import os
import socket
import ssl
import subprocess

import clients
from cluster import Cluster

VERSION = "2.1.4"
INSTALL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "install")
TARGETS = ("/primary", "/health", "/patroni", "/liveness")


def old_patroni(setup):
    """A single node with Patroni 2.1.4 and HTTPS: patroniglue's answers are 200."""
    environment = subprocess.run([INSTALL, VERSION], check=True, stdout=subprocess.PIPE,
                                 text=True).stdout.strip()
    settings = setup.cluster.settings
    security = clients.SECURITY
    directory = f"{settings.directory}/old"
    setup.cluster.make_directory(directory)
    cluster = Cluster(dataclasses.replace(
        settings, directory=directory, environment=environment, nodes=1, tls=True,
        dcs=False))
    try:
        cluster.start()
        node = cluster.nodes[0]
        setup.report.check(f"Patroni {VERSION} ends TLS without close_notify",
                           _ends_without_close_notify(node.patroni, cluster.pki.context()))
        for target in TARGETS:
            answer = clients.ask(node.patroniglue, "GET", target)
            setup.report.check(f"{target} of Patroni {VERSION} is 200 through patroniglue",
                               answer.status == 200, f"{answer.status} {answer.body!r}")
    finally:
        clients.SECURITY = security
        cluster.kill()


def _ends_without_close_notify(address, context):
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # which Python sets, against RFC 8446, 6.1
    with socket.create_connection(address, 3) as plain, context.wrap_socket(
            plain, server_hostname=address[0], suppress_ragged_eofs=False) as connection:
        connection.sendall(b"GET /patroni HTTP/1.0\r\n\r\n")
        try:
            while connection.recv(65536):
                pass
            return False
        except ssl.SSLError as problem:
            return problem.reason == "UNEXPECTED_EOF_WHILE_READING"
