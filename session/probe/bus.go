package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"

	"berth/internal/unixsock"
)

// A bus by the name of its socket in the runtime directory.
const (
	sessionBus = "bus"
	systemBus  = "system_bus_socket"
)

// bus waits until the bus behind socket answers, and if name is not empty until somebody owns it.
func (r *Runner) bus(ctx context.Context, socket, name string) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := r.busOnce(ctx, socket, name)
		if err == nil || ctx.Err() != nil || !hungUp(err) && !errors.Is(err, dbus.ErrClosed) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// busOnce does it over one connection. The buses admit root beside the session's user (packages session/bus and
// session/systembus); EXTERNAL authentication is by the credentials of the socket's peer.
func (r *Runner) busOnce(ctx context.Context, socket, name string) error {
	what := "session bus"
	if socket == systemBus {
		what = "system bus"
	}
	sock, err := unixsock.Dial(ctx, r.t.RuntimeDir, socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	defer stop()
	conn, err := dbus.NewConn(sock, dbus.WithContext(ctx))
	if err != nil {
		sock.Close()
		return fmt.Errorf("%s: %w", what, err)
	}
	defer conn.Close()
	saw := func(seen string, err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("socket %q: %s (%w)", filepath.Join(r.t.RuntimeDir, socket), seen, ctx.Err())
		}
		return fmt.Errorf("%s: %s: %w", what, seen, err)
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return saw("it accepts connections, but does not authenticate", err)
	}
	if err := conn.Hello(); err != nil {
		return saw("no answer to Hello", err)
	}
	daemon := conn.BusObject()
	if err := daemon.CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil {
		return saw("no answer to Ping", err)
	}
	if name == "" {
		return nil
	}
	// Subscribe, then ask: an owner that comes in between is seen by the question.
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	match := []dbus.MatchOption{dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"),
		dbus.WithMatchArg(0, name)}
	if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
		return saw("no answer to AddMatch", err)
	}
	var owned bool
	if err := daemon.CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&owned); err != nil {
		return saw("no answer to NameHasOwner", err)
	}
	for !owned {
		select {
		case s, ok := <-signals:
			if !ok {
				return saw("the bus went away", dbus.ErrClosed)
			}
			var changed, old, owner string
			err := dbus.Store(s.Body, &changed, &old, &owner)
			if s.Name == "org.freedesktop.DBus.NameOwnerChanged" && err == nil && changed == name {
				owned = owner != ""
			}
		case <-ctx.Done():
			return fmt.Errorf("the bus answers, but nobody owns %s (%w)", name, ctx.Err())
		}
	}
	return nil
}
