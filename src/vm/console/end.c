/* SPDX-License-Identifier: Apache-2.0 */
/*
 * end.c - the host's end of a port of characters
 *
 * Descriptors do not block: a write that would makes the loop tell when it
 * would not.  A function of the program may block, so it has a thread and a
 * ring in front of it.  The user is called with "calling" counted and no lock
 * held; end_attach() waits for that.
 */
#include "vm/console/end.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/error.h"
#include "base/thread.h"

enum {
	RING = 65536, /* bytes for a program that does not take them */
	SOFT = 8192,  /* of them, until the guest is asked to wait */
	PIECE = 4096,
};

/* (i) set in open   (e) under lock   (l) only on the loop's thread */
struct end {
	enum end_kind kind; /* (i) */
	struct loop *loop;  /* (i) */
	char *path;	    /* (i) of a socket, ours when listening */
	int other;	    /* (i) the far side of a pty, or -1 */
	pthread_mutex_t lock;
	pthread_cond_t change;
	struct end_user user; /* (e) */
	unsigned calling;     /* (e) the user is being called */
	bool wants_room;      /* (e) */

	struct loop_fd conn, listener; /* fd -1: none; (e) conn.fd */
	bool reading;		       /* (e) input is polled for */
	bool unwatched;		       /* (e) conn is not with the loop */
	bool feeding, again;	       /* (e) see feed() */
	char in[PIECE];		       /* (e) what the user did not take */
	size_t in_len;		       /* (e) */

	/* END_CALL */
	void (*output)(void *opaque, const void *data, size_t len); /* (i) */
	void *opaque;						    /* (i) */
	pthread_t thread;					    /* (i) */
	char *ring;						    /* (i) */
	size_t head, len;					    /* (e) */
	bool busy, cut, quit;					    /* (e) */
};

/* -- calls of the user ---------------------------------------------------- */

/* With the lock held, which is given up for the call. */
static void call_room(struct end *e)
{
	struct end_user u = e->user;

	if (!e->wants_room)
		return;
	e->wants_room = false;
	if (!u.room)
		return;
	e->calling++;
	pthread_mutex_unlock(&e->lock);
	u.room(u.sink);
	pthread_mutex_lock(&e->lock);
	e->calling--;
	pthread_cond_broadcast(&e->change);
}

static void call_connected(struct end *e, bool on)
{
	struct end_user u = e->user;

	if (!u.connected)
		return;
	e->calling++;
	pthread_mutex_unlock(&e->lock);
	u.connected(u.sink, on);
	pthread_mutex_lock(&e->lock);
	e->calling--;
	pthread_cond_broadcast(&e->change);
}

/* Gives the user what waits in e->in; what it does not take stays. */
static void feed_once(struct end *e)
{
	struct end_user u = e->user;
	char copy[PIECE];
	size_t len = e->in_len, done = len;

	memcpy(copy, e->in, len);
	if (u.input) {
		e->calling++;
		pthread_mutex_unlock(&e->lock);
		done = u.input(u.sink, copy, len);
		pthread_mutex_lock(&e->lock);
		e->calling--;
		pthread_cond_broadcast(&e->change);
	}
	/* Less when it was disconnected meanwhile. */
	e->in_len -= MIN(done, e->in_len);
	memmove(e->in, copy + done, e->in_len);
}

/* end_more() may come while the user still says how much it took. */
static void feed(struct end *e)
{
	e->again = e->feeding;
	if (e->feeding)
		return;
	e->feeding = true;
	do {
		e->again = false;
		if (e->in_len)
			feed_once(e);
	} while (e->again && e->in_len);
	e->feeding = false;
}

/* -- descriptors ---------------------------------------------------------- */

static void watch(struct end *e)
{
	uint32_t events = 0;

	if (e->reading)
		events |= EPOLLIN;
	if (e->wants_room)
		events |= EPOLLOUT;
	if (e->conn.fd >= 0 && e->kind != END_FILE && !e->unwatched)
		loop_mod(e->loop, &e->conn, events);
}

/* On the loop's thread. */
static void disconnect(struct end *e)
{
	if (e->conn.fd < 0)
		return;
	if (!e->unwatched)
		loop_del(e->loop, &e->conn);
	close(e->conn.fd);
	e->conn.fd = -1;
	e->in_len = 0;
	call_room(e);
	call_connected(e, false);
}

static void receive(struct end *e)
{
	ssize_t n = read(e->conn.fd, e->in, sizeof(e->in));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		disconnect(e);
		return;
	}
	e->in_len = (size_t)n;
	e->reading = false; /* nobody else fills e->in meanwhile */
	feed(e);
	e->reading = !e->in_len;
	watch(e);
}

static void conn_ready(struct loop_fd *f, uint32_t events)
{
	struct end *e = container_of(f, struct end, conn);

	pthread_mutex_lock(&e->lock);
	if (events & EPOLLIN && e->reading) {
		receive(e);
	} else if (events & (EPOLLHUP | EPOLLERR) && e->in_len) {
		/* What it said last is read when there is room for it. */
		loop_del(e->loop, &e->conn);
		e->unwatched = true;
	} else if (events & (EPOLLHUP | EPOLLERR) && e->kind != END_PTY) {
		disconnect(e);
	}
	if (events & EPOLLOUT && e->conn.fd >= 0) {
		call_room(e);
		watch(e);
	}
	pthread_mutex_unlock(&e->lock);
}

static int take_conn(struct end *e, int fd)
{
	int ret;

	e->conn.fd = fd;
	e->conn.ready = conn_ready;
	e->reading = true;
	e->unwatched = false;
	e->in_len = 0;
	ret = loop_add(e->loop, &e->conn, EPOLLIN);
	if (ret)
		e->conn.fd = -1;
	return ret;
}

static void listener_ready(struct loop_fd *f, uint32_t events)
{
	struct end *e = container_of(f, struct end, listener);
	int fd = accept4(f->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	pthread_mutex_lock(&e->lock);
	/* A second one is told by the end of its connection. */
	if (e->conn.fd >= 0 || take_conn(e, fd))
		close(fd);
	else
		call_connected(e, true);
	pthread_mutex_unlock(&e->lock);
}

/* With the lock held; bytes taken, or what the kind does with the rest. */
static size_t write_fd(struct end *e, const char *p, size_t len)
{
	size_t done = 0;

	while (done < len && e->conn.fd >= 0) {
		ssize_t n = e->kind == END_LISTEN || e->kind == END_CONNECT
				    ? send(e->conn.fd, p + done, len - done,
					   MSG_NOSIGNAL)
				    : write(e->conn.fd, p + done, len - done);

		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && e->kind != END_PTY)
			return done;
		/* Nobody reads a terminal; a full disk; the loop will find
		 * that a peer is gone. */
		return len;
	}
	return len;
}

/* -- the program's function ----------------------------------------------- */

static void *pump(void *arg)
{
	struct end *e = arg;
	char copy[PIECE];

	pthread_mutex_lock(&e->lock);
	for (;;) {
		size_t n = MIN(MIN(e->len, (size_t)PIECE), RING - e->head);

		if (!n && e->quit)
			break;
		if (!n) {
			pthread_cond_wait(&e->change, &e->lock);
			continue;
		}
		memcpy(copy, e->ring + e->head, n);
		e->head = (e->head + n) % RING;
		e->len -= n;
		e->busy = true;
		pthread_mutex_unlock(&e->lock);
		e->output(e->opaque, copy, n);
		pthread_mutex_lock(&e->lock);
		e->busy = false;
		pthread_cond_broadcast(&e->change);
		if (e->len < SOFT / 2)
			call_room(e);
	}
	pthread_mutex_unlock(&e->lock);
	return NULL;
}

static size_t put_ring(struct end *e, const char *p, size_t len, size_t limit)
{
	size_t done = 0;

	while (done < len && e->len < limit) {
		size_t at = (e->head + e->len) % RING;
		size_t n = MIN(MIN(len - done, limit - e->len), RING - at);

		memcpy(e->ring + at, p + done, n);
		e->len += n;
		done += n;
	}
	if (done)
		pthread_cond_broadcast(&e->change);
	return done;
}

bool end_is_read(struct end *e)
{
	int waiting = 0;

	return e->kind != END_PTY || ioctl(e->other, FIONREAD, &waiting) ||
	       !waiting;
}

void end_drain(struct end *e)
{
	if (!e || e->kind != END_CALL)
		return;
	pthread_mutex_lock(&e->lock);
	while ((e->len || e->busy) && !e->cut)
		pthread_cond_wait(&e->change, &e->lock);
	pthread_mutex_unlock(&e->lock);
}

void end_cut(struct end *e)
{
	if (!e)
		return;
	pthread_mutex_lock(&e->lock);
	e->cut = true;
	pthread_cond_broadcast(&e->change);
	pthread_mutex_unlock(&e->lock);
}

/* -- for the device ------------------------------------------------------- */

size_t end_write(struct end *e, const void *data, size_t len)
{
	size_t done = len;

	pthread_mutex_lock(&e->lock);
	if (e->kind == END_CALL)
		done = put_ring(e, data, len, SOFT);
	else if (e->conn.fd >= 0)
		done = write_fd(e, data, len);
	if (done < len && !e->wants_room) {
		e->wants_room = true;
		watch(e);
	}
	pthread_mutex_unlock(&e->lock);
	return done;
}

bool end_force(struct end *e, const void *data, size_t len)
{
	bool more;

	if (e->kind != END_CALL)
		return true;
	pthread_mutex_lock(&e->lock);
	put_ring(e, data, len, RING);
	more = e->len < SOFT;
	e->wants_room |= !more;
	pthread_mutex_unlock(&e->lock);
	return more;
}

void end_more(struct end *e)
{
	pthread_mutex_lock(&e->lock);
	feed(e);
	if (!e->feeding && !e->in_len && !e->reading && e->conn.fd >= 0) {
		e->reading = true;
		if (e->unwatched)
			e->unwatched = loop_add(e->loop, &e->conn, EPOLLIN);
		else
			watch(e);
	}
	pthread_mutex_unlock(&e->lock);
}

bool end_connected(struct end *e)
{
	bool on;

	pthread_mutex_lock(&e->lock);
	on = e->kind == END_NULL || e->kind == END_CALL || e->conn.fd >= 0;
	pthread_mutex_unlock(&e->lock);
	return on;
}

void end_attach(struct end *e, const struct end_user *user)
{
	pthread_mutex_lock(&e->lock);
	e->user = user ? *user : (struct end_user){ 0 };
	while (!user && e->calling)
		pthread_cond_wait(&e->change, &e->lock);
	pthread_mutex_unlock(&e->lock);
}

/* -- open and close ------------------------------------------------------- */

static int open_pty(struct end *e, const struct end_config *cfg,
		    struct husk_error *err)
{
	char name[128], text[160];
	struct termios t;
	int fd;

	/* The other side stays open here too: its users come and go. */
	if (openpty(&fd, &e->other, name, NULL, NULL))
		return error_errno(err, -errno, "a pseudo-terminal");
	/* An echo would type the guest's own output. */
	if (!tcgetattr(e->other, &t)) {
		cfmakeraw(&t);
		tcsetattr(e->other, TCSANOW, &t);
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	fcntl(e->other, F_SETFD, FD_CLOEXEC);
	if (take_conn(e, fd)) {
		close(fd);
		return error_set(err, -ENOMEM, "a pseudo-terminal: no memory");
	}
	snprintf(text, sizeof(text), "a port of the guest is on %s", name);
	if (cfg->log)
		cfg->log(cfg->sink, text);
	return 0;
}

static int open_file(struct end *e, const struct end_config *cfg,
		     struct husk_error *err)
{
	e->conn.fd = open(cfg->path,
			  O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY |
				  O_NONBLOCK,
			  0644);
	if (e->conn.fd < 0)
		return error_errno(err, -errno, "%s", cfg->path);
	return 0;
}

static int socket_at(const char *path, struct sockaddr_un *addr,
		     struct husk_error *err)
{
	int fd;

	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(addr->sun_path))
		return error_set(err, -ENAMETOOLONG,
				 "a socket's path has at most %zu bytes, not: "
				 "%s",
				 sizeof(addr->sun_path) - 1, path);
	memcpy(addr->sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	return fd < 0 ? error_errno(err, -errno, "%s", path) : fd;
}

/* A socket that nobody listens at is left over from a machine before. */
static void remove_stale(const char *path, const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct stat st;

	if (fd >= 0 && !lstat(path, &st) && S_ISSOCK(st.st_mode) &&
	    connect(fd, (const void *)addr, sizeof(*addr)) < 0 &&
	    errno == ECONNREFUSED)
		unlink(path);
	if (fd >= 0)
		close(fd);
}

static int open_listener(struct end *e, const struct end_config *cfg,
			 struct husk_error *err)
{
	struct sockaddr_un addr;
	int fd = socket_at(cfg->path, &addr, err), ret;

	if (fd < 0)
		return fd;
	remove_stale(cfg->path, &addr);
	e->listener.fd = fd;
	e->listener.ready = listener_ready;
	if (bind(fd, (const void *)&addr, sizeof(addr)))
		return error_errno(err, -errno, "%s", cfg->path);
	e->path = strdup(cfg->path);
	if (listen(fd, 1))
		return error_errno(err, -errno, "%s", cfg->path);
	ret = loop_add(e->loop, &e->listener, EPOLLIN);
	return ret ? error_errno(err, ret, "%s", cfg->path) : 0;
}

static int open_peer(struct end *e, const struct end_config *cfg,
		     struct husk_error *err)
{
	struct sockaddr_un addr;
	int fd = socket_at(cfg->path, &addr, err);

	if (fd < 0)
		return fd;
	if (connect(fd, (const void *)&addr, sizeof(addr)) ||
	    take_conn(e, fd)) {
		int ret = -errno;

		close(fd);
		return error_errno(err, ret, "%s", cfg->path);
	}
	return 0;
}

static int open_call(struct end *e, const struct end_config *cfg,
		     struct husk_error *err)
{
	int ret;

	if (!cfg->output) {
		e->kind = END_NULL;
		return 0;
	}
	e->output = cfg->output;
	e->opaque = cfg->opaque;
	e->ring = malloc(RING);
	ret = e->ring ? thread_start(&e->thread, "husk-port", pump, e)
		      : -ENOMEM;
	if (!ret)
		return 0;
	free(e->ring);
	e->ring = NULL;
	return error_errno(err, ret, "a port's thread");
}

struct end *end_open(const struct end_config *cfg, struct husk_error *err)
{
	struct end *e = calloc(1, sizeof(*e));
	int ret = 0;

	if (!e) {
		error_errno(err, -ENOMEM, "a port");
		return NULL;
	}
	e->kind = cfg->kind;
	e->loop = cfg->loop;
	e->conn.fd = e->listener.fd = e->other = -1;
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->change, NULL);
	switch (cfg->kind) {
	case END_NULL: break;
	case END_CALL: ret = open_call(e, cfg, err); break;
	case END_FILE: ret = open_file(e, cfg, err); break;
	case END_PTY: ret = open_pty(e, cfg, err); break;
	case END_LISTEN: ret = open_listener(e, cfg, err); break;
	case END_CONNECT: ret = open_peer(e, cfg, err); break;
	}
	if (!ret)
		return e;
	end_close(e);
	return NULL;
}

void end_close(struct end *e)
{
	if (!e)
		return;
	if (e->ring) {
		pthread_mutex_lock(&e->lock);
		e->quit = true;
		pthread_cond_broadcast(&e->change);
		pthread_mutex_unlock(&e->lock);
		pthread_join(e->thread, NULL);
		free(e->ring);
	}
	if (e->listener.fd >= 0) {
		loop_del(e->loop, &e->listener);
		close(e->listener.fd);
	}
	if (e->path)
		unlink(e->path);
	free(e->path);
	if (e->conn.fd >= 0) {
		loop_del(e->loop, &e->conn); /* a file is not there: fine */
		close(e->conn.fd);
	}
	if (e->other >= 0)
		close(e->other);
	pthread_cond_destroy(&e->change);
	pthread_mutex_destroy(&e->lock);
	free(e);
}
