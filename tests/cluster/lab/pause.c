/*
 * The first process of a pod: it holds the pod's namespaces, reaps what lost its
 * parent, and goes when it is told to. In C, as there is one for each pod.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	/* Blocked before the first wait, so that no signal is missed. */
	if (sigprocmask(SIG_BLOCK, &set, 0) != 0)
		return 1;
	for (;;) {
		int caught;
		if (sigwait(&set, &caught) != 0)
			return 1;
		if (caught != SIGCHLD)
			return 0;
		while (waitpid(-1, 0, WNOHANG) > 0) {
		}
	}
}
