// SPDX-License-Identifier: Apache-2.0
// apps.js - a WebAssembly and a regexp benchmark; its output is values only
'use strict';
const { createHash } = require('crypto');
const hash = (s) => createHash('sha256').update(s).digest('hex').slice(0, 32);

// A module from its functions: [type, locals, body]; type 0 is i32 -> i32,
// 1 is i32 -> f64.
function wasm(functions) {
	const leb = (n) => n < 128 ? [n] : [n & 127 | 128, ...leb(n >>> 7)];
	const vec = (v) => [...leb(v.length), ...v.flat()];
	const section = (id, bytes) => [id, ...leb(bytes.length), ...bytes];
	const bodies = functions.map(([, locals, body]) => {
		const b = [...vec(locals), ...body, 0x0b];
		return [...leb(b.length), ...b];
	});
	const names = functions.map((f, n) => [1, 97 + n, 0, n]);
	return new WebAssembly.Instance(new WebAssembly.Module(new Uint8Array([
		0, 97, 115, 109, 1, 0, 0, 0,
		...section(1, vec([[0x60, 1, 0x7f, 1, 0x7f],
				   [0x60, 1, 0x7f, 1, 0x7c]])),
		...section(3, vec(functions.map(([t]) => [t]))),
		...section(5, [1, 0, 4]),
		...section(7, vec(names)),
		...section(10, vec(bodies)),
	]))).exports;
}

const get = (n) => [0x20, n], set = (n) => [0x21, n], tee = (n) => [0x22, n];
const i32 = (n) => [0x41, n];
const shifted = (op, by) => [...get(1), ...get(1), ...i32(by), op, 0x73,
	...set(1)];
const m = wasm([
	// a: fib
	[0, [], [...get(0), ...i32(2), 0x48, 0x04, 0x7f, ...get(0), 0x05,
		...get(0), ...i32(1), 0x6b, 0x10, 0,
		...get(0), ...i32(2), 0x6b, 0x10, 0, 0x6a, 0x0b]],
	// b: n steps of xorshift, each added to a word of memory
	[0, [[3, 0x7f]], [...i32(77), ...set(1), 0x03, 0x40,
		...shifted(0x74, 13), ...shifted(0x76, 17), ...shifted(0x74, 5),
		...get(1), 0x41, 0xfc, 0xff, 0x0f, 0x71, ...tee(3),
		...get(3), 0x28, 2, 0, ...get(1), 0x6a, 0x36, 2, 0,
		...get(2), ...i32(1), 0x6a, ...tee(2), ...get(0), 0x48,
		0x0d, 0, 0x0b, ...get(1), ...get(3), 0x28, 2, 0, 0x6a]],
	// c: the sum of the square roots up to n
	[1, [[1, 0x7f], [1, 0x7c]], [0x03, 0x40, ...get(2), ...get(1), 0xb7,
		0x9f, 0xa0, ...set(2), ...get(1), ...i32(1), 0x6a, ...tee(1),
		...get(0), 0x48, 0x0d, 0, 0x0b, ...get(2)]],
]);
console.log('wasm', m.a(30), m.b(5000000) >>> 0, m.c(5000000));

let seed = 12345;
function random() {
	seed = Math.imul(seed, 1103515245) + 12345 & 0x7fffffff;
	return seed >> 8;
}
const words = [];
for (let n = 0; n < 120000; n++) {
	let w = '';
	for (let k = 1 + random() % 9; k; k--)
		w += String.fromCharCode(97 + random() % 26);
	words.push(random() % 7 ? w : `${w}@${random() % 99}.${w.length}`);
}
const text = words.join(' ');
for (const r of [/\b[a-m]+\b/g, /(\w)\1/g, /\w+@(\d+)\.(\d)/g,
	/(?<=\s)[aeiou]\w*(?=\s[^aeiou])/g, /(?:ab|cd|ef|gh)+[^x]?z/gi,
	/(a|b|ab)*c/g, /\p{L}{7,}/gu, /^.{100,2000}?q/]) {
	let n = 0, all = '';
	for (const x of text.match(r) || [])
		all += x.slice(0, 9) + n++;
	console.log('regexp', r.source, n, hash(all));
}
console.log('replace', hash(text.replace(/(\w+)@(\d+)/g,
	(_, a, b) => b * 3 + a.toUpperCase())));
console.log('sort', hash(words.slice().sort().join('')));
const o = words.slice(0, 20000).map((w, n) => ({ w, n, f: n / 7 }));
console.log('json', hash(JSON.stringify(JSON.parse(JSON.stringify(o)))));
let big = 1n;
for (let n = 1n; n < 1500n; n++)
	big *= n * n + 1n;
console.log('bigint', hash(big.toString()));
const a = new Float64Array(1 << 18);
for (let k = 0; k < 20; k++)
	for (let n = 0; n < a.length; n++)
		a[n] = Math.sin(a[n] + n * k) * 1.5 + a[n >> 1];
console.log('float', hash(Buffer.from(a.buffer)));
// Code that is thrown away when a type changes.
function add(x, y) { return x + y; }
let s = 0;
for (let n = 0; n < 3000000; n++)
	s = add(s, n & 1023) % 1000003;
console.log('types', s, add('a', 1), add(1.5, 2), add([], {}));
