// Berth-anchor is the first process of a pod: it holds the pod's namespaces and reaps orphans. It is the init process
// of the pod's PID namespace (pid_namespaces(7)): when it ends, the kernel kills every process in the pod.
//
// It is static and does nothing but wait, so that it costs a session next to nothing: no fmt, no net, no timers.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// With SIGCHLD ignored the kernel reaps children itself (sigaction(2), notes on SIG_IGN); children of init are all
	// orphans of the namespace.
	signal.Ignore(syscall.SIGCHLD, syscall.SIGHUP, syscall.SIGPIPE)
	end := make(chan os.Signal, 1)
	// A signal without a handler does not reach the init process of a PID namespace, so SIGTERM needs one.
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}
