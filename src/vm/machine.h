/* SPDX-License-Identifier: Apache-2.0 */
/*
 * machine.h - the inside of struct vm and struct vm_config
 */
#ifndef VM_MACHINE_H
#define VM_MACHINE_H

#include <pthread.h>
#include <stdatomic.h>

#include "husk/hv.h"
#include "husk/vm.h"
#include "vm/block.h"
#include "vm/console/end.h"
#include "vm/device.h"
#include "vm/fs/fs.h"

enum { MAX_DISKS = 24, MAX_DEVICES = 24 };

enum { VM_GAP = 10 }; /* s, of vm_config_set_gap() */

struct vm_config;
struct saved_cpuid;
struct saved_ram;

/* Strings other than path may be NULL, numbers 0. */
struct disk_config {
	char *path, *serial, *format, *base, *snapshot, *fault;
	bool readonly, pause_if_full;
	enum block_cache cache;
	enum block_sync sync;
	enum block_aio aio;
	unsigned sector, queues;
};

/* config_disk.c */
/* 0, -ENOENT: no such key, -EINVAL: no such value, -ENOMEM. */
int disk_config_set(struct disk_config *d, const char *key, const char *value);
/* The next disk; d is empty after success. */
int config_take_disk(struct vm_config *cfg, struct disk_config *d,
		     struct husk_error *err);
void disk_config_finish(struct disk_config *d);
int disk_config_copy(struct disk_config *to, const struct disk_config *from);
/* disk.c: size 0: that of the base, which nobody may be writing then. */
int disk_create_overlay(const char *path, const char *base,
			const char *base_format, uint64_t size,
			struct husk_error *err);
struct block_config disk_block_config(const struct disk_config *d);
int config_add_virtio_blk(struct vm_config *cfg, char *options,
			  const char *spec, struct husk_error *err);

enum { MAX_NETS = 8, MAX_FORWARDS = 64 };

/* config_net.c */
struct net_config {
	const char *kind; /* of struct link_config */
	char *where;
	int fd;
	bool listen, vfkit, isolated, no_loopback, has_mac;
	unsigned mtu, pairs; /* 0: the default */
	uint8_t mac[6];
	char *forward[MAX_FORWARDS];
	unsigned nforwards;
};
void net_config_finish(struct net_config *n);
/* The first word of a specification: 0, -ENOENT or -ENOMEM. */
int net_config_kind(struct net_config *n, const char *word);
/* Another: 0, -ENOENT: no such key, -EINVAL: no such value. */
int net_config_option(struct net_config *n, const char *o);
int net_config_forward(struct net_config *n, const char *spec,
		       struct husk_error *err);
/* The next network device; n is empty after success. */
int config_take_net(struct vm_config *cfg, struct net_config *n,
		    struct husk_error *err);
int config_add_virtio_net(struct vm_config *cfg, char *options,
			  const char *spec, struct husk_error *err);

/* config_json.c */
struct json_object;
/*
 * Text of an option, kept for vm_config_to_json(), in this list of the
 * document (a constant).  0 or -ENOMEM.
 */
int config_remember(struct vm_config *cfg, const char *list, const char *text);
void config_json_finish(struct vm_config *cfg);

enum { MAX_VSOCK_PORTS = 64 };

/* config_vsock.c */
struct vsock_config {
	bool on;
	uint32_t cid; /* 0: the default */
	char *path;   /* NULL: none */
	struct {
		uint32_t port;
		char *path;
		bool to_guest;
	} port[MAX_VSOCK_PORTS];
	unsigned nports;
};
void vsock_config_finish(struct vsock_config *v);
int config_add_virtio_vsock(struct vm_config *cfg, char *options,
			    const char *spec, struct husk_error *err);

enum { MAX_SHARES = 8 };

/* config_share.c */
struct share_config {
	char *dir, *tag;
	bool readonly, guest_locks;
	enum fs_owner owner;
	enum fs_cache cache;
	uint32_t uid, gid;
};
void share_config_finish(struct share_config *sh);
int config_add_virtio_fs(struct vm_config *cfg, char *options, const char *spec,
			 struct husk_error *err);

/* config_serial.c; the console has one port more, the program's */
enum { MAX_SERIALS = 6 };
struct serial_config {
	enum end_kind kind;
	bool has_kind, listen;
	char *path, *name; /* NULL: none */
};
void serial_config_finish(struct serial_config *s);
int config_add_virtio_serial(struct vm_config *cfg, char *options,
			     const char *spec, struct husk_error *err);

/* config_balloon.c */
struct balloon_config {
	bool off, reporting, hinting, oom;
	uint64_t target; /* bytes; 0: all memory */
};
int config_add_virtio_balloon(struct vm_config *cfg, char *options,
			      const char *spec, struct husk_error *err);

struct vm_config {
	char *kernel, *initrd, *cmdline, *engine;
	unsigned cpus;
	uint64_t memory;
	enum vm_reboot reboot;
	struct disk_config disk[MAX_DISKS];
	unsigned ndisks;
	struct net_config net[MAX_NETS];
	unsigned nnets;
	struct vsock_config vsock;
	struct share_config share[MAX_SHARES];
	unsigned nshares;
	struct balloon_config balloon;
	struct serial_config serial[MAX_SERIALS];
	unsigned nserials;
	uint8_t generation[16];
	bool has_generation; /* it was given */
	enum vm_panic panic;
	unsigned gap;	/* s */
	unsigned nrngs; /* beyond the one that is always there */
	bool debug_exit, testdev;
	struct config_word {
		const char *list;
		char *text;
	} * word; /* what was remembered */
	unsigned nwords;
	struct json_object *notes; /* or NULL */
	struct {
		vm_output *output;
		void *opaque;
		void (*room)(void *opaque);
		void *room_opaque;
	} port[VM_PORTS];
	void (*log)(void *opaque, const char *text);
	void *log_opaque;
	void (*guest_event)(void *opaque, enum vm_guest_event event);
	void *guest_opaque;
	void (*stopped)(void *opaque);
	void *stopped_opaque;
	void (*news)(void *opaque);
	void *news_opaque;
	vm_no_space *no_space;
	void *no_space_opaque;
};

/* RAM from 0 to low and from 4 GiB on; one piece of host memory. */
struct guest_mem {
	struct hv_vm *hv;
	uint8_t *host;
	uint64_t size, low;
	uint8_t *from_file; /* bit per SAVED_UNIT; NULL: all anonymous */
	bool small;	    /* its pages, until it goes on */
	struct loop_timer enlarge;
};

/* ram: which there is already, and is the machine's from now on; or NULL. */
int mem_init(struct guest_mem *mem, struct hv_vm *hv, uint64_t size,
	     struct saved_ram *ram, struct husk_error *err);
void mem_finish(struct guest_mem *mem); /* zeroes are fine */
/* Fewer host page faults and TLB misses; fine where it is refused. */
void mem_use_large(struct guest_mem *mem);
/*
 * What is touched first gets small pages, until the machine has gone on for a
 * while: of large ones the host has to clear 2 MiB for each byte that the
 * guest wants when it wakes up.
 */
void mem_start_small(struct guest_mem *mem, struct loop *loop);
void mem_goes_on(struct guest_mem *mem);

struct vcpu {
	struct vm *vm;
	struct hv_vcpu *hv;
	pthread_t thread;
	bool started;
	struct hv_exit exit; /* the current one; its thread's */
	struct hv_exit last; /* the one before, for the report of a death */
};

enum { NEWS_MAX = 64 };
/* news.c; (i) constant after creation, all else under lock */
struct news {
	int fd;			    /* (i) */
	void (*call)(void *opaque); /* (i) or NULL */
	void *opaque;		    /* (i) */
	pthread_mutex_t lock;	    /* the innermost */
	struct vm_news ring[NEWS_MAX];
	unsigned first, len, lost;
};
/* sink: the machine; device: NULL if none; kind: enum vm_news_kind */
void machine_news(void *sink, const char *device, int kind, int code);

/* (i) constant after creation   (l) under lock */
struct vm {
	struct hv_vm *hv;	/* (i) */
	struct guest_mem mem;	/* (i) */
	struct bus *mmio, *pio; /* (i) */
	struct loop *loop;	/* (i) */
	struct dev_env env;	/* (i) */
	struct dev *devs;	/* (i) last created first */
	struct dev *pic, *ioapic, *uart, *console, *pm, *fw_cfg; /* (i) */
	struct dev *vmgenid;					 /* (i) */
	struct dev *balloon;		/* (i) or NULL */
	struct block *block[MAX_DISKS]; /* (i) closed after the devices */
	unsigned nblocks;
	struct link *link[MAX_NETS];	  /* (i) closed after the devices */
	struct dev *nic[MAX_NETS];	  /* (i) */
	unsigned nnets;			  /* (i) */
	struct dev *vsock;		  /* (i) or NULL */
	struct dev *share[MAX_SHARES];	  /* (i) */
	char share_tag[MAX_SHARES][40];	  /* (i) */
	unsigned nshares;		  /* (i) */
	struct end *serial_end;		  /* (i) closed after the devices */
	struct end *end[MAX_SERIALS + 1]; /* (i) of the console, the same */
	unsigned nends;			  /* (i) */
	struct vcpu cpu[VM_MAX_CPUS];
	unsigned ncpus;						  /* (i) */
	bool again;						  /* (i) */
	void (*log)(void *opaque, const char *text);		  /* (i) */
	void *log_opaque;					  /* (i) */
	enum vm_panic panic;					  /* (i) */
	void (*guest_event)(void *opaque, enum vm_guest_event e); /* (i) */
	void *guest_opaque;					  /* (i) */
	void (*stopped)(void *opaque);				  /* (i) */
	void *stopped_opaque;					  /* (i) */
	vm_no_space *no_space;					  /* (i) */
	void *no_space_opaque;					  /* (i) */
	int event_fd;						  /* (i) */
	struct news news;
	char *json; /* (life) the configuration, for vm_save() */
	/* (i) what a guest from a file has learned; NULL: what it finds here */
	struct saved_cpuid *cpuid;
	struct disk_config disk[MAX_DISKS]; /* (life) as opened */

	pthread_mutex_t life; /* pause, resume and save; the outermost */
	atomic_bool paused;   /* (life) */
	bool resume_at_start; /* (life) it comes from a file */
	atomic_bool pausing;  /* vCPUs are to park */
	atomic_ullong frozen; /* machine time while it stands still, or 0 */
	uint64_t since;	      /* (life) loop_now() when it began to */
	bool set_back;	      /* (life) its timers have been set since */
	uint64_t gap_ns;      /* (i) longer than that it is not made up for */
	atomic_ullong time_offset; /* machine time = loop_now() + it */

	atomic_bool stopping;
	pthread_mutex_t lock;
	pthread_cond_t parked_change, go;
	unsigned parked; /* (l) vCPU threads */
	pthread_cond_t ended;
	unsigned running;	       /* (l) vCPU threads */
	bool has_started, has_stopped; /* (l) */
	pthread_t space_thread;	       /* (i) space.c, if a disk wants it */
	bool has_space_thread;	       /* (i) */
	pthread_cond_t space;
	bool space_asked, space_quit; /* (l) */
	struct vm_stopped result;     /* (l) the first reason wins */
};

/*
 * machine.c: tsc_khz is not 0 for one whose memory is to be restored, or is
 * ram.
 */
int machine_create(const struct vm_config *cfg, uint32_t tsc_khz,
		   struct saved_ram *ram, struct vm **out,
		   struct husk_error *err);

/* pause.c */
uint64_t machine_now(void *sink);
void time_freeze(struct vm *vm);
/* While frozen: it has stood there since then, in CLOCK_REALTIME. */
void time_set(struct vm *vm, uint64_t now, uint64_t since);
/* CLOCK_REALTIME when it began to stand still. */
uint64_t time_stood_since(const struct vm *vm);
int pause_locked(struct vm *vm, struct husk_error *err);
int resume_locked(struct vm *vm, struct husk_error *err);

/* space.c: after the disks and before finish of any device. */
int space_init(struct vm *vm, struct husk_error *err);
void space_finish(struct vm *vm); /* zeroes are fine */
/* A disk waits for space.  Any thread. */
void space_ask(struct vm *vm);

/* run.c */
/* Returns when every vCPU thread waits for run_go() or has ended. */
void run_park(struct vm *vm);
void run_go(struct vm *vm);
int run_start(struct vm *vm, struct husk_error *err);
void run_join(struct vm *vm);
/* Answer cpu->exit; false: this vCPU does not go on. */
bool run_exit(struct vcpu *cpu);
/* The start failed: ends what runs and announces the end. */
void run_failed(struct vm *vm, const char *text);
/* Stop for this reason unless there is one already.  Any thread. */
void run_end(struct vm *vm, enum vm_stop_reason reason, int code,
	     const char *text);
void run_pic_output(void *sink, bool level);

#endif /* VM_MACHINE_H */
