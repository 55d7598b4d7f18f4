"""A private CA, a certificate for the servers and two for the clients."""

import os
import shutil
import ssl
import subprocess

import supervisor


class Pki:
    """PEM files in a directory that the servers can read."""

    def __init__(self, directory, hosts):
        self.directory = directory
        os.mkdir(directory, 0o700)
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "ca.key")
        self._openssl("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=test CA", "-days",
                      "2", "-out", "ca.pem")
        self._certificate("server", ",".join(f"IP:{host}" for host in hosts))
        self._certificate("client", "DNS:client")
        # etcd with users refuses requests to its JSON gateway from a certificate with a common name
        self._certificate("nameless", "DNS:client", subject="/O=nameless")
        with open(self.path("client-both.pem"), "w", encoding="ascii") as both:
            for name in ("client.pem", "client.key"):
                both.write(open(self.path(name), encoding="ascii").read())
        for name in os.listdir(directory):
            shutil.chown(self.path(name), supervisor.USER, supervisor.USER)
        shutil.chown(directory, supervisor.USER, supervisor.USER)

    def path(self, name):
        return f"{self.directory}/{name}"

    def context(self, name="client"):
        """The TLS context of a client that sends a certificate and verifies the server's."""
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        context.load_cert_chain(self.path(f"{name}.pem"), self.path(f"{name}.key"))
        return context

    def client_files(self):
        return [self.path(name) for name in ("ca.pem", "client.pem", "client.key")]

    def _certificate(self, name, names, subject=None):
        self._openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        self._openssl("req", "-new", "-key", f"{name}.key", "-subj",
                      subject or f"/CN={name}", "-out", f"{name}.csr")
        with open(self.path(f"{name}.ext"), "w", encoding="ascii") as extension:
            extension.write(f"subjectAltName={names}\n")
        self._openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                      "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out",
                      f"{name}.pem")

    def _openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
