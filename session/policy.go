package session

import (
	"time"

	"golang.org/x/sys/unix"

	"berth/profiles"
)

// Restart timing. The first restart comes at once-ish, a crash loop soon costs nothing to speak of.
const (
	backoffFirst = 200 * time.Millisecond
	backoffMost  = time.Minute
	// A component that ran this long is healthy: its next exit starts the back-off anew.
	healthyAfter = time.Minute
	// During Up a required component may die this often before the session counts as failed.
	startAttempts = 3
)

// exitFacts is what decide knows of a component's exit.
type exitFacts struct {
	code      int
	wasReady  bool
	attempts  int  // consecutive exits without a healthy run, this one included
	starting  bool // the session is not up yet
	isSession bool // the plan's session component, or one that EndsSession
}

type action string

const (
	actRestart action = "restart" // after the given back-off
	actLogout  action = "logout"  // the session ends well
	actDone    action = "done"    // the component has ended and stays so
	actFail    action = "fail"    // given up
)

// decide says what follows from the exit of c. It has no side effects.
func decide(c profiles.Component, f exitFacts) (action, time.Duration) {
	if f.isSession && f.wasReady && (f.code == 0 || asked(f.code)) {
		return actLogout, 0
	}
	for _, p := range c.Ready {
		if p.Kind == "exit" && f.code == 0 {
			return actDone, 0
		}
	}
	switch c.Restart {
	case "never":
		if f.code == 0 {
			return actDone, 0
		}
		return actFail, 0
	case "on-failure", "":
		if f.code == 0 {
			return actDone, 0
		}
	}
	if f.starting && f.attempts >= startAttempts {
		return actFail, 0
	}
	return actRestart, backoff(f.attempts)
}

// asked tells whether an exit code is that of a program which was asked to end by a signal and died of it. For a session
// component that is a log-out as well: LXDE's log-out does nothing else to lxsession.
func asked(code int) bool {
	return code == 128+int(unix.SIGTERM) || code == 128+int(unix.SIGHUP) || code == 128+int(unix.SIGINT)
}

// backoff is the pause before the restart that follows the n-th consecutive exit, n >= 1.
func backoff(n int) time.Duration {
	d := backoffFirst
	for ; n > 1 && d < backoffMost; n-- {
		d *= 2
	}
	return min(d, backoffMost)
}
