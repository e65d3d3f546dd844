// Package private runs the container engine's own programs, containerd and buildkitd, for one instance of Berth.
//
// # Programs
//
// The programs are upstream's, built by `make engine` into the layout's Libexec directory. They get a configuration that
// this package generates (pure functions, golden tests), their own root below State and their own sockets below Run, so
// they share nothing with a containerd the host may have. PATH begins with Libexec, by which containerd finds its shim
// and the shim finds runc. Each program is the leader of a session of its own, so a terminal's signals do not reach it,
// and writes to a file below State/log.
//
// containerd runs as long as the Engine does. buildkitd takes some 60 MiB that nobody needs between builds: it is
// started when Buildkit is first called and stopped when nobody has held it for a while.
//
// # Life and death
//
//   - Start returns when containerd answers a version request on its socket, by the process that was started (the
//     socket's peer credentials say so), and has the wanted snapshotter. Nothing is slept for.
//   - A containerd that dies is started again, at once and then with growing pauses. Shims, and so sessions, are not its
//     children's children that die with it: they live on and the new one picks them up.
//   - Stop ends both programs with SIGTERM, then SIGKILL, and removes what they left below Run. Shims go on.
//   - A daemon that is killed leaves its programs running. The next Start finds them in /proc by their command line (user
//     and PID namespace must be ours), so there is no PID file to go stale. A containerd of the same executable
//     and configuration that answers is adopted; one from before an upgrade or a change of configuration is replaced,
//     which sessions survive as they survive its death.
//   - A lock below Run keeps two daemons from running the same instance.
//
// # An existing containerd
//
// With Options.Containerd the host's own containerd is used: it is probed, never started, stopped or configured.
// buildkitd is then Berth's own, working for that containerd.
package private
