# SPDX-License-Identifier: Apache-2.0
# app.py N - what Python programs do: objects, dictionaries, text, patterns
import re
import sys


class Node:
    def __init__(self, key):
        self.key, self.left, self.right = key, None, None

    def insert(self, key):
        node = self
        while True:
            side = 'left' if key < node.key else 'right'
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(key))
                return
            node = child

    def walk(self):
        if self.left:
            yield from self.left.walk()
        yield self.key
        if self.right:
            yield from self.right.walk()


def once(seed):
    x, words, tree = seed, {}, Node(500000)
    for _ in range(1500):
        x = (x * 1103515245 + 12345) % 2147483648
        tree.insert(x % 1000000)
        word = 'w%x' % (x % 300)
        words[word] = words.get(word, 0) + 1
    text = ' '.join(f'{k}={v:03d}' for k, v in sorted(words.items()))
    found = re.findall(r'w([0-9a-f]+)=0*(\d+)', text)
    total = sum(int(a, 16) * int(b) for a, b in found)
    keys = list(tree.walk())
    primes = [n for n in range(2, 600)
              if all(n % d for d in range(2, int(n ** 0.5) + 1))]
    return (total + sum(keys[::7]) + 3 ** 200 % 1000003 + len(primes)
            + len(text.upper().split('A')))


print(sum(once(i) for i in range(int(sys.argv[1]))))
