package gateway

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// throttle slows down guessing. Each key (an address, with the session's name for VNC) has a few wrong tries free;
// each further one doubles the time in which no try is even looked at. A right one clears the record.
//
// On loopback every local user has all addresses, 127.0.0.1 to 127.255.255.254, so that they share one key. One of them
// can lock out the rest for up to throttleMax: bounded and visible, against a guessing rate that would otherwise be
// unbounded.
type throttle struct {
	now func() time.Time

	mu   sync.Mutex
	keys map[string]*tries // guarded by mu
}

type tries struct {
	wrong int
	until time.Time // nothing is tried before
	last  time.Time
}

const (
	throttleFree   = 5
	throttleFirst  = time.Second
	throttleMax    = time.Minute
	throttleForget = 15 * time.Minute
	throttleKeys   = 4096
)

func newThrottle() *throttle { return &throttle{now: time.Now, keys: map[string]*tries{}} }

// tooMany is the error for a try that was not looked at.
type tooMany struct{ wait time.Duration }

func (e tooMany) Error() string {
	return fmt.Sprintf("too many wrong tries, wait %d s", int(e.wait.Round(time.Second)/time.Second))
}

// blocked tells without counting whether key must wait.
func (t *throttle) blocked(key string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wait(key)
}

// wait is blocked with mu held.
func (t *throttle) wait(key string) error {
	if k := t.keys[key]; k != nil {
		if d := k.until.Sub(t.now()); d > 0 {
			return tooMany{max(d, time.Second)}
		}
	}
	return nil
}

// try runs check unless key is blocked, and counts its failure. Tries are serialised, so many at once gain nothing.
func (t *throttle) try(key string, check func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.wait(key); err != nil {
		return err
	}
	err := check()
	if err == nil {
		delete(t.keys, key)
		return nil
	}
	now := t.now()
	k := t.keys[key]
	if k == nil || now.Sub(k.last) > throttleForget {
		t.makeRoom(now)
		k = &tries{}
		t.keys[key] = k
	}
	k.wrong++
	k.last = now
	if over := k.wrong - throttleFree; over >= 0 {
		k.until = now.Add(min(throttleFirst<<min(over, 10), throttleMax))
	}
	return err
}

// makeRoom keeps the map bounded: it drops what is old, else the record longest unused.
func (t *throttle) makeRoom(now time.Time) {
	if len(t.keys) < throttleKeys {
		return
	}
	oldest := ""
	for key, k := range t.keys {
		if now.Sub(k.last) > throttleForget {
			delete(t.keys, key)
		} else if oldest == "" || k.last.Before(t.keys[oldest].last) {
			oldest = key
		}
	}
	if len(t.keys) >= throttleKeys {
		delete(t.keys, oldest)
	}
}

// addressKey is what is throttled: the IPv4 address, or the /64 network of an IPv6 one (one host owns all of it), or
// loopback as a whole (every local user owns all of it).
func addressKey(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip := net.ParseIP(host)
	switch {
	case ip == nil:
		return host
	case ip.IsLoopback():
		return "loopback"
	case ip.To4() != nil:
		return ip.String()
	default:
		return ip.Mask(net.CIDRMask(64, 128)).String()
	}
}
