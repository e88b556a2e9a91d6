//go:build linux && cgo

package main

/*
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

// The init of a process namespace that containers share: it reaps, and leaves
// when it is asked to. It runs before Go's own start, so that it costs some
// pages and not a megabyte.
__attribute__((constructor)) static void conclave_pause(void)
{
	const char *role = getenv("_CONCLAVE_PAUSE");
	if (role == NULL || strcmp(role, "1") != 0)
		return;
	sigset_t set;
	int sig;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	prctl(PR_SET_NAME, "pause");
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (sigwait(&set, &sig) != 0 && errno != EINTR)
			_exit(1);
		if (sig != SIGCHLD)
			_exit(0);
	}
}
*/
import "C"
