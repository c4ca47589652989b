/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vm.h - a whole PC: a configuration, a machine and what became of it
 *
 * libhusk-vm puts memory, vCPUs (husk/hv.h) and devices together and loads a
 * kernel into them.  A configuration is plain data and may be used for any
 * number of machines, one after the other or at the same time.
 *
 * Errors: functions return 0 or a negative errno value unless they say
 * otherwise, and a sentence in struct husk_error where a person can act on
 * it.  Nothing here prints, exits or keeps process-wide state.
 */
#ifndef HUSK_VM_H
#define HUSK_VM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "husk/error.h"
#include "husk/hv.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vm;
struct vm_config;

enum { VM_MAX_CPUS = 64 };

/* -- configuration -------------------------------------------------------- */

/* One CPU, 256 MiB, engine "auto", nothing else.  NULL: no memory. */
struct vm_config *vm_config_create(void);
void vm_config_destroy(struct vm_config *cfg); /* NULL is fine */

/* Strings are copied; NULL takes the value away.  0 or -ENOMEM. */
int vm_config_set_kernel(struct vm_config *cfg, const char *path);
int vm_config_set_initrd(struct vm_config *cfg, const char *path);
int vm_config_set_cmdline(struct vm_config *cfg, const char *cmdline);
int vm_config_set_engine(struct vm_config *cfg, const char *engine);
void vm_config_set_cpus(struct vm_config *cfg, unsigned cpus);
void vm_config_set_memory(struct vm_config *cfg, uint64_t bytes);

const char *vm_config_kernel(const struct vm_config *cfg);
const char *vm_config_initrd(const struct vm_config *cfg);
const char *vm_config_cmdline(const struct vm_config *cfg);
const char *vm_config_engine(const struct vm_config *cfg);
unsigned vm_config_cpus(const struct vm_config *cfg);
uint64_t vm_config_memory(const struct vm_config *cfg);

/* A raw image file or a block device, as the next virtio disk. */
int vm_config_add_disk(struct vm_config *cfg, const char *path, bool readonly);
/* The disks so far: their number, path and format (NULL: by the path). */
unsigned vm_config_disk_count(const struct vm_config *cfg);
const char *vm_config_disk_path(const struct vm_config *cfg, unsigned i);
const char *vm_config_disk_format(const struct vm_config *cfg, unsigned i);
bool vm_config_disk_readonly(const struct vm_config *cfg, unsigned i);
/* Another image in its place.  0, -ENOENT or -ENOMEM. */
int vm_config_set_disk_path(struct vm_config *cfg, unsigned i, const char *path,
			    const char *format);
/*
 * As "FILE,key=value,...".  Keys: readonly, format=raw|qcow2 (otherwise the
 * suffix .qcow2 says it, all else is raw), base=FILE in place of the base that
 * a qcow2 image names, snapshot=NAME (readonly), serial=TEXT,
 * cache=cached|direct, sync=full|data|none, aio=auto|uring|threads,
 * sector=512|4096, queues=1 to 8, on-enospc=error|pause (what happens when the
 * host has no space for what the guest writes).  For tests fault=WORDS.
 */
int vm_config_add_disk_spec(struct vm_config *cfg, const char *spec,
			    struct husk_error *err);
/*
 * A further device: "KIND" or "KIND,key=value,...".  Kinds: debug-exit,
 * pc-testdev, virtio-rng, virtio-blk,path=PATH[,deviceId=SERIAL] and the keys
 * of a disk,
 * virtio-fs,sharedDir=DIR,mountTag=TAG and the keys of a share,
 * virtio-net,nat|fd=N|unixSocketPath=PATH|type=unixstream,path=PATH[,mac=MAC],
 * virtio-vsock[,port=N,socketURL=PATH[,listen|connect]]: connections of the
 * guest to port N reach who listens at PATH, or with connect, who connects to
 * PATH reaches port N of the guest; there is one such device with many ports.
 * virtio-serial,stdio|pty|null|logFilePath=PATH|socket=PATH[,listen]: a
 * further console of the guest (hvc1...), or with name=NAME a port in
 * /dev/virtio-ports; the first one without a name is hvc0, and stdio leaves
 * that to VM_CONSOLE;
 * virtio-balloon, which is there anyway, with off, target=SIZE,
 * reporting=on|off, hinting=on|off and deflate-on-oom=on|off.
 */
int vm_config_add_device(struct vm_config *cfg, const char *spec,
			 struct husk_error *err);

/*
 * The next network device, "KIND[,OPTION...]".  Kinds:
 *   shared      a NAT of its own without privilege (husk/vmnet.h)
 *   tap=NAME    an interface of the host; tap=fd:N one that is open
 *   unix=PATH   frames with QEMU's lengths to who listens at PATH (passt,
 *               gvproxy, QEMU); with option listen, others come to us
 *   unixgram=PATH  packets to who listens at PATH, a frame each; with option
 *               vfkit, begun as vfkit does (gvproxy -listen-vfkit)
 *   fd=N        a socket that is open, of packets or a stream as unix=
 *   null        nothing: what is sent is lost
 *   none        no device
 * Options: mac=MAC (else random, of this configuration), mtu=N (of shared 9000,
 * of others what the guest likes), queues=N (up to 4); of shared also
 * forward=SPEC, isolated and noloopback.
 */
int vm_config_add_net(struct vm_config *cfg, const char *spec,
		      struct husk_error *err);
/* A port of the host to one of the guest, on the first shared network. */
int vm_config_add_forward(struct vm_config *cfg, const char *spec,
			  struct husk_error *err);
/*
 * For a machine that becomes a second one beside the first: every network
 * device gets another random MAC address, and no port of the host leads to it.
 * How many forwards that were, or -EIO.
 */
int vm_config_make_distinct(struct vm_config *cfg);
/* The address of the network device of this number: 0 or -ENOENT. */
int vm_config_net_mac(const struct vm_config *cfg, unsigned number,
		      uint8_t mac[6]);

/*
 * A directory of the host, which the guest mounts by its tag (mount -t
 * virtiofs TAG /mnt): "DIR[:TAG][,key=value,...]".  The tag has at most 36
 * bytes; without one the first is "share", then "share1" and so on.  Keys:
 *   ro              the guest cannot change anything
 *   owner=guest     files belong to who made them in the guest; needs root,
 *                   and is the default then
 *   owner=host      files belong to the user who runs the machine, who is
 *                   root in the guest; what else the guest sets is kept in
 *                   the attribute user.husk.stat
 *   idmap=UID:GID   with owner=host: the user is somebody else in the guest
 *   cache=auto|none|always  how long the guest trusts what it knows: 1 s,
 *                   not at all, a day (nobody else changes the directory)
 *   locks=host|guest  whether the host and other machines respect the guest's
 *                   locks (the default), or only the guest does
 */
int vm_config_add_share(struct vm_config *cfg, const char *spec,
			struct husk_error *err);

/*
 * The socket device, "PATH[,cid=N]".  Who connects to the Unix socket PATH and
 * writes "CONNECT PORT\n" reads "OK HOSTPORT\n" when the guest has accepted;
 * the guest's connections to a port go to the Unix socket PATH_PORT.  The
 * machine makes PATH, for its owner only, and removes it.  Without a PATH
 * ("cid=N") there are only ports of vm_config_add_device() and the functions
 * below.  The guest's address is N, 3 by default.
 */
int vm_config_add_vsock(struct vm_config *cfg, const char *spec,
			struct husk_error *err);
/* PATH of the above; NULL: none. */
const char *vm_config_vsock_path(const struct vm_config *cfg);
/* Another PATH.  0 or -ENOMEM. */
int vm_config_set_vsock_path(struct vm_config *cfg, const char *path);

/* There is virtio-serial,stdio: VM_CONSOLE wants the terminal, if any. */
bool vm_config_console_is_stdio(const struct vm_config *cfg);

enum vm_reboot {
	VM_REBOOT_EXIT,	 /* a reset of the guest stops the machine */
	VM_REBOOT_AGAIN, /* same, and vm_stopped.again is set: the
				 * caller creates the machine once more */
};
void vm_config_set_reboot(struct vm_config *cfg, enum vm_reboot reboot);

/* What happens in a guest with a driver for pvpanic; Linux has one. */
enum vm_guest_event {
	VM_GUEST_PANICKED,     /* its kernel has given up */
	VM_GUEST_CRASH_LOADED, /* the same, and another kernel takes over */
};
/* Any thread; must not block or call the machine. */
void vm_config_set_guest_event(struct vm_config *cfg,
			       void (*event)(void *opaque,
					     enum vm_guest_event event),
			       void *opaque);
enum vm_panic {
	VM_PANIC_STOP,	/* VM_GUEST_PANICKED stops the machine */
	VM_PANIC_GO_ON, /* what the guest does then is its own affair */
};
void vm_config_set_panic(struct vm_config *cfg, enum vm_panic panic);

/*
 * The longest time between vm_pause() and vm_resume(), or between a save and
 * the start of what was restored, that passes for the guest, too: as if its
 * vCPUs had not got to run on a busy host.  Its clocks stay right and what came
 * due is done late.  After a longer one all its clocks go on from where they
 * were.  10 unless set, 0: none passes; -ERANGE above VM_MAX_GAP, from where on
 * Linux guests count wrongly.
 */
enum { VM_MAX_GAP = 300 };
int vm_config_set_gap(struct vm_config *cfg, unsigned seconds);
unsigned vm_config_gap(const struct vm_config *cfg);

/*
 * The host has no space for what the guest wrote to a disk with
 * on-enospc=pause.  The machine is paused, the request waits and is made again
 * by vm_resume(), also that of a machine that was saved so.  On a thread of the
 * machine; must not call vm_destroy().
 */
enum vm_on_enospc { VM_ON_ENOSPC_ERROR, VM_ON_ENOSPC_PAUSE };
/* Of all disks so far, in place of what each has. */
void vm_config_set_on_enospc(struct vm_config *cfg, enum vm_on_enospc what);
typedef void vm_no_space(void *opaque, unsigned disk, const char *path);
void vm_config_set_no_space(struct vm_config *cfg, vm_no_space *no_space,
			    void *opaque);

/*
 * The generation ID, which is random and of this configuration unless it is
 * given: constant as long as the guest's time only goes forward, so for every
 * start and reboot of the same guest.
 */
void vm_config_set_generation_id(struct vm_config *cfg, const uint8_t id[16]);

enum vm_port {
	VM_SERIAL,  /* COM1, ttyS0 */
	VM_CONSOLE, /* the virtio console, hvc0 */
	VM_PORTS,
};

/*
 * What the guest writes to a port, on a thread of the port.  It may block as
 * long as it likes: the guest's writer waits, and nothing else.
 * vm_stop() does not wait for it, vm_destroy() does.
 */
typedef void vm_output(void *opaque, const void *data, size_t len);
void vm_config_set_output(struct vm_config *cfg, enum vm_port port,
			  vm_output *output, void *opaque);
/*
 * Flow control of input: vm_console_write() took less than it was given, and
 * now the guest has made room.  Any thread; must not call the machine.
 */
void vm_config_set_room(struct vm_config *cfg, enum vm_port port,
			void (*room)(void *opaque), void *opaque);
/* Log lines of devices and the engine.  Any thread. */
void vm_config_set_log(struct vm_config *cfg,
		       void (*log)(void *opaque, const char *text),
		       void *opaque);

/*
 * Called once when the machine has stopped, for programs without a loop that
 * could wait for vm_event_fd().  On a thread of the machine; may call
 * vm_next_event() and must not call vm_stop() or vm_destroy().
 */
void vm_config_set_stopped(struct vm_config *cfg, void (*stopped)(void *opaque),
			   void *opaque);

/*
 * The same without a loop: called when vm_next_news() has something, which it
 * may call; must not block or call anything else.  Any thread.
 */
void vm_config_set_news(struct vm_config *cfg, void (*news)(void *opaque),
			void *opaque);

/* Calls problem (may be NULL) with a sentence for each; returns how many. */
unsigned vm_config_validate(const struct vm_config *cfg,
			    void (*problem)(void *opaque, const char *text),
			    void *opaque);

/* -- configurations as JSON ----------------------------------------------- */

/*
 * The document of docs/vm.json.md.  dir is the folder that relative paths in
 * it start from, and that is left out of paths below it; NULL: paths are kept
 * as they are.  Outputs and the log are the program's own and not part of it.
 * What was read is well formed, which vm_config_validate() does not follow
 * from: files may be missing.
 */
int vm_config_from_json(const char *text, size_t len, const char *dir,
			struct vm_config **cfg, struct husk_error *err);
/* To be given to free(); NULL: no memory. */
char *vm_config_to_json(const struct vm_config *cfg, const char *dir);
/* From a file and to one, which is replaced as a whole; dir is its folder. */
int vm_config_load(const char *path, struct vm_config **cfg,
		   struct husk_error *err);
int vm_config_save(const struct vm_config *cfg, const char *path,
		   struct husk_error *err);
/*
 * Texts of the program's own, which the document keeps.  A NULL value takes
 * one away.  0 or -ENOMEM; what vm_config_note() gives lives until then, NULL:
 * there is none.
 */
int vm_config_set_note(struct vm_config *cfg, const char *key,
		       const char *value);
const char *vm_config_note(const struct vm_config *cfg, const char *key);

/* What a machine of this library can have at most. */
struct vm_limits {
	unsigned cpus, disks, networks, forwards;
	uint64_t memory_min, memory_max; /* bytes; multiples of 4096 */
};
void vm_get_limits(struct vm_limits *limits);

/* -- machines ------------------------------------------------------------- */

/* The machine is complete, loaded and not running.  cfg may go after. */
int vm_create(const struct vm_config *cfg, struct vm **vm,
	      struct husk_error *err);
/* Stops it first.  NULL is fine. */
void vm_destroy(struct vm *vm);

int vm_start(struct vm *vm, struct husk_error *err); /* once */
/* As if the power was cut; returns when no vCPU runs. */
void vm_stop(struct vm *vm);
/*
 * Its devices, in the order in which they were made: "disk0" of the kind
 * "virtio-blk" and so on.  The number in the name of a disk or a network is
 * that of the functions below.  0, or -ENOENT: there is no such.
 */
struct vm_device {
	char id[32], kind[32];
};
int vm_get_device(const struct vm *vm, unsigned index,
		  struct vm_device *device);
/*
 * vm_pause() returns when no vCPU and no thread of a device runs, requests to
 * disks are finished and nothing arrives from networks.  The guest's clocks
 * stand still until vm_resume(), which moves them on by what has passed when
 * that is no more than vm_config_set_gap() says; after more, who wants its wall
 * clock to be right has an agent in the guest step it.  A machine that has not started starts paused.
 * Both are fine in either state; -ESRCH: the machine has ended.  Any thread but
 * those of the machine.
 */
int vm_pause(struct vm *vm, struct husk_error *err);
int vm_resume(struct vm *vm, struct husk_error *err);
bool vm_is_paused(const struct vm *vm);
/* Whether this disk holds requests for which there was no space. */
bool vm_disk_waits(const struct vm *vm, unsigned disk);
/* The power button: a guest with ACPI shuts down.  Any thread. */
void vm_power_button(struct vm *vm);
/*
 * The disk of this number, in the order of the configuration, grows while the
 * guest uses it, which is told.  Any thread.
 */
int vm_disk_grow(struct vm *vm, unsigned disk, uint64_t size,
		 struct husk_error *err);

/*
 * The share of this tag leads to another directory, or to none (NULL).  What
 * the guest had open or found in the old one is stale (ESTALE, EBADF) from now
 * on; its mount stays.  Waits for requests in progress.  Any thread.
 */
int vm_share_set(struct vm *vm, const char *tag, const char *dir,
		 struct husk_error *err);

const char *vm_engine(const struct vm *vm);	   /* "kvm" or "soft" */
const char *vm_engine_reason(const struct vm *vm); /* "" when asked for */

/* Counters of one vCPU; -ENOENT: there is no such.  Any thread. */
int vm_cpu_stats(const struct vm *vm, unsigned cpu, struct hv_stats *stats);

enum vm_stop_reason {
	VM_STOP_NONE, /* it runs */
	VM_STOP_POWEROFF,
	VM_STOP_RESET,
	VM_STOP_DIED,	  /* triple fault: text has the registers */
	VM_STOP_EXIT,	  /* a device gave the exit status code */
	VM_STOP_ERROR,	  /* our fault: text says what */
	VM_STOP_STOPPED,  /* vm_stop() */
	VM_STOP_PANICKED, /* the guest's kernel says so */
};

struct vm_stopped {
	enum vm_stop_reason reason;
	bool again;	 /* reset, and the configuration says again */
	int code;	 /* VM_STOP_EXIT */
	char text[2048]; /* lines end in \n when there are several */
};

/* Readable once the machine has stopped.  Constant; do not read it. */
int vm_event_fd(const struct vm *vm);
/* 1 and *event when it has stopped, 0 while it runs.  Any thread. */
int vm_next_event(struct vm *vm, struct vm_stopped *event);
/*
 * What else happens to a machine, the newest 64 of it: the fd is readable while
 * something is left to be told, constant, and not to be read.
 * vm_next_news() gives the oldest: 1, or 0: nothing.  Any thread.
 */
enum vm_news_kind {
	VM_NEWS_PAUSED,
	VM_NEWS_RESUMED,
	VM_NEWS_STOPPED,    /* vm_next_event() says why */
	VM_NEWS_GUEST,	    /* code: enum vm_guest_event */
	VM_NEWS_LINK,	    /* a cable; code 1: somebody at its other end */
	VM_NEWS_DISK_ERROR, /* the host failed a request; code: errno */
	VM_NEWS_NO_SPACE,   /* so it did, and the request waits */
	VM_NEWS_BROKEN,	    /* a driver broke the rules; until it resets */
};
struct vm_news {
	enum vm_news_kind kind;
	int code;
	char device[32]; /* as in vm_get_device(), or "" */
	unsigned lost;	 /* older ones, since the one before */
};
int vm_news_fd(const struct vm *vm);
int vm_next_news(struct vm *vm, struct vm_news *news);
/* Waits; -ETIMEDOUT after timeout_ms (-1: for ever). */
int vm_wait(struct vm *vm, int timeout_ms, struct vm_stopped *event);

/* The size of the window that VM_CONSOLE is shown in.  Any thread. */
void vm_console_resize(struct vm *vm, uint16_t columns, uint16_t rows);
/*
 * Input for the guest; how many bytes it took: none while nobody in the guest
 * listens.  vm_config_set_room() tells when to go on.  Any thread.
 */
size_t vm_console_write(struct vm *vm, enum vm_port port, const void *data,
			size_t len);

/* Network devices: pull the cable of one or put it in.  Any thread. */
unsigned vm_net_count(const struct vm *vm);
int vm_net_set_link(struct vm *vm, unsigned index, bool up);

/*
 * A connection to a port of the guest: a stream socket that is the caller's,
 * or a negative errno value: -ENODEV the machine has no socket device,
 * -ENOTCONN no driver runs yet, -ECONNREFUSED nobody in the guest listens,
 * -ETIMEDOUT it did not answer in timeout_ms (-1: within 30 s).  Any thread
 * but the one of a vm_vsock_accept.
 */
int vm_vsock_connect(struct vm *vm, uint32_t port, int timeout_ms,
		     struct husk_error *err);
/*
 * Connections of the guest to a port: accept gets a stream socket, which is
 * its own, on a thread of the machine; it should not block and must not call
 * the machine.  NULL: no longer.  -EADDRINUSE: the port has its place already.
 * Any thread.
 */
typedef void vm_vsock_accept(void *opaque, int fd, uint32_t guest_port);
int vm_vsock_listen(struct vm *vm, uint32_t port, vm_vsock_accept *accept,
		    void *opaque);

/*
 * The machine has become a copy or was set back: its guest gets another
 * generation ID and is told, so that it makes new random numbers.  new: a
 * random one, 0 or -EIO.  Any thread; best before vCPUs run.
 */
void vm_generation_id_set(struct vm *vm, const uint8_t id[16]);
int vm_generation_id_new(struct vm *vm);
void vm_generation_id(struct vm *vm, uint8_t id[16]);

/*
 * The memory balloon.  Free memory of the guest comes back to the host by
 * itself; the target is for more than that.
 */
struct vm_balloon_stats {
	uint64_t target; /* memory that the guest shall have, bytes */
	uint64_t actual; /* and has, by its own word */
	/* Bytes that the host got back: pages of the balloon, free pages that
	 * the guest reported by itself, and in rounds when it was asked. */
	uint64_t inflated, reported, hinted, rounds;
	/* What the guest says of itself; bytes and counts since its start. */
	bool has_guest;
	uint64_t free, available, caches, total;
	uint64_t swap_in, swap_out, major_faults, minor_faults;
	uint64_t hugetlb_allocations, hugetlb_failures;
};
/*
 * Let the guest have this much of its memory; all of it takes the balloon
 * away.  The guest's driver works towards that as fast as it can.  -ENODEV: no
 * balloon; -EINVAL: more than the machine has.  Any thread.
 */
int vm_balloon_set_target(struct vm *vm, uint64_t bytes);
/*
 * What is known; with timeout_ms > 0 the guest is asked and its answer waited
 * for so long, with -1 it is asked for the next time.  -ETIMEDOUT: no answer
 * (*stats has what was known before), -ENODEV: no balloon.  Any thread.
 */
int vm_balloon_stats(struct vm *vm, int timeout_ms,
		     struct vm_balloon_stats *stats);

/* -- disk images ---------------------------------------------------------- */

/*
 * Formats are "raw" and "qcow2"; NULL: qcow2 when the name ends in .qcow2,
 * else raw.  An image that a machine writes is locked, and only
 * vm_disk_info() works on it.
 */
struct vm_disk_create {
	const char *format;
	uint64_t size; /* bytes; 0: that of the base */
	/* qcow2 holds what differs from base; relative to the image. */
	const char *base, *base_format;
	uint32_t cluster;    /* bytes, of qcow2; 0: 64 KiB */
	bool lazy_refcounts; /* of qcow2: counted after a power cut */
	bool replace;	     /* an existing file */
};
int vm_disk_create(const char *path, const struct vm_disk_create *what,
		   struct husk_error *err);

struct vm_disk_info {
	char format[16];
	uint64_t size; /* of the disk */
	uint64_t used; /* of the host's storage, without bases */
	uint64_t file; /* length of the file, with its holes */
	/* The rest is of qcow2. */
	uint32_t cluster;
	unsigned snapshots; /* inside the image */
	bool lazy_refcounts, dirty, corrupt;
	char base[1024], base_format[40]; /* "": none, not said */
};
int vm_disk_info(const char *path, const char *format,
		 struct vm_disk_info *info, struct husk_error *err);
/* In place.  shrink: may be less than it was, and the end is lost. */
int vm_disk_resize(const char *path, const char *format, uint64_t size,
		   bool shrink, struct husk_error *err);

/* How far long work is; false ends it with -ECANCELED. */
typedef bool vm_disk_progress(void *opaque, uint64_t done, uint64_t total);

struct vm_disk_convert {
	const char *from_format, *format;
	const char *snapshot; /* of a qcow2 image, by id or name */
	uint32_t cluster;     /* bytes, of qcow2; 0: 64 KiB */
	bool replace;	      /* an existing file */
};
/* A copy that needs no base; to appears when it is complete. */
int vm_disk_convert(const char *from, const char *to,
		    const struct vm_disk_convert *how,
		    vm_disk_progress *progress, void *opaque,
		    struct husk_error *err);
/* Gives space back that holds zeros or nothing.  Bases stay as they are. */
int vm_disk_compact(const char *path, const char *format,
		    vm_disk_progress *progress, void *opaque,
		    struct husk_error *err);

/*
 * Copies a file out of the ext4 file system of an image that no machine uses
 * to a file of the host, which is replaced as a whole.  The file system fills
 * the disk or is in a partition of a GPT: *partition (may be NULL) is its
 * number, 0 for the disk.  -ENOENT: there is no such file; -EUCLEAN: the file
 * system was not unmounted; -EFBIG: more than 256 MiB.
 */
int vm_disk_extract(const char *path, const char *format, const char *file,
		    const char *to, unsigned *partition,
		    struct husk_error *err);

struct vm_disk_check {
	uint64_t errors;   /* contradictions in the image */
	uint64_t leaks;	   /* clusters that nothing uses: only lost space */
	uint64_t clusters; /* of data */
	uint64_t repaired;
};
/* report (may be NULL) gets a line for each error.  0: the check was done. */
int vm_disk_check(const char *path, const char *format, bool repair,
		  struct vm_disk_check *result,
		  void (*report)(void *opaque, const char *text), void *opaque,
		  struct husk_error *err);

#ifdef __cplusplus
}
#endif

#endif /* HUSK_VM_H */
