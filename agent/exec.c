/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exec.c - the guest agent runs a command and carries its streams
 *
 * Nothing here waits but poll(): output is read only while there is room to
 * send it, and the host sends no more input than we have room for.  So a
 * signal or a new window size gets through whatever the command does.
 */
#include "husk-agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { IN, OUT, ERR, STREAMS };
enum { MAX_WORDS = 16384, MAX_GROUPS = 256 };

/* -- users, without a name service: this program is static ----------------- */

struct user {
	uid_t uid;
	gid_t gid;
	char name[64], home[256], shell[256];
	gid_t groups[MAX_GROUPS];
	size_t ngroups;
};

/* The n-th field of a line of /etc/passwd or /etc/group. */
static const char *field(char **line)
{
	char *f = *line ? strsep(line, ":\n") : NULL;

	return f ? f : "";
}

/* By name or number; -ENOENT. */
static int find_user(struct user *u, const char *who)
{
	FILE *f = fopen("/etc/passwd", "re");
	char buf[1024];
	int ret = -ENOENT;

	while (f && ret && fgets(buf, sizeof(buf), f)) {
		char *line = buf;
		const char *name = field(&line), *id, *gid, *home, *shell;

		field(&line);
		id = field(&line);
		gid = field(&line);
		field(&line);
		home = field(&line);
		shell = field(&line);
		if ((strcmp(name, who) != 0 && strcmp(id, who) != 0) || !*gid)
			continue;
		u->uid = (uid_t)strtoul(id, NULL, 10);
		u->gid = (gid_t)strtoul(gid, NULL, 10);
		snprintf(u->name, sizeof(u->name), "%s", name);
		snprintf(u->home, sizeof(u->home), "%s", home);
		snprintf(u->shell, sizeof(u->shell), "%s", shell);
		ret = 0;
	}
	if (f)
		fclose(f);
	return ret;
}

static bool is_member(char *list, const char *name)
{
	for (char *m = strsep(&list, ",\n"); m; m = strsep(&list, ",\n"))
		if (!strcmp(m, name))
			return true;
	return false;
}

static void find_groups(struct user *u)
{
	FILE *f = fopen("/etc/group", "re");
	char buf[4096];

	u->groups[u->ngroups++] = u->gid;
	while (f && u->ngroups < MAX_GROUPS && fgets(buf, sizeof(buf), f)) {
		char *line = buf;
		const char *gid;

		field(&line);
		field(&line);
		gid = field(&line);
		if (line && *gid && is_member(line, u->name))
			u->groups[u->ngroups++] = (gid_t)strtoul(gid, NULL, 10);
	}
	if (f)
		fclose(f);
}

/* -- the request ---------------------------------------------------------- */

struct command {
	struct agent_exec x;
	const char *user, *dir;
	char **argv, **envp; /* ended by NULL */
	struct user u;
	bool other_user;
	char shell0[260]; /* argv[0] of a login shell */
};

/* The next string of a frame, or NULL. */
static char *next_string(char **at, char *end)
{
	char *s = *at;
	size_t len = strnlen(s, (size_t)(end - s));

	if (s + len >= end)
		return NULL;
	*at = s + len + 1;
	return s;
}

/* c points into f, which is then the command's. */
static int parse(struct command *c, struct frame *f)
{
	char *at = (char *)f->data, *end = at + f->head.len;

	if (f->head.len < sizeof(c->x))
		return -EPROTO;
	memcpy(&c->x, at, sizeof(c->x));
	at += sizeof(c->x);
	if (c->x.argc > MAX_WORDS || c->x.envc > MAX_WORDS)
		return -E2BIG;
	c->argv = calloc(c->x.argc + 2, sizeof(char *));
	/* And what we set ourselves. */
	c->envp = calloc(c->x.envc + 8, sizeof(char *));
	if (!c->argv || !c->envp)
		return -ENOMEM;
	c->user = next_string(&at, end);
	c->dir = c->user ? next_string(&at, end) : NULL;
	if (!c->dir)
		return -EPROTO;
	for (uint32_t i = 0; i < c->x.argc; i++) {
		c->argv[i] = next_string(&at, end);
		if (!c->argv[i])
			return -EPROTO;
	}
	for (uint32_t i = 0; i < c->x.envc; i++) {
		c->envp[i] = next_string(&at, end);
		if (!c->envp[i] || !strchr(c->envp[i], '='))
			return -EPROTO;
	}
	return at == end ? 0 : -EPROTO;
}

static bool is_set(char **envp, const char *name)
{
	size_t len = strlen(name);

	for (; *envp; envp++)
		if (!strncmp(*envp, name, len) && (*envp)[len] == '=')
			return true;
	return false;
}

static void set_default(struct command *c, const char *name, const char *value)
{
	char **at = c->envp;

	if (is_set(c->envp, name))
		return;
	while (*at)
		at++;
	if (asprintf(at, "%s=%s", name, value) < 0)
		*at = NULL;
}

/* Whom it runs as, where, and in which environment. */
static int complete(struct command *c)
{
	struct user *u = &c->u;
	char own[16];
	int ret;

	snprintf(own, sizeof(own), "%u", getuid());
	ret = find_user(u, *c->user ? c->user : own);
	if (ret && *c->user)
		return ret;
	if (ret) { /* an initial RAM disk without a list of users */
		u->uid = getuid();
		u->gid = getgid();
		memcpy(u->name, "root", 5);
		memcpy(u->home, "/", 2);
	}
	if (!*u->shell || access(u->shell, X_OK))
		memcpy(u->shell, "/bin/sh", 8);
	c->other_user = u->uid != getuid();
	if (c->other_user)
		find_groups(u);
	if (!*c->dir)
		c->dir = u->home;
	if (!c->x.argc) {
		const char *base = strrchr(u->shell, '/');

		snprintf(c->shell0, sizeof(c->shell0), "-%s",
			 base ? base + 1 : u->shell);
		c->argv[0] = c->shell0;
	}
	set_default(c, "PATH",
		    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:"
		    "/bin");
	set_default(c, "HOME", u->home);
	set_default(c, "USER", u->name);
	set_default(c, "LOGNAME", u->name);
	set_default(c, "SHELL", u->shell);
	if (c->x.flags & AGENT_EXEC_TTY)
		set_default(c, "TERM", "linux");
	return 0;
}

/* -- the child ------------------------------------------------------------ */

static void reset_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* The kernel would kill us last; it need not spare what we start. */
static void reset_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, "0", 1) < 0)
		errno = 0;
	close(fd);
}

/* Writes errno to why when it cannot; the step is its second byte. */
static void __attribute__((noreturn))
child(struct command *c, const int fd[STREAMS], const char *tty, int why)
{
	int step = 'd', bad[2];
	char **argv = c->argv;

	reset_signals();
	reset_oom();
	setsid();
	if (tty) {
		/* The first terminal that a session opens is its own. */
		int t = open(tty, O_RDWR);

		if (t < 0)
			goto err;
		for (int i = 0; i < STREAMS; i++)
			dup2(t, i);
		if (t > 2)
			close(t);
		ioctl(0, TIOCSCTTY, 0);
		if (c->other_user && fchown(0, c->u.uid, (gid_t)-1))
			errno = 0;
	} else {
		for (int i = 0; i < STREAMS; i++)
			dup2(fd[i], i);
	}
	if (c->other_user) {
		step = 'u';
		if (setgroups(c->u.ngroups, c->u.groups) || setgid(c->u.gid) ||
		    setuid(c->u.uid))
			goto err;
		step = 'd';
	}
	if (chdir(c->dir) && (c->dir != c->u.home || chdir("/")))
		goto err;
	step = 'x';
	environ = c->envp;
	if (c->x.argc)
		execvp(argv[0], argv);
	else
		execv(c->u.shell, argv);
err:
	bad[0] = errno;
	bad[1] = step;
	if (write(why, bad, sizeof(bad)) < 0)
		_exit(126);
	_exit(127);
}

/* -- carrying streams ----------------------------------------------------- */

struct run {
	int sock, sigs;
	pid_t pid;
	bool tty, dead, lost;
	int in;	     /* of the command, or -1 */
	int from[2]; /* its output and errors, or -1 */
	int status;
	/* A ring of what the command has not read, and then its end. */
	uint8_t input[AGENT_WINDOW];
	uint32_t at, len, owed; /* owed: credit we have not given back */
	bool input_ends;
	/* A frame under way. */
	struct {
		struct agent_frame head;
		uint8_t data[32768];
	} out;
	size_t out_at, out_len;
	struct frame_reader reader;
};

static void set_size(int fd, uint16_t rows, uint16_t columns)
{
	struct winsize w = { .ws_row = rows, .ws_col = columns };

	ioctl(fd, TIOCSWINSZ, &w);
}

static void close_input(struct run *r)
{
	if (r->in < 0)
		return;
	/* A terminal has no end but the character for it. */
	if (r->tty) {
		if (write(r->in, "\4", 1) < 0)
			errno = 0;
	} else {
		close(r->in);
	}
	r->in = -1;
}

static void got_input(struct run *r, const struct frame *f)
{
	uint32_t n = f->head.len;

	if (!n)
		r->input_ends = true;
	if (r->in < 0)
		return;
	/* More than we said it may: what has no room is lost. */
	if (n > AGENT_WINDOW - r->len)
		n = AGENT_WINDOW - r->len;
	for (uint32_t i = 0; i < n; i++)
		r->input[(r->at + r->len++) % AGENT_WINDOW] = f->data[i];
	if (r->input_ends && !r->len)
		close_input(r);
}

static void got_frame(struct run *r)
{
	const struct frame *f = &r->reader.f;
	uint16_t size[2];
	uint32_t sig;

	switch (f->head.type) {
	case AGENT_STDIN: got_input(r, f); break;
	case AGENT_WINSIZE:
		if (f->head.len != 4 || !r->tty || r->from[0] < 0)
			break;
		memcpy(size, f->data, 4);
		set_size(r->from[0], size[0], size[1]);
		break;
	case AGENT_SIGNAL:
		sig = f->head.len == 4 ? frame_u32(f->data) : 0;
		if (sig && sig < NSIG && !r->dead)
			kill(-r->pid, (int)sig);
		break;
	}
}

static void feed(struct run *r)
{
	uint32_t first = AGENT_WINDOW - r->at;
	ssize_t n;

	if (first > r->len)
		first = r->len;
	n = write(r->in, r->input + r->at, first);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		/* Nobody reads it: what comes is thrown away. */
		n = (ssize_t)r->len;
		if (!r->tty)
			close(r->in);
		r->in = -1;
	}
	r->at = (r->at + (uint32_t)n) % AGENT_WINDOW;
	r->len -= (uint32_t)n;
	r->owed += (uint32_t)n;
	if (r->in >= 0 && r->input_ends && !r->len)
		close_input(r);
}

static void begin_frame(struct run *r, enum agent_type type, size_t len)
{
	r->out.head = (struct agent_frame){ .len = (uint32_t)len,
					    .type = (uint8_t)type };
	r->out_at = 0;
	r->out_len = sizeof(r->out.head) + len;
}

/* false: nothing for now. */
static bool read_output(struct run *r, unsigned i)
{
	ssize_t n = read(r->from[i], r->out.data, sizeof(r->out.data));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) { /* EIO: the terminal has nobody left */
		if (!(r->tty && r->in == r->from[i]))
			close(r->from[i]);
		else
			close(r->from[i]), r->in = -1;
		r->from[i] = -1;
		return false;
	}
	begin_frame(r, i ? AGENT_STDERR : AGENT_STDOUT, (size_t)n);
	return true;
}

static void send_out(struct run *r)
{
	ssize_t n = send(r->sock, (char *)&r->out + r->out_at, r->out_len,
			 MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		r->lost = true;
		return;
	}
	r->out_at += (size_t)n;
	r->out_len -= (size_t)n;
}

static void child_ended(struct run *r)
{
	struct signalfd_siginfo info;

	while (read(r->sigs, &info, sizeof(info)) == sizeof(info))
		;
	if (waitpid(r->pid, &r->status, WNOHANG) == r->pid)
		r->dead = true;
}

/* What there is to say that is no output.  false: nothing. */
static bool next_frame(struct run *r)
{
	uint32_t word[2];

	if (r->owed >= AGENT_WINDOW / 4) {
		memcpy(r->out.data, &r->owed, 4);
		r->owed = 0;
		begin_frame(r, AGENT_CREDIT, 4);
		return true;
	}
	if (!r->dead)
		return false;
	/* All it wrote before it ended is in the pipes already. */
	for (unsigned i = 0; i < 2; i++)
		if (r->from[i] >= 0 && read_output(r, i))
			return true;
	word[0] = WIFEXITED(r->status) ? (uint32_t)WEXITSTATUS(r->status) : 0;
	word[1] = WIFSIGNALED(r->status) ? (uint32_t)WTERMSIG(r->status) : 0;
	frame_send(r->sock, AGENT_EXIT, word, sizeof(word));
	r->lost = true;
	return false;
}

static void carry(struct run *r)
{
	while (!r->lost) {
		struct pollfd p[5] = {
			{ r->sock, POLLIN, 0 },
			{ r->sigs, POLLIN, 0 },
			{ r->len ? r->in : -1, POLLOUT, 0 },
			{ -1, POLLIN, 0 },
			{ -1, POLLIN, 0 },
		};
		int ret = 0;

		if (!r->out_len)
			next_frame(r);
		if (r->lost)
			break;
		if (r->out_len)
			p[0].events |= POLLOUT;
		for (unsigned i = 0; i < 2 && !r->out_len; i++)
			p[3 + i].fd = r->from[i];
		if (poll(p, 5, -1) < 0)
			continue;
		if (p[0].revents & (POLLIN | POLLHUP | POLLERR))
			ret = frame_read(&r->reader, r->sock);
		if (ret < 0)
			return;
		if (ret)
			got_frame(r);
		if (p[0].revents & POLLOUT)
			send_out(r);
		if (p[1].revents)
			child_ended(r);
		if (p[2].revents && r->in >= 0 && r->len)
			feed(r);
		for (unsigned i = 0; i < 2 && !r->out_len; i++)
			if (p[3 + i].revents && r->from[i] >= 0)
				read_output(r, i);
	}
}

/* -- starting ------------------------------------------------------------- */

static int watch_children(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* The master of a new terminal; its name in tty. */
static int open_tty(char *tty, size_t size)
{
	int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (grantpt(fd) || unlockpt(fd) || ptsname_r(fd, tty, size)) {
		close(fd);
		return -EIO;
	}
	return fd;
}

/* theirs[]: for the command, closed by the caller; -errno. */
static int open_streams(struct run *r, const struct command *c,
			int theirs[STREAMS], char *tty, size_t size)
{
	int p[2];

	if (r->tty) {
		r->in = r->from[0] = open_tty(tty, size);
		if (r->in < 0)
			return r->in;
		set_size(r->in, c->x.rows, c->x.columns);
		return 0;
	}
	if (c->x.flags & AGENT_EXEC_NO_STDIN) {
		theirs[IN] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	} else {
		if (pipe2(p, O_CLOEXEC))
			return -errno;
		theirs[IN] = p[0];
		r->in = p[1];
	}
	for (unsigned i = 0; i < 2; i++) {
		if (pipe2(p, O_CLOEXEC))
			return -errno;
		r->from[i] = p[0];
		theirs[OUT + i] = p[1];
	}
	return 0;
}

static int failed(int fd, const struct command *c, const int bad[2])
{
	const char *what = bad[1] == 'd'   ? c->dir
			   : bad[1] == 'u' ? c->u.name
			   : c->x.argc	   ? c->argv[0]
					   : c->u.shell;

	/* Only what is wrong with the command itself goes by its number. */
	return answer_error(fd, bad[1] == 'x' ? bad[0] : EINVAL, "%s%.200s: %s",
			    bad[1] == 'd' ? "folder " : "", what,
			    strerror(bad[0]));
}

/* 0: it runs, and the host knows. */
static int start(struct run *r, struct command *c)
{
	int theirs[STREAMS] = { -1, -1, -1 }, why[2], bad[2];
	char tty[64] = "";
	int ret = open_streams(r, c, theirs, tty, sizeof(tty));

	if (ret || pipe2(why, O_CLOEXEC)) {
		ret = ret ? ret : -errno;
		answer_error(r->sock, -ret, "no streams for the command: %s",
			     strerror(-ret));
		return ret;
	}
	r->pid = fork();
	if (!r->pid)
		child(c, theirs, r->tty ? tty : NULL, why[1]);
	for (unsigned i = 0; i < STREAMS; i++)
		if (theirs[i] >= 0)
			close(theirs[i]);
	close(why[1]);
	if (r->pid < 0) {
		bad[0] = errno;
		bad[1] = 'x';
	}
	ret = r->pid < 0 || read(why[0], bad, sizeof(bad)) == sizeof(bad);
	close(why[0]);
	if (ret) {
		failed(r->sock, c, bad);
		return -1;
	}
	for (unsigned i = 0; i < 2; i++)
		if (r->from[i] >= 0)
			fcntl(r->from[i], F_SETFL, O_NONBLOCK);
	if (r->in >= 0)
		fcntl(r->in, F_SETFL, O_NONBLOCK);
	return answer_ok(r->sock, NULL, 0);
}

void exec_session(int fd, const struct frame *f)
{
	static struct command c;
	static struct frame copy;
	static struct run r;
	int ret;

	memcpy(&copy, f, sizeof(f->head) + f->head.len + 1);
	ret = parse(&c, &copy);
	if (ret) {
		answer_error(fd, -ret, "not a command");
		return;
	}
	if (complete(&c)) {
		answer_error(fd, EINVAL, "there is no user %.60s", c.user);
		return;
	}
	r.sock = fd;
	r.sigs = watch_children();
	r.tty = c.x.flags & AGENT_EXEC_TTY;
	r.in = r.from[0] = r.from[1] = -1;
	if (r.sigs < 0 || start(&r, &c))
		return;
	carry(&r);
	/* The host has gone, as a terminal goes. */
	if (!r.dead)
		kill(-r.pid, SIGHUP);
}
