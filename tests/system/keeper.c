/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keeper.c - runs in a guest that is stopped and moved, and checks that it
 * cannot tell: memory, disk, timers and clocks, streams, files of the host
 *
 *   keeper MIB [DISK [DISK-MIB]] [tcp=PORT] [link=INTERFACE] [vsock=PORT]
 *          [fs=DIR] [rng] [hvc]
 *
 * Prints "beat N MONOTONIC REALTIME" (ms) about five times a second, with what
 * each job has done and, behind a slash, how often it had to begin again, and
 * "BAD why" when something is not as it has to be.  "rest" on standard input
 * lets all jobs but the clocks wait for "run"; "time" is answered by "time NS".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { STREAM_WINDOW = 4, STREAM_CHUNK = 2048 /* words */, OPEN_FILES = 4 };

struct job {
	const char *name;
	void *(*run)(struct job *job);
	const char *arg; /* behind "=" */
	bool active;
	atomic_ulong done, breaks;
};

static _Atomic uint64_t latest;
static atomic_bool resting;

static void bad(const char *what, uint64_t a, uint64_t b)
{
	printf("BAD %s: %llx %llx\n", what, (unsigned long long)a,
	       (unsigned long long)b);
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 29;
	return x * 0xc4ceb9fe1a85ec53ull;
}

static void done(struct job *job)
{
	job->done++;
	while (resting)
		usleep(20000);
}

/* Each word says where it is and in which round it was written. */
static void *memory(struct job *job)
{
	size_t n = strtoul(job->arg, NULL, 10) << 17;
	uint64_t *p = mmap(NULL, n * 8, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	for (size_t i = 0; i < n; i++)
		p[i] = mix(i);
	for (uint64_t r = 0;; r++) {
		for (size_t i = 0; i < n; i++) {
			if (p[i] != mix(i + (r << 40)))
				bad("memory", i, p[i]);
			p[i] = mix(i + ((r + 1) << 40));
		}
		done(job);
	}
}

static uint64_t disk_mib = 8;

static void *disk(struct job *job)
{
	uint64_t n = disk_mib << 4;
	int fd = open(job->arg, O_RDWR | O_DIRECT);
	uint64_t *buf, *last = calloc(n, 8);

	if (fd < 0 || posix_memalign((void **)&buf, 4096, 65536) || !last) {
		bad("no disk", (uint64_t)errno, 0);
		free(last);
		return NULL;
	}
	for (uint64_t turn = 1;; turn++) {
		uint64_t at = mix(turn) % n, other = mix(turn + 77) % n;

		for (unsigned i = 0; i < 8192; i++)
			buf[i] = mix(turn * 8192 + i);
		if (pwrite(fd, buf, 65536, (off_t)(at << 16)) != 65536)
			bad("write", at, (uint64_t)errno);
		last[at] = turn;
		if (turn % 16 == 0 && fdatasync(fd))
			bad("sync", turn, (uint64_t)errno);
		if (!last[other])
			continue;
		if (pread(fd, buf, 65536, (off_t)(other << 16)) != 65536)
			bad("read", other, (uint64_t)errno);
		for (unsigned i = 0; i < 8192; i++)
			if (buf[i] != mix(last[other] * 8192 + i)) {
				bad("disk", other, i);
				break;
			}
		done(job);
	}
}

/* What one CPU has read another one must not read as earlier. */
static void *clocks(void *arg)
{
	uint64_t seen, now;

	for (;;) {
		for (unsigned i = 0; i < 2000; i++) {
			seen = latest;
			now = clock_ns(CLOCK_MONOTONIC);
			if (now < seen)
				bad("clock went back", seen, now);
			while (seen < now && !atomic_compare_exchange_weak(
						     &latest, &seen, now)) {
			}
		}
		usleep(2000);
	}
	return NULL;
}

/* All expirations of a timer are counted: none is lost, none comes early. */
static void *timers(struct job *job)
{
	enum { PERIOD = 5000000 };
	int fd = timerfd_create(CLOCK_MONOTONIC, 0);
	uint64_t start = clock_ns(CLOCK_MONOTONIC) + PERIOD, n, sum = 0;
	struct itimerspec its = { .it_interval.tv_nsec = PERIOD };

	its.it_value.tv_sec = (time_t)(start / 1000000000);
	its.it_value.tv_nsec = (long)(start % 1000000000);
	timerfd_settime(fd, TFD_TIMER_ABSTIME, &its, NULL);
	for (;;) {
		uint64_t now, due;

		if (read(fd, &n, sizeof(n)) != sizeof(n))
			continue;
		sum += n;
		now = clock_ns(CLOCK_MONOTONIC);
		due = start + (sum - 1) * PERIOD;
		if (now < due)
			bad("timer came early", due, now);
		job->done = sum;
	}
	return NULL;
}

/* -- streams that come back ----------------------------------------------- */

static int dial_tcp(const char *port)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
		.sin_addr.s_addr = inet_addr("10.0.2.2"),
	};
	struct timeval limit = { 5, 0 }, none = { 0, 0 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	int many = 100;

	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	/*
	 * A flow that is gone is only noticed by who sends: a probe each second
	 * is answered by a reset.  One that is slow is not gone.
	 */
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &many, sizeof(many));
	if (!connect(fd, (void *)&to, sizeof(to))) {
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof(none));
		return fd;
	}
	close(fd);
	return -1;
}

static int dial_vsock(const char *port)
{
	struct sockaddr_vm to = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = (unsigned)strtoul(port, NULL, 10),
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && !connect(fd, (void *)&to, sizeof(to)))
		return fd;
	close(fd);
	return -1;
}

static bool all(int fd, uint64_t *buf, bool out)
{
	size_t size = STREAM_CHUNK * 8, n = 0;

	while (n < size) {
		ssize_t k =
			out ? send(fd, (char *)buf + n, size - n, MSG_NOSIGNAL)
			    : read(fd, (char *)buf + n, size - n);

		if (k <= 0)
			return false;
		n += (size_t)k;
	}
	return true;
}

/* What is sent comes back the same, some chunks later, until it breaks. */
static void stream(struct job *job, int fd, uint64_t id)
{
	static __thread uint64_t buf[STREAM_CHUNK];

	for (uint64_t out = 0, in = 0;;) {
		for (; out < in + STREAM_WINDOW; out++) {
			for (unsigned i = 0; i < STREAM_CHUNK; i++)
				buf[i] = mix(id + out * STREAM_CHUNK + i);
			if (!all(fd, buf, true))
				return;
		}
		if (!all(fd, buf, false))
			return;
		for (unsigned i = 0; i < STREAM_CHUNK; i++)
			if (buf[i] != mix(id + in * STREAM_CHUNK + i)) {
				bad(job->name, in, i);
				return;
			}
		in++;
		done(job);
	}
}

static void streams(struct job *job, int (*dial)(const char *port))
{
	for (uint64_t id = 1;; id++) {
		int fd = dial(job->arg);

		if (fd >= 0) {
			stream(job, fd, id << 40);
			close(fd);
		}
		job->breaks++;
		usleep(20000);
	}
}

static void *tcp(struct job *job)
{
	streams(job, dial_tcp);
	return NULL;
}

static void *vsock(struct job *job)
{
	streams(job, dial_vsock);
	return NULL;
}

/* -- frames that come back ------------------------------------------------ */

enum { FRAME_TYPE = 0x88b5 /* for experiments */, FRAME_TRIES = 100 };

struct frame {
	struct ethhdr eth;
	uint16_t size; /* of words */
	uint64_t id, word[180];
} __attribute__((packed));

static int open_link(const char *name, uint8_t *mac)
{
	struct timeval limit = { 0, 100000 };
	struct sockaddr_ll at = { .sll_family = AF_PACKET,
				  .sll_protocol = htons(FRAME_TYPE),
				  .sll_ifindex = (int)if_nametoindex(name) };
	struct ifreq r = { 0 };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(FRAME_TYPE));

	snprintf(r.ifr_name, sizeof(r.ifr_name), "%s", name);
	if (fd < 0 || bind(fd, (void *)&at, sizeof(at)) ||
	    ioctl(fd, SIOCGIFHWADDR, &r) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)))
		bad("no interface", (uint64_t)errno, 0);
	memcpy(mac, r.ifr_hwaddr.sa_data, 6);
	return fd;
}

/* false: another one, or an old one. */
static bool is_frame(struct job *job, const struct frame *f, ssize_t len,
		     uint64_t id)
{
	size_t n = 2 + (size_t)(mix(id) % 178);

	if (len < (ssize_t)offsetof(struct frame, word) || f->id != id)
		return false;
	if (f->size != n || len < (ssize_t)offsetof(struct frame, word[n]))
		bad(job->name, (uint64_t)len, n);
	for (size_t i = 0; i < n; i++)
		if (f->word[i] != mix(id + i)) {
			bad(job->name, id, i);
			break;
		}
	return true;
}

/* Some may be lost, as on any cable; none may change. */
static void *frames(struct job *job)
{
	struct frame out = { .eth.h_proto = htons(FRAME_TYPE) }, in;
	int fd = open_link(job->arg, out.eth.h_source);
	uint64_t first;

	/* To ourselves: a clone of ours is at the same hub. */
	memcpy(out.eth.h_dest, out.eth.h_source, 6);
	if (getrandom(&first, 8, 0) != 8)
		bad("no random number", (uint64_t)errno, 0);
	for (uint64_t id = first;; id += 256) {
		unsigned tries = 0;
		ssize_t len;

		out.id = id;
		out.size = (uint16_t)(2 + mix(id) % 178);
		for (unsigned i = 0; i < out.size; i++)
			out.word[i] = mix(id + i);
		do {
			if (tries++ == FRAME_TRIES) {
				job->breaks++;
				tries = 1;
			}
			len = (ssize_t)offsetof(struct frame, word[out.size]);
			if (send(fd, &out, (size_t)len, 0) < 0)
				usleep(100000);
			while ((len = recv(fd, &in, sizeof(in), 0)) >= 0 &&
			       !is_frame(job, &in, len, id))
				;
		} while (len < 0);
		done(job);
	}
	return NULL;
}

/* -- files of the host ---------------------------------------------------- */

struct file {
	char path[128];
	uint64_t nonce;
	int fd;
};

static bool file_make(struct file *f, const char *dir)
{
	static uint64_t buf[8192];

	/* A clone of ours gets other numbers: it has the same directory. */
	if (getrandom(&f->nonce, 8, 0) != 8)
		return false;
	snprintf(f->path, sizeof(f->path), "%s/%016llx", dir,
		 (unsigned long long)f->nonce);
	f->fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	for (unsigned i = 0; i < 8192; i++)
		buf[i] = mix(f->nonce + i);
	return f->fd >= 0 && write(f->fd, buf, sizeof(buf)) == sizeof(buf) &&
	       !fsync(f->fd);
}

static bool file_check(const struct file *f)
{
	static uint64_t buf[8192];

	posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED);
	if (pread(f->fd, buf, sizeof(buf), 0) != sizeof(buf))
		return false;
	for (unsigned i = 0; i < 8192; i++)
		if (buf[i] != mix(f->nonce + i)) {
			bad("fs", i, buf[i]);
			break;
		}
	return true;
}

/* Some stay open for a while, over what happens to the machine. */
static void *files(struct job *job)
{
	struct file f[OPEN_FILES];

	for (unsigned i = 0; i < OPEN_FILES; i++)
		f[i].fd = -1;
	for (unsigned at = 0;; at = (at + 1) % OPEN_FILES) {
		bool ok = true;

		errno = 0;
		if (f[at].fd >= 0) {
			ok = file_check(&f[at]);
			close(f[at].fd);
			unlink(f[at].path);
		}
		if (!file_make(&f[at], job->arg) || !ok) {
			job->breaks++;
			printf("fs: %s\n", strerror(errno));
			usleep(20000);
		}
		done(job);
	}
	return NULL;
}

/* -- small ones ----------------------------------------------------------- */

static void *numbers(struct job *job)
{
	int fd = open("/dev/hwrng", O_RDONLY);
	uint64_t a[8] = { 0 }, b[8];

	for (;;) {
		if (read(fd, b, sizeof(b)) != sizeof(b) ||
		    !memcmp(a, b, sizeof(a)))
			bad("rng", b[0], (uint64_t)errno);
		memcpy(a, b, sizeof(a));
		done(job);
		usleep(1000);
	}
	return NULL;
}

/* The host looks whether a number is missing. */
static void *console(struct job *job)
{
	FILE *f = fopen("/dev/hvc0", "w");

	if (!f) {
		bad("no console", (uint64_t)errno, 0);
		return NULL;
	}
	for (unsigned long n = 0;; n++) {
		fprintf(f, "%lu\n", n);
		fflush(f);
		done(job);
		usleep(1000);
	}
	return NULL;
}

/* -- all ------------------------------------------------------------------ */

static struct job jobs[] = {
	{ .name = "mem", .run = memory },   { .name = "disk", .run = disk },
	{ .name = "timer", .run = timers }, { .name = "tcp", .run = tcp },
	{ .name = "link", .run = frames },  { .name = "vsock", .run = vsock },
	{ .name = "fs", .run = files },	    { .name = "rng", .run = numbers },
	{ .name = "hvc", .run = console },
};

enum { JOBS = sizeof(jobs) / sizeof(jobs[0]), MEM = 0, DISK, TIMER };

static void *job_main(void *arg)
{
	struct job *job = arg;

	return job->run(job);
}

static void *commands(void *arg)
{
	char line[64];

	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "rest", 4))
			resting = true;
		else if (!strncmp(line, "run", 3))
			resting = false;
		else if (!strncmp(line, "time", 4))
			printf("time %llu\n",
			       (unsigned long long)clock_ns(CLOCK_REALTIME));
	}
	return NULL;
}

static void take(const char *word)
{
	for (unsigned i = TIMER + 1; i < JOBS; i++) {
		size_t n = strlen(jobs[i].name);

		if (strncmp(word, jobs[i].name, n) != 0 ||
		    (word[n] && word[n] != '='))
			continue;
		jobs[i].arg = word[n] ? word + n + 1 : "";
		jobs[i].active = true;
		return;
	}
	if (*word == '/') {
		jobs[DISK].arg = word;
		jobs[DISK].active = true;
	} else {
		disk_mib = strtoull(word, NULL, 10);
	}
}

int main(int argc, char **argv)
{
	pthread_t t;

	if (argc < 2)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	jobs[MEM].arg = argv[1];
	jobs[MEM].active = jobs[TIMER].active = true;
	for (int i = 2; i < argc; i++)
		take(argv[i]);
	for (unsigned i = 0; i < JOBS; i++)
		if (jobs[i].active)
			pthread_create(&t, NULL, job_main, &jobs[i]);
	for (unsigned i = 0; i < 2; i++)
		pthread_create(&t, NULL, clocks, NULL);
	pthread_create(&t, NULL, commands, NULL);
	for (unsigned long beat = 0;; beat++) {
		char line[400];
		int n = snprintf(
			line, sizeof(line), "beat %lu %llu %llu", beat,
			(unsigned long long)clock_ns(CLOCK_MONOTONIC) / 1000000,
			(unsigned long long)clock_ns(CLOCK_REALTIME) / 1000000);

		for (unsigned i = 0; i < JOBS; i++)
			if (jobs[i].active)
				n += snprintf(line + n,
					      sizeof(line) - (size_t)n,
					      " %s %lu/%lu", jobs[i].name,
					      jobs[i].done, jobs[i].breaks);
		puts(line);
		usleep(200000);
	}
}
