"""Serves one page over TLS; with `check`, asks itself for it once."""

import http.server
import ssl
import sys
import threading
import urllib.request

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


def server(port):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", port), Page)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    return listening


def check():
    listening = server(0)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    context = ssl.create_default_context(cafile=CERTIFICATE)
    url = f"https://127.0.0.1:{listening.server_port}/lxml"
    page = urllib.request.urlopen(url, context=context, timeout=20).read()
    assert etree.fromstring(page).findtext("p") == "Hello from /lxml", page


if sys.argv[1] == "check":
    check()
else:
    server(int(sys.argv[1])).serve_forever()
