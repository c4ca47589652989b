# SPDX-License-Identifier: Apache-2.0
# server.py DIR PORTS - the host's side of network tests
#
# Gives the files of DIR by HTTP, says the sum of what is sent to a second port,
# and answers TFTP at a third.  The ports are in the file PORTS.
import hashlib, http.server, os, socket, sys, threading
os.chdir(sys.argv[1])
class H(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass
web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H)
sink = socket.create_server(("127.0.0.1", 0))
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("127.0.0.1", 0))
def sinks():
    while True:
        c, _ = sink.accept()
        h = hashlib.sha256()
        while d := c.recv(1 << 20): h.update(d)
        c.sendall(h.hexdigest().encode() + b"\n")
        c.close()
def echoes():
    while True:
        d, a = echo.recvfrom(65536) # TFTP: a request, then what was had
        if d[1] == 1: echo.sendto(b"\0\3\0\1ping " + d[2:6] + b"\n", a)
threading.Thread(target=sinks, daemon=True).start()
threading.Thread(target=echoes, daemon=True).start()
with open(sys.argv[2] + ".new", "w") as f:
    print(web.server_port, sink.getsockname()[1], echo.getsockname()[1], file=f)
os.rename(sys.argv[2] + ".new", sys.argv[2])
web.serve_forever()
