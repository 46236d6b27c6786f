"""Serves one page over TLS at a port; with `check`, asks itself for it once, at a socket of the file system."""

import http.client
import http.server
import socket
import socketserver
import ssl
import sys
import tempfile
import threading

from lxml import etree

CERTIFICATE, KEY = "/etc/ssl/example/cert.pem", "/etc/ssl/example/key.pem"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = etree.Element("html")
        etree.SubElement(page, "p").text = "Hello from " + self.path
        body = etree.tostring(page)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return self.client_address[0] if self.client_address else "-"  # none at a socket of the file system


def with_tls(listening):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    return listening


def check():
    path = tempfile.mkdtemp() + "/socket"
    listening = with_tls(socketserver.ThreadingUnixStreamServer(path, Page))
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    connection = http.client.HTTPSConnection("localhost")
    plain = socket.socket(socket.AF_UNIX)
    plain.settimeout(20)
    plain.connect(path)
    context = ssl.create_default_context(cafile=CERTIFICATE)
    connection.sock = context.wrap_socket(plain, server_hostname="localhost")
    connection.request("GET", "/lxml")
    page = connection.getresponse().read()
    assert etree.fromstring(page).findtext("p") == "Hello from /lxml", page


if sys.argv[1] == "check":
    check()
else:
    with_tls(http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Page)).serve_forever()
