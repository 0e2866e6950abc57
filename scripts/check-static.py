#!/usr/bin/env python3
"""Checks that the statically linked programs of a folder run on a machine with nothing else: in a folder that holds
the program, certificate authorities and resolv.conf, without a C library, `soci` resolves the name of a registry at a
name server and talks TLS with it. Name server and registry are here, in a network namespace. Needs root and openssl.

usage: check-static.py FOLDER
"""
import fcntl
import http.server
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

NAME = "registry.corp.example"
ADDRESS = "127.0.0.5"
IN_NAMESPACE = "SOCI_CHECK_STATIC_IN_NAMESPACE"


def fail(reason):
    sys.exit(f"check-static: {reason}")


def set_loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, request)  # SIOCSIFFLAGS


def serve_names(asked):
    """A name server that knows one IPv4 address."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    while True:
        query, peer = server.recvfrom(4096)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
        name = ".".join(labels).lower()
        asked.append(name)
        known = name == NAME
        answer = b""
        if known and kind == 1:
            answer = struct.pack(">HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(ADDRESS)
        flags = 0x8180 if known else 0x8183
        header = query[:2] + struct.pack(">HHHHH", flags, 1, 1 if answer else 0, 0, 0)
        server.sendto(header + question + answer, peer)


class Registry(http.server.BaseHTTPRequestHandler):
    requests = []
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": "sha256:" + "0" * 64,
                "size": 2,
            },
            "layers": [],
        }
    ).encode()

    def do_GET(self):
        Registry.requests.append(self.path)
        found = self.path == "/v2/app/manifests/1"
        body = Registry.manifest if found else b'{"errors":[{"code":"NOT_FOUND"}]}'
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def certificates(folder):
    """An authority and the registry's certificate; the paths of the authority and of certificate and key."""
    run = lambda *command: subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL)
    new = ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    run(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    run(*new, "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "key.pem", "-out", "cert.pem",
        "-subj", "/CN=registry", "-addext", f"subjectAltName=DNS:{NAME}", "-addext", "basicConstraints=CA:FALSE")
    return folder / "ca.pem", folder / "cert.pem", folder / "key.pem"


def soci(root, reference):
    """Has `soci` look at an image from inside; what it printed."""
    command = [shutil.which("chroot") or "/usr/sbin/chroot", str(root), "/soci", "ls", reference]
    environment = {"PATH": "/", "HOME": "/"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.stdout.decode(errors="replace")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    programs = Path(sys.argv[1]).resolve()
    if IN_NAMESPACE not in os.environ:
        os.environ[IN_NAMESPACE] = "1"
        os.execvp("unshare", ["unshare", "--net", sys.executable, __file__, str(programs)])
    for name in ("soci", "soci-snapshotter-grpc"):
        headers = subprocess.run(["readelf", "--program-headers", "--dynamic", str(programs / name)], check=True,
                                 stdout=subprocess.PIPE).stdout.decode()
        if "INTERP" in headers or "NEEDED" in headers:
            fail(f"{name} is not linked statically")
    set_loopback_up()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        authority, certificate, key = certificates(folder)
        asked = []
        threading.Thread(target=serve_names, args=(asked,), daemon=True).start()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = http.server.ThreadingHTTPServer((ADDRESS, 443), Registry)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()

        root = folder / "root"
        (root / "etc/ssl/certs").mkdir(parents=True)
        for name in ("soci", "soci-snapshotter-grpc"):
            shutil.copy(programs / name, root / name)
        (root / "etc/resolv.conf").write_text("search corp.example\nnameserver 127.0.0.1\n")

        # The daemon's program runs as well.
        subprocess.run(["chroot", str(root), "/soci-snapshotter-grpc", "config", "default"], check=True,
                       stdout=subprocess.DEVNULL)

        # Without the authority nothing is asked of the registry: TLS is verified.
        refused = soci(root, f"{NAME}/app:1")
        if Registry.requests or "ertificate" not in refused:
            fail(f"a registry of an unknown authority was not refused: {Registry.requests} {refused}")
        shutil.copy(authority, root / "etc/ssl/certs/ca-certificates.crt")
        told = soci(root, f"{NAME}/app:1")
        if "/v2/app/manifests/1" not in Registry.requests or NAME not in asked:
            fail(f"the registry was not reached; asked for {asked}, requested {Registry.requests}: {told}")

        # A name of /etc/hosts, and no name server.
        Registry.requests.clear()
        asked.clear()
        (root / "etc/hosts").write_text(f"{ADDRESS} {NAME}\n")
        told = soci(root, f"{NAME}/app:1")
        if "/v2/app/manifests/1" not in Registry.requests or asked:
            fail(f"/etc/hosts was not used; asked for {asked}, requested {Registry.requests}: {told}")
    print("check-static: the programs need nothing but certificate authorities and resolv.conf")


main()
