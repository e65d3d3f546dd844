package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"

	"berth/internal/unixsock"
	"berth/session/look"
)

// Tell sends messages, in order, over the session bus in runtimeDir, a directory on the host that need not be trusted. A call
// to a name that nobody owns is not made: there is nobody to tell.
func Tell(ctx context.Context, runtimeDir string, messages []look.Message) error {
	sock, err := unixsock.Dial(ctx, runtimeDir, sessionBus)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { sock.Close() })()
	conn, err := dbus.NewConn(sock, dbus.WithContext(ctx))
	if err != nil {
		sock.Close()
		return fmt.Errorf("session bus: %w", err)
	}
	defer conn.Close()
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
		return fmt.Errorf("session bus %q: %w", filepath.Join(runtimeDir, sessionBus), err)
	}
	if err := conn.Hello(); err != nil {
		return fmt.Errorf("session bus: %w", err)
	}
	var errs []error
	for _, m := range messages {
		if m.Dest == "" {
			err = conn.Emit(dbus.ObjectPath(m.Path), m.Member, m.Args...)
		} else {
			err = conn.Object(m.Dest, dbus.ObjectPath(m.Path)).CallWithContext(ctx, m.Member, dbus.FlagNoAutoStart, m.Args...).Err
			var fault dbus.Error
			if errors.As(err, &fault) && (strings.HasSuffix(fault.Name, ".ServiceUnknown") || strings.HasSuffix(fault.Name, ".NameHasNoOwner")) {
				err = nil
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s on the session bus: %w", m.Member, err))
		}
	}
	// An answer to this comes behind all that was sent before.
	if err := conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.Peer.Ping", 0).Err; err != nil {
		errs = append(errs, fmt.Errorf("session bus: %w", err))
	}
	return errors.Join(errs...)
}
