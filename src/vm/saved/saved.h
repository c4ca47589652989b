/* SPDX-License-Identifier: Apache-2.0 */
/*
 * saved.h - the inside of saved machines: docs/saved-state.md in C
 *
 * save.c writes them, open.c reads and checks them, restore.c makes machines
 * of them; sections.c has what a machine is but for its memory, ram.c that in
 * both directions, fields.c what is in the sections that are not a device's.
 * fork.c makes a machine of another process without a file.
 */
#ifndef VM_SAVED_SAVED_H
#define VM_SAVED_SAVED_H

#include "husk/saved.h"
#include "vm/machine.h"
#include "vm/saved/layer.h"

enum {
	SAVED_VERSION = 1,
	SAVED_PAGE = 4096,
	SAVED_MAX_SECTIONS = 512,
	SAVED_MAX_META = 256 << 20, /* bytes in front of the memory */
	SAVED_COMPRESSED = 1,	    /* flags */
};
#define SAVED_MAGIC "HUSKSAVE"
#define SAVED_UNIT  (2ull << 20) /* of memory in the table of section "ram" */

/* Little endian, as the host is.  crc is of the header with crc 0. */
struct saved_header {
	char magic[8];
	uint32_t version, flags;
	uint32_t nsections, table_crc;
	uint64_t ram_at, ram_size, file_size;
	uint32_t reserved[3], crc;
};
_Static_assert(sizeof(struct saved_header) == 64, "format");

struct saved_entry {
	char name[32], kind[24];
	uint32_t version, crc;
	uint64_t at, size;
};
_Static_assert(sizeof(struct saved_entry) == 80, "format");

/* size 0: all zeros.  A unit that is not compressed lies at its place. */
struct saved_unit {
	uint64_t at;
	uint32_t size, crc; /* crc of what it holds, not of what is stored */
};
_Static_assert(sizeof(struct saved_unit) == 16, "format");

/* -- fields.c ------------------------------------------------------------- */

struct saved_machine {
	char engine[16], cpu_model[32];
	uint32_t cpus, tsc_khz;
	uint64_t memory;
	uint64_t now;	   /* machine time */
	uint64_t clock;	   /* kvm-clock */
	uint64_t saved_at; /* CLOCK_REALTIME */
	uint8_t id[16];
};
void machine_fields(struct state *s, struct saved_machine *m);

void cpu_fields(struct state *s, struct hv_state *h);

/* What the guest may have learned about its processor. */
enum { SAVED_CPUIDS = 9 };
struct saved_cpuid {
	uint32_t reg[SAVED_CPUIDS][4];
};
void cpuid_fields(struct state *s, struct saved_cpuid *c);
void cpuid_take(struct hv_vcpu *cpu, struct saved_cpuid *c);
/* Can a guest that has seen old go on with new? */
int cpuid_compare(const struct saved_cpuid *old, const struct saved_cpuid *now,
		  struct husk_error *err);

struct saved_disk_fields {
	char name[32], path[4096], format[16];
	bool readonly, frozen;
	uint64_t file_size, mtime_ns;
	uint32_t head_crc; /* of its first 64 KiB */
};
void disk_fields(struct state *s, struct saved_disk_fields *d);
/* Of the file as it is: 0 or -errno. */
int disk_look(const char *path, struct saved_disk_fields *d);

/* -- sections.c ----------------------------------------------------------- */

struct sections {
	struct vm *vm;
	struct section {
		struct saved_entry e;
		uint8_t *data;
	} section[SAVED_MAX_SECTIONS];
	unsigned n;
	struct saved_disk_fields disk[MAX_DISKS]; /* as they were */
};
/* What the images are called now; what is in them is said later. */
void sections_name_disks(struct sections *s, bool frozen);
/* Of a machine that is paused.  The last is the memory's empty table. */
int sections_collect(struct sections *s);
/* Where the memory begins. */
uint64_t sections_end(const struct sections *s);
/*
 * All in front of the memory, to be freed; NULL: no memory.  h has flags and
 * file_size.
 */
uint8_t *sections_join(struct sections *s, struct saved_header *h);
void sections_finish(struct sections *s);

/* -- save.c --------------------------------------------------------------- */

/* vm_validate_save(), with its first problem in err: 0 or -ENOTSUP. */
int save_allowed(struct vm *vm, const struct vm_save_options *options,
		 struct husk_error *err);

/* -- disks.c -------------------------------------------------------------- */

/* New images, as long as they are nobody's. */
struct disk_overlays {
	char *path[MAX_DISKS];
	bool copy[MAX_DISKS]; /* for the saved machine, of what is on top */
	struct layer_links links;
};
void disks_discard(struct disk_overlays *o);
/* Copies are on the medium: 0 or -errno. */
int disks_settle(const struct disk_overlays *o);
void disks_keep(struct disk_overlays *o); /* they are somebody's now */
int disks_flush(struct vm *vm);
/* Before the pause: makes them, without copies. */
int disks_prepare(struct vm *vm, struct disk_overlays *o,
		  struct husk_error *err);
/*
 * Paused and flushed: the machine's disks are these from now on, or the copies
 * disk's.
 */
int disks_freeze(struct vm *vm, struct disk_overlays *o,
		 struct saved_disk_fields *disk,
		 const struct vm_save_options *options, struct husk_error *err);
/* On top of frozen ones, in folder or, NULL, beside them. */
int disks_restore(const struct vm_saved *saved, struct vm_config *cfg,
		  const char *folder, struct disk_overlays *o,
		  struct husk_error *err);
void disks_unrestore(const struct vm_saved *saved, struct vm_config *cfg,
		     struct disk_overlays *o);
/* Where a new image on top of path goes; to be freed, NULL: no memory. */
char *overlay_path(const char *path, const char *folder);

/* -- open.c --------------------------------------------------------------- */

/* Memory that a process has from the machine it was split off from. */
struct saved_ram {
	uint8_t *host; /* NULL: a machine has taken it */
	uint64_t size;
	uint8_t *from_file; /* as in struct guest_mem */
	bool own;	    /* else it is the original's */
};

struct vm_saved {
	int fd;
	struct saved_ram *ram; /* in place of the file; or NULL */
	struct saved_header h;
	uint8_t *meta; /* all in front of the memory */
	struct saved_entry *entry;
	struct saved_machine machine;
	struct saved_cpuid cpuid;
	struct saved_disk_fields *disk;
	unsigned ndisks;
	struct saved_unit *unit;
	uint64_t nunits;
};

const struct saved_entry *saved_find(const struct vm_saved *saved,
				     const char *name);
static inline const void *saved_data(const struct vm_saved *saved,
				     const struct saved_entry *e)
{
	return saved->meta + e->at;
}
/* The sections in meta, which are all there. */
int saved_check(struct vm_saved *saved, struct husk_error *err);
/* "PATH: section NAME: WHY", -EBADMSG. */
int saved_bad(struct husk_error *err, const char *section, const char *why);

/* -- ram.c ---------------------------------------------------------------- */

static inline uint64_t ram_units(uint64_t size)
{
	return (size + SAVED_UNIT - 1) / SAVED_UNIT;
}

static inline uint64_t ram_unit_size(uint64_t size, uint64_t i)
{
	return MIN((uint64_t)SAVED_UNIT, size - i * SAVED_UNIT);
}

/*
 * ram_write() may run in a process of its own that shares the memory of this
 * struct and of unit; it calls nothing that allocates.
 */
struct ram_job {
	const uint8_t *host;
	uint64_t size, at;	  /* in the file */
	const uint8_t *from_file; /* bit per unit: pages not here are there */
	int fd;
	bool fork;		  /* paced for a machine that runs */
	struct ZSTD_CCtx_s *zstd; /* NULL: not compressed */
	uint8_t *out;		  /* with zstd */
	size_t out_room;

	struct saved_unit *unit; /* (shared) to be filled */
	struct ram_shared {
		_Atomic uint64_t done, written, end;
		_Atomic int error; /* -errno */
		atomic_bool cancel;
	} * shared;
};
/* zstd, out, unit and shared.  0 or -ENOMEM. */
int ram_job_init(struct ram_job *job, bool compress);
void ram_job_finish(struct ram_job *job);
void ram_write(struct ram_job *job);

/* Puts the saved memory in place of mem's, which is untouched. */
int ram_map(const struct vm_saved *saved, struct guest_mem *mem, bool preload,
	    struct husk_error *err);
/* Reads unit i to buf, which has room for it, and checks it. */
int ram_read_unit(const struct vm_saved *saved, uint64_t i, void *buf);

#endif /* VM_SAVED_SAVED_H */
