/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay.c - main() of a fuzz target without libFuzzer: runs kept inputs
 *
 * fuzz_NAME FILE|DIRECTORY...
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { INPUT_ROOM = 1 << 20 };

static unsigned ran;

static void run_file(const char *path)
{
	static uint8_t buf[INPUT_ROOM];
	FILE *f = fopen(path, "rb");
	uint8_t *exact;
	size_t n;

	if (!f) {
		perror(path);
		exit(2);
	}
	n = fread(buf, 1, sizeof(buf), f);
	fclose(f);
	/* A block of its own size: a read beyond it is seen by ASan. */
	exact = malloc(n ? n : 1);
	if (!exact)
		exit(2);
	memcpy(exact, buf, n);
	printf("# %s\n", path);
	fflush(stdout);
	LLVMFuzzerTestOneInput(exact, n);
	free(exact);
	ran++;
}

static void run_path(const char *path)
{
	struct dirent **names;
	struct stat st;
	char sub[4096];
	int n;

	if (stat(path, &st) || !S_ISDIR(st.st_mode)) {
		run_file(path);
		return;
	}
	n = scandir(path, &names, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		if (names[i]->d_name[0] != '.') {
			snprintf(sub, sizeof(sub), "%s/%s", path,
				 names[i]->d_name);
			run_file(sub);
		}
		free(names[i]);
	}
	if (n >= 0)
		free(names);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		run_path(argv[i]);
	printf("%u inputs\n", ran);
	if (!ran)
		puts("SKIP: no inputs are kept for this target");
	return ran ? 0 : 77;
}
