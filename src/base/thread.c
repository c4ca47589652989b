/* SPDX-License-Identifier: Apache-2.0 */
/* thread.c - threads of a library */
#include "base/thread.h"

#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>

int thread_start(pthread_t *thread, const char *name, void *(*run)(void *arg),
		 void *arg)
{
	sigset_t all, old;
	char text[16], own[16] = "";
	int ret;

	/* A fault whose signal is blocked kills without its handler. */
	sigfillset(&all);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGILL);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	/* A thread has the name of who starts it; to give it one needs /proc. */
	snprintf(text, sizeof(text), "%.15s", name);
	prctl(PR_GET_NAME, own);
	prctl(PR_SET_NAME, text);
	ret = pthread_create(thread, NULL, run, arg);
	prctl(PR_SET_NAME, own);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -ret;
}
