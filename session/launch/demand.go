package launch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Demand is the daemon's ear in one session. Close ends it.
type Demand struct {
	listener *net.UnixListener
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// maxAsking is how many clients of one session are heard at a time; more wait.
const maxAsking = 32

// Listen listens at socket, in place of what a daemon before this one has left there, for the user uid and for root. start
// starts a component and returns when it is ready; it is called from many goroutines, and its context ends when the client
// goes away or Close is called.
func Listen(socket string, uid int, start func(ctx context.Context, component string) error, log *slog.Logger) (*Demand, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("launch socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("launch socket: %w", err)
	}
	// A daemon that ends leaves it there: that it does not answer tells clients what is the matter.
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(socket, 0o600), os.Chown(socket, uid, -1)); err != nil {
		l.Close()
		return nil, fmt.Errorf("launch socket: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := &Demand{listener: l, cancel: cancel}
	d.wg.Go(func() {
		slots := make(chan struct{}, maxAsking)
		for {
			slots <- struct{}{}
			c, err := l.AcceptUnix()
			if err != nil {
				return // closed
			}
			d.wg.Go(func() {
				defer func() { c.Close(); <-slots }()
				if err := hear(ctx, c, uid, start); err != nil && ctx.Err() == nil {
					log.Warn("launch", "error", err)
				}
			})
		}
	})
	return d, nil
}

// Close ends the listener and every request under way, and waits for them.
func (d *Demand) Close() error {
	d.cancel()
	err := d.listener.Close()
	d.wg.Wait()
	return err
}

func hear(ctx context.Context, c *net.UnixConn, uid int, start func(context.Context, string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	cred, err := peer(c)
	if err != nil {
		return err
	}
	if int(cred.Uid) != uid && cred.Uid != 0 {
		return fmt.Errorf("a client with uid %d was turned away", cred.Uid)
	}
	var o order
	r := bufio.NewReaderSize(c, 4096)
	if err := readLine(r, &o); err != nil {
		return err
	}
	// A client that has lost interest closes its end.
	go func() {
		if _, err := r.ReadByte(); err != nil {
			cancel()
		}
	}()
	var a answer
	if err := start(ctx, o.Start); err != nil {
		a.Error = err.Error()
	}
	if err := writeLine(c, a); err != nil && !errors.Is(err, unix.EPIPE) && ctx.Err() == nil {
		return err
	}
	return nil
}
