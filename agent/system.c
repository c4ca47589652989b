/* SPDX-License-Identifier: Apache-2.0 */
/*
 * system.c - what the guest agent does to the guest as a whole
 */
#include "husk-agent.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <arpa/inet.h>
#include <linux/fs.h>
#include <mntent.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* -- info ----------------------------------------------------------------- */

/* The first line of a file, or "". */
static void read_line(const char *path, char *buf, size_t size)
{
	FILE *f = fopen(path, "re");

	*buf = 0;
	if (!f)
		return;
	if (!fgets(buf, (int)size, f))
		*buf = 0;
	buf[strcspn(buf, "\n")] = 0;
	fclose(f);
}

static void os_name(char *buf, size_t size)
{
	FILE *f = fopen("/etc/os-release", "re");
	char line[256];

	*buf = 0;
	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "PRETTY_NAME=", 12))
			continue;
		snprintf(buf, size, "%.*s",
			 (int)strcspn(line + 12 + (line[12] == '"'), "\"\n"),
			 line + 12 + (line[12] == '"'));
	}
	if (f)
		fclose(f);
}

static void print_addresses(FILE *to)
{
	struct ifaddrs *all, *a;
	char text[INET6_ADDRSTRLEN];

	if (getifaddrs(&all))
		return;
	for (a = all; a; a = a->ifa_next) {
		const void *at;

		if (!a->ifa_addr || a->ifa_flags & IFF_LOOPBACK)
			continue;
		if (a->ifa_addr->sa_family == AF_INET)
			at = &((struct sockaddr_in *)(void *)a->ifa_addr)
				      ->sin_addr;
		else if (a->ifa_addr->sa_family == AF_INET6)
			at = &((struct sockaddr_in6 *)(void *)a->ifa_addr)
				      ->sin6_addr;
		else
			continue;
		if (inet_ntop(a->ifa_addr->sa_family, at, text, sizeof(text)))
			fprintf(to, "address=%s %s\n", a->ifa_name, text);
	}
	freeifaddrs(all);
}

int do_info(int fd)
{
	char line[256], *text = NULL;
	struct utsname u;
	size_t len = 0;
	FILE *to = open_memstream(&text, &len);
	int ret;

	if (!to)
		return answer_error(fd, ENOMEM, "out of memory");
	fprintf(to, "agent=1\n");
	if (!uname(&u))
		fprintf(to, "hostname=%s\nkernel=%s %s\n", u.nodename,
			u.sysname, u.release);
	os_name(line, sizeof(line));
	fprintf(to, "os=%s\n", line);
	read_line("/proc/uptime", line, sizeof(line));
	line[strcspn(line, " ")] = 0;
	fprintf(to, "uptime=%s\n", line);
	read_line("/proc/sys/kernel/random/boot_id", line, sizeof(line));
	fprintf(to, "boot_id=%s\n", line);
	print_addresses(to);
	fclose(to);
	ret = answer_ok(fd, text, len < AGENT_PAYLOAD ? len : AGENT_PAYLOAD);
	free(text);
	return ret;
}

/* -- time ----------------------------------------------------------------- */

#define SECOND 1000000000ll

int do_time(int fd, const struct frame *f)
{
	struct timespec ours, set;
	struct agent_time t;
	struct timeval slew;
	int64_t off;
	int ret;

	clock_gettime(CLOCK_REALTIME, &ours);
	if (f->head.len != sizeof(t))
		return answer_error(fd, EINVAL, "not a time");
	memcpy(&t, f->data, sizeof(t));
	if (t.seconds < 0 || t.seconds > INT32_MAX * 64ll || t.ns >= SECOND)
		return answer_error(fd, EINVAL, "not a time");
	off = (ours.tv_sec - t.seconds) * SECOND + ours.tv_nsec - (int64_t)t.ns;
	if (t.step || off >= SECOND || off <= -SECOND) {
		set.tv_sec = t.seconds;
		set.tv_nsec = t.ns;
		ret = clock_settime(CLOCK_REALTIME, &set);
	} else {
		/* Programs that measure time must not see it jump. */
		slew.tv_sec = -off / SECOND;
		slew.tv_usec = -off % SECOND / 1000;
		ret = adjtime(&slew, NULL);
	}
	if (ret)
		return answer_error(fd, errno, "the clock: %s",
				    strerror(errno));
	return answer_ok(fd, &off, sizeof(off));
}

/* -- the name ------------------------------------------------------------- */

static bool is_hostname(const char *s)
{
	size_t len = strlen(s);

	if (!len || len > 64 || *s == '-' || *s == '.')
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && *s != '-' && *s != '.')
			return false;
	return true;
}

/* In place of the old file, so that a power cut leaves one of them. */
static int replace_file(const char *path, const char *text, size_t len)
{
	char temp[64];
	int fd, ret = 0;

	snprintf(temp, sizeof(temp), "%s.husk", path);
	fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
		  0644);
	if (fd < 0)
		return -errno;
	if (write(fd, text, len) != (ssize_t)len || fsync(fd))
		ret = -EIO;
	close(fd);
	if (!ret && rename(temp, path))
		ret = -errno;
	if (ret)
		unlink(temp);
	return ret;
}

/* sudo and others look up the host's own name: Debian has a line for it. */
static void fix_hosts(const char *name)
{
	FILE *f = fopen("/etc/hosts", "re");
	char line[512], *text = NULL;
	bool found = false;
	size_t len = 0;
	FILE *to = f ? open_memstream(&text, &len) : NULL;

	while (to && fgets(line, sizeof(line), f)) {
		if (!strncmp(line, "127.0.1.1", 9) &&
		    isspace((unsigned char)line[9])) {
			fprintf(to, "127.0.1.1\t%s\n", name);
			found = true;
		} else {
			fputs(line, to);
		}
	}
	if (f)
		fclose(f);
	if (!to)
		return;
	fclose(to);
	if (found)
		replace_file("/etc/hosts", text, len);
	free(text);
}

int do_hostname(int fd, const struct frame *f)
{
	const char *name = (const char *)f->data;
	char line[80];
	int ret;

	if (strlen(name) != f->head.len || !is_hostname(name))
		return answer_error(fd, EINVAL, "not a host name: %.64s", name);
	if (sethostname(name, strlen(name)))
		return answer_error(fd, errno, "host name: %s",
				    strerror(errno));
	if (!access("/etc", F_OK)) {
		snprintf(line, sizeof(line), "%s\n", name);
		ret = replace_file("/etc/hostname", line, strlen(line));
		if (ret && ret != -EROFS)
			return answer_error(fd, -ret, "/etc/hostname: %s",
					    strerror(-ret));
		fix_hosts(name);
	}
	return answer_ok(fd, NULL, 0);
}

/* ifr_name: of the interface with this address.  0 or -ENODEV. */
static int find_interface(int s, const uint8_t *mac, struct ifreq *r)
{
	struct if_nameindex *all = if_nameindex();
	int ret = -ENODEV;

	for (struct if_nameindex *i = all; i && i->if_index && ret; i++) {
		memset(r, 0, sizeof(*r));
		snprintf(r->ifr_name, sizeof(r->ifr_name), "%s", i->if_name);
		if (!ioctl(s, SIOCGIFHWADDR, r) &&
		    r->ifr_hwaddr.sa_family == ARPHRD_ETHER &&
		    !memcmp(r->ifr_hwaddr.sa_data, mac, 6))
			ret = 0;
	}
	if (all)
		if_freenameindex(all);
	return ret;
}

int do_mac(int fd, const struct frame *f)
{
	struct agent_mac mac;
	struct ifreq r;
	int ret, s;

	if (f->head.len != sizeof(mac))
		return answer_error(fd, EINVAL, "two MAC addresses are needed");
	memcpy(&mac, f->data, sizeof(mac));
	s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s < 0)
		return answer_error(fd, errno, "network: %s", strerror(errno));
	ret = find_interface(s, mac.from, &r);
	if (!ret) {
		memcpy(r.ifr_hwaddr.sa_data, mac.to, 6);
		ret = ioctl(s, SIOCSIFHWADDR, &r) ? -errno : 0;
	}
	close(s);
	return ret ? answer_error(fd, -ret, "MAC address: %s", strerror(-ret))
		   : answer_ok(fd, NULL, 0);
}

/* -- file systems --------------------------------------------------------- */

enum { MAX_MOUNTS = 256 };

struct mounts {
	struct {
		char dir[256];
		dev_t dev;
	} at[MAX_MOUNTS];
	unsigned n;
};

/* Every writable file system on a disk, once, in the order of mounting. */
static struct mounts *list_mounts(void)
{
	static struct mounts m;
	FILE *f = setmntent("/proc/self/mounts", "re");
	struct mntent *e;

	m.n = 0;
	while (f && m.n < MAX_MOUNTS && (e = getmntent(f))) {
		struct stat st;
		unsigned i = 0;

		if (strncmp(e->mnt_fsname, "/dev/", 5) || hasmntopt(e, "ro") ||
		    strlen(e->mnt_dir) >= sizeof(m.at[0].dir) ||
		    stat(e->mnt_dir, &st) || !S_ISDIR(st.st_mode))
			continue;
		while (i < m.n && m.at[i].dev != st.st_dev)
			i++;
		if (i < m.n)
			continue;
		snprintf(m.at[m.n].dir, sizeof(m.at[0].dir), "%s", e->mnt_dir);
		m.at[m.n++].dev = st.st_dev;
	}
	if (f)
		endmntent(f);
	return &m;
}

static int mount_ioctl(const char *dir, unsigned long what, void *arg)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), ret;

	if (fd < 0)
		return -errno;
	ret = ioctl(fd, what, arg) ? -errno : 0;
	close(fd);
	return ret;
}

/* The last mounted first: it may be a file on another one. */
unsigned freeze_all(bool on)
{
	/* Reading the list could wait for what is frozen. */
	static struct mounts *m;
	unsigned done = 0;

	if (on || !m)
		m = list_mounts();
	for (unsigned i = 0; i < m->n; i++) {
		const char *dir = m->at[on ? m->n - 1 - i : i].dir;

		if (!mount_ioctl(dir, on ? FIFREEZE : FITHAW, NULL))
			done++;
	}
	return done;
}

/* What was deleted a moment ago is free only when the journal says so. */
static int trim(const char *dir, uint64_t *trimmed)
{
	struct fstrim_range range = { .len = UINT64_MAX };
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), ret;

	if (fd < 0)
		return -errno;
	ret = syncfs(fd) || ioctl(fd, FITRIM, &range) ? -errno : 0;
	if (!ret)
		*trimmed = range.len;
	close(fd);
	return ret;
}

int do_fstrim(int fd)
{
	const struct mounts *m = list_mounts();
	uint64_t total = 0;
	int last = 0;

	for (unsigned i = 0; i < m->n; i++) {
		uint64_t trimmed = 0;
		int ret = trim(m->at[i].dir, &trimmed);

		total += trimmed;
		if (ret && ret != -EOPNOTSUPP && ret != -ENOTTY)
			last = ret;
	}
	if (last && !total)
		return answer_error(fd, -last, "fstrim: %s", strerror(-last));
	return answer_ok(fd, &total, sizeof(total));
}

/* -- the end -------------------------------------------------------------- */

static void run(const char *a, const char *b, const char *c)
{
	pid_t pid = fork();

	if (!pid) {
		setsid();
		execlp(a, a, b, c, NULL);
		_exit(127);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
}

static unsigned others(void)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	unsigned n = 0;

	while (d && (e = readdir(d))) {
		char path[300], line[64];
		pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);

		if (pid <= 1 || pid == getpid())
			continue;
		/* Threads of the kernel have no command line. */
		snprintf(path, sizeof(path), "/proc/%s/cmdline", e->d_name);
		read_line(path, line, sizeof(line));
		n += *line != 0;
	}
	if (d)
		closedir(d);
	return n;
}

/* Without an init that could: ask all to end, then end them. */
static void end_by_hand(int how)
{
	static const int words[] = { RB_POWER_OFF, RB_AUTOBOOT,
				     RB_HALT_SYSTEM };
	struct mounts *m;

	setsid();
	signal(SIGTERM, SIG_IGN);
	kill(-1, SIGTERM);
	for (unsigned i = 0; i < 50 && others(); i++)
		usleep(100000);
	kill(-1, SIGKILL);
	sync();
	m = list_mounts();
	for (unsigned i = m->n; i--;)
		mount(NULL, m->at[i].dir, NULL, MS_REMOUNT | MS_RDONLY, NULL);
	sync();
	reboot(words[how]);
}

int do_shutdown(int fd, const struct frame *f)
{
	static const char *const verbs[] = { "poweroff", "reboot", "halt" };
	static const char *const flags[] = { "--poweroff", "--reboot",
					     "--halt" };
	uint32_t how = f->head.len == 4 ? frame_u32(f->data) : 3;
	int ret;

	if (how > AGENT_HALT)
		return answer_error(fd, EINVAL, "no such way to shut down");
	if (geteuid())
		return answer_error(fd, EPERM, "the agent is not root");
	ret = answer_ok(fd, NULL, 0);
	if (!access("/run/systemd/system", F_OK))
		run("systemctl", "--no-block", verbs[how]);
	else if (!access("/run/openrc", F_OK))
		run("openrc-shutdown", flags[how], "now");
	else
		end_by_hand((int)how);
	return ret;
}
