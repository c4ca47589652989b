/* SPDX-License-Identifier: Apache-2.0 */
/*
 * thread.h - threads of a library, which leave the program's signals alone
 */
#ifndef BASE_THREAD_H
#define BASE_THREAD_H

#include <pthread.h>

/*
 * Starts a thread that runs no handler of the program, except for its own
 * faults.  The name, cut to 15 bytes, is what ps -L and debuggers show.
 * 0 or -errno; after an error *thread is not to be used.
 */
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg),
		 void *arg);

#endif /* BASE_THREAD_H */
