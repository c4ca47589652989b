# SPDX-License-Identifier: Apache-2.0
# client.py PORT [WORDS] - connects until somebody answers, says WORDS, and
# prints the sum of what came
import hashlib, socket, sys, time
for i in range(600):
    h, n = hashlib.sha256(), 0
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) as c:
            if len(sys.argv) > 2:
                c.sendall(sys.argv[2].encode() + b"\n")
            while d := c.recv(1 << 20):
                h.update(d)
                n += len(d)
    except OSError:
        n = 0
    if n:
        print(h.hexdigest())
        sys.exit(0)
    time.sleep(0.3)
sys.exit(1)
