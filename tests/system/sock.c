/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sock.c - both ends of sockets between a guest and its host, for tests
 *
 * sock ADDRESS serve          answers connections until it is killed
 * sock ADDRESS many N         N connections, one after the other
 * sock ADDRESS hold N         N at once
 * sock ADDRESS up MIB         sends, and compares checksums
 * sock ADDRESS down MIB       receives, and compares
 * sock ADDRESS half           half-closes both ways
 * sock ADDRESS refused        expects that nobody listens
 * sock ADDRESS cut            waits for the end of an open connection
 * sock ADDRESS closed         expects to be sent away without a word
 *
 * ADDRESS is vsock:CID:PORT, unix:PATH, or husk:PATH:PORT (with CONNECT).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK = 65536 };

static void __attribute__((noreturn)) die(const char *what)
{
	printf("sock: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* -- addresses ------------------------------------------------------------ */

struct address {
	union {
		struct sockaddr any;
		struct sockaddr_un un;
		struct sockaddr_vm vm;
	} a;
	socklen_t len;
	char port[16]; /* of husk:, else "" */
};

static void parse_address(struct address *to, char *text)
{
	char *rest = strchr(text, ':'), *port;

	memset(to, 0, sizeof(*to));
	if (!rest)
		die(text);
	*rest++ = 0;
	port = strrchr(rest, ':');
	if (!strcmp(text, "vsock") && port) {
		to->a.vm.svm_family = AF_VSOCK;
		to->a.vm.svm_cid = (unsigned)strtoul(rest, NULL, 10);
		to->a.vm.svm_port = (unsigned)strtoul(port + 1, NULL, 10);
		to->len = sizeof(to->a.vm);
		return;
	}
	if (!strcmp(text, "husk") && port) {
		*port++ = 0;
		snprintf(to->port, sizeof(to->port), "%s", port);
	}
	to->a.un.sun_family = AF_UNIX;
	snprintf(to->a.un.sun_path, sizeof(to->a.un.sun_path), "%s", rest);
	to->len = sizeof(to->a.un);
}

/* -1: refused. */
static int dial(const struct address *to)
{
	int fd = socket(to->a.any.sa_family, SOCK_STREAM, 0);
	char line[40];
	size_t n = 0;

	if (fd < 0)
		die("socket");
	if (connect(fd, &to->a.any, to->len)) {
		close(fd);
		return -1;
	}
	if (!*to->port)
		return fd;
	snprintf(line, sizeof(line), "CONNECT %s\n", to->port);
	if (write(fd, line, strlen(line)) < 0)
		die("CONNECT");
	do {
		if (read(fd, line + n, 1) != 1) {
			close(fd);
			return -1;
		}
	} while (line[n++] != '\n' && n < sizeof(line));
	return fd;
}

static int must_dial(const struct address *to)
{
	int fd = dial(to);

	if (fd < 0)
		die("connect");
	return fd;
}

/* -- bytes ---------------------------------------------------------------- */

/* A stream that nobody gets right by chance, and its sum. */
struct stream {
	uint64_t x, sum;
};

static void fill(struct stream *s, uint64_t *to, size_t words)
{
	for (size_t i = 0; i < words; i++) {
		s->x ^= s->x << 13;
		s->x ^= s->x >> 7;
		s->x ^= s->x << 17;
		to[i] = s->x;
		s->sum = (s->sum ^ s->x) * 0x9e3779b97f4a7c15ull;
	}
}

static void add(struct stream *s, const uint64_t *from, size_t words)
{
	for (size_t i = 0; i < words; i++)
		s->sum = (s->sum ^ from[i]) * 0x9e3779b97f4a7c15ull;
}

static void put(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0)
			die("write");
		p += n;
		len -= (size_t)n;
	}
}

/* How many came before the end. */
static size_t get(int fd, void *data, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = read(fd, (char *)data + done, len - done);

		if (n < 0)
			die("read");
		if (!n)
			break;
		done += (size_t)n;
	}
	return done;
}

/* -- the server ----------------------------------------------------------- */

/*
 * The first byte of a connection: e echo; u bytes until the end are summed
 * up; d and the number of bytes: they are sent, and their sum.
 */
struct peer {
	int fd;
	char what;
	bool ended;
	uint64_t left;
	struct stream s;
	size_t in, at, len;
	uint64_t buf[CHUNK / 8];
};

static void watch(int epoll, int op, int fd, uint32_t events, void *p)
{
	struct epoll_event ev = { events, { .ptr = p } };

	if (epoll_ctl(epoll, op, fd, &ev))
		die("epoll");
}

/* What there is to write after what was written.  false: it is over. */
static bool more_out(struct peer *p)
{
	if (p->what == 'd' && p->left) {
		p->len = p->left < CHUNK ? p->left : CHUNK;
		p->left -= p->len;
		fill(&p->s, p->buf, p->len / 8);
	} else if ((p->what == 'd' && !p->ended) ||
		   (p->what == 'u' && p->ended)) {
		memcpy(p->buf, &p->s.sum, 8);
		p->len = 8;
		p->ended = true;
		p->what = 'x';
	} else {
		return false;
	}
	p->at = 0;
	return true;
}

static bool take_in(struct peer *p)
{
	uint64_t word[2];
	ssize_t n;

	if (!p->what) {
		n = recv(p->fd, word, 16, MSG_PEEK | MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return true;
		if (n <= 0)
			return false;
		p->what = *(char *)word;
		p->s.x = 88172645463325252ull;
		if (p->what != 'e' && n < 16) {
			p->what = 0;
			return true;
		}
		if (recv(p->fd, word, p->what == 'e' ? 1 : 16, MSG_DONTWAIT) <
		    0)
			return false;
		p->left = word[1];
		if (p->what == 'd')
			return more_out(p);
	}
	if (p->what == 'e') {
		n = recv(p->fd, p->buf, CHUNK, MSG_DONTWAIT);
		p->at = 0;
		p->len = n > 0 ? (size_t)n : 0;
	} else {
		n = recv(p->fd, (char *)p->buf + p->in, CHUNK - p->in,
			 MSG_DONTWAIT);
		if (n > 0) {
			size_t all = p->in + (size_t)n;

			add(&p->s, p->buf, all / 8);
			memmove(p->buf, (char *)p->buf + all / 8 * 8, all % 8);
			p->in = all % 8;
		}
	}
	if (n < 0 && errno == EAGAIN)
		return true;
	if (n < 0)
		return false;
	if (n == 0) {
		p->ended = true;
		return p->what == 'u' && more_out(p);
	}
	return true;
}

/* false: close it. */
static bool serve_peer(struct peer *p, uint32_t events)
{
	if (!p->len && events & (EPOLLIN | EPOLLHUP) && p->what != 'x' &&
	    !(p->what == 'd'))
		if (!take_in(p))
			return false;
	while (p->len) {
		ssize_t n = send(p->fd, (char *)p->buf + p->at, p->len,
				 MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0)
			return errno == EAGAIN;
		p->at += (size_t)n;
		p->len -= (size_t)n;
		if (!p->len && p->what != 'e' && !more_out(p))
			return false;
	}
	return true;
}

static void __attribute__((noreturn)) serve(const struct address *at)
{
	int door = socket(at->a.any.sa_family, SOCK_STREAM, 0);
	int epoll = epoll_create1(0);
	struct epoll_event ev[64];

	if (door < 0 || bind(door, &at->a.any, at->len) || listen(door, 4096))
		die("listen");
	fcntl(door, F_SETFL, O_NONBLOCK);
	watch(epoll, EPOLL_CTL_ADD, door, EPOLLIN, NULL);
	puts("serving");
	fflush(stdout);
	for (;;) {
		int n = epoll_wait(epoll, ev, 64, -1);

		for (int i = 0; i < n; i++) {
			struct peer *p = ev[i].data.ptr;
			int fd;

			if (p) {
				if (serve_peer(p, ev[i].events)) {
					watch(epoll, EPOLL_CTL_MOD, p->fd,
					      p->len ? EPOLLOUT : EPOLLIN, p);
					continue;
				}
				close(p->fd);
				free(p);
				continue;
			}
			while ((fd = accept(door, NULL, NULL)) >= 0) {
				p = malloc(sizeof(*p));
				if (!p)
					die("memory");
				memset(p, 0, offsetof(struct peer, buf));
				p->fd = fd;
				watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, p);
			}
		}
	}
}

/* -- the clients ---------------------------------------------------------- */

static void ask(int fd, unsigned i)
{
	char text[16];

	snprintf(text, sizeof(text), "echo %u", i);
	put(fd, "e", 1);
	put(fd, text, sizeof(text));
}

static void answered(int fd, unsigned i)
{
	char want[16] = "", got[16] = "";

	snprintf(want, sizeof(want), "echo %u", i);
	if (get(fd, got, sizeof(got)) != sizeof(got) || strcmp(want, got)) {
		printf("sock: connection %u: wrong answer\n", i);
		exit(1);
	}
}

static int many(const struct address *to, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		int fd = must_dial(to);

		ask(fd, i);
		answered(fd, i);
		close(fd);
	}
	printf("many %u\n", n);
	return 0;
}

static int hold(const struct address *to, unsigned n)
{
	int *fd = calloc(n + 1, sizeof(*fd));

	if (!fd)
		die("memory");
	for (unsigned i = 0; i < n; i++)
		fd[i] = must_dial(to);
	for (unsigned i = 0; i < n; i++)
		ask(fd[i], i);
	for (unsigned i = 0; i < n; i++)
		answered(fd[i], i);
	for (unsigned i = 0; i < n; i++)
		close(fd[i]);
	free(fd);
	printf("held %u\n", n);
	return 0;
}

static int finish(int fd, const struct stream *s, const char *what,
		  unsigned mib)
{
	uint64_t theirs = 0;
	char more;

	if (get(fd, &theirs, 8) != 8 || theirs != s->sum) {
		printf("sock: %s: sum %016llx, not %016llx\n", what,
		       (unsigned long long)theirs, (unsigned long long)s->sum);
		return 1;
	}
	if (get(fd, &more, 1)) {
		printf("sock: %s: more than there should be\n", what);
		return 1;
	}
	printf("%s %u MiB sum %016llx\n", what, mib,
	       (unsigned long long)s->sum);
	return 0;
}

static int up(const struct address *to, unsigned mib)
{
	struct stream s = { 88172645463325252ull, 0 };
	uint64_t head[2] = { 'u', 0 };
	static uint64_t buf[CHUNK / 8];
	int fd = must_dial(to);

	put(fd, head, 16);
	for (unsigned i = 0; i < mib * 16; i++) {
		fill(&s, buf, CHUNK / 8);
		put(fd, buf, CHUNK);
	}
	shutdown(fd, SHUT_WR);
	return finish(fd, &s, "up", mib);
}

static int down(const struct address *to, unsigned mib)
{
	uint64_t head[2] = { 'd', (uint64_t)mib << 20 };
	static uint64_t buf[CHUNK / 8];
	int fd = must_dial(to);
	struct stream s = { 0 };

	put(fd, head, 16);
	for (unsigned i = 0; i < mib * 16; i++) {
		if (get(fd, buf, CHUNK) != CHUNK) {
			puts("sock: down: it ends too early");
			return 1;
		}
		add(&s, buf, CHUNK / 8);
	}
	return finish(fd, &s, "down", mib);
}

/* Who has said all still hears the answer. */
static int half(const struct address *to)
{
	uint64_t head[2] = { 'u', 0 };
	struct stream s = { 0 };
	int fd = must_dial(to);
	char c;

	put(fd, head, 16);
	shutdown(fd, SHUT_WR);
	if (finish(fd, &s, "half", 0))
		return 1;
	close(fd);
	/* And who will hear no more stops the other. */
	fd = must_dial(to);
	head[0] = 'd', head[1] = 1ull << 40;
	put(fd, head, 16);
	if (read(fd, &c, 1) != 1)
		die("read");
	close(fd);
	return 0;
}

static int refused(const struct address *to)
{
	int fd = dial(to);

	if (fd >= 0) {
		puts("sock: somebody listens");
		return 1;
	}
	printf("refused: %s\n", strerror(errno));
	return 0;
}

static int cut(const struct address *to)
{
	int fd = must_dial(to);
	ssize_t n;
	char c;

	ask(fd, 1);
	answered(fd, 1);
	puts("open");
	fflush(stdout);
	put(fd, "k", 1);
	do
		n = read(fd, &c, 1);
	while (n > 0);
	printf("cut %s\n", n < 0 ? strerror(errno) : "end");
	return 0;
}

static int closed(const struct address *to)
{
	int fd = dial(to);
	struct pollfd p = { fd, POLLIN, 0 };
	char c;

	if (fd >= 0 && (poll(&p, 1, 5000) != 1 || read(fd, &c, 1) > 0)) {
		puts("sock: it is taken");
		return 1;
	}
	puts(fd < 0 ? "closed: refused" : "closed");
	return 0;
}

int main(int argc, char **argv)
{
	unsigned n = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 0;
	struct rlimit lim;
	struct address a;

	if (argc < 3) {
		puts("usage: sock ADDRESS WHAT [N]");
		return 2;
	}
	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_NOFILE, &lim);
	/* Root in a guest may have more. */
	lim.rlim_cur = lim.rlim_max = 20000;
	setrlimit(RLIMIT_NOFILE, &lim);
	signal(SIGPIPE, SIG_IGN);
	parse_address(&a, argv[1]);
	if (!strcmp(argv[2], "serve"))
		serve(&a);
	if (!strcmp(argv[2], "many"))
		return many(&a, n);
	if (!strcmp(argv[2], "hold"))
		return hold(&a, n);
	if (!strcmp(argv[2], "up"))
		return up(&a, n);
	if (!strcmp(argv[2], "down"))
		return down(&a, n);
	if (!strcmp(argv[2], "half"))
		return half(&a);
	if (!strcmp(argv[2], "refused"))
		return refused(&a);
	if (!strcmp(argv[2], "cut"))
		return cut(&a);
	if (!strcmp(argv[2], "closed"))
		return closed(&a);
	printf("sock: %s: unknown\n", argv[2]);
	return 2;
}
