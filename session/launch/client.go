package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Call says what Run shall run, and where.
type Call struct {
	Component  string
	RuntimeDir string // $XDG_RUNTIME_DIR
	Demand     string // DemandSocket
	Args       []string
	Env        []string
	Dir        string
	// Wait: the program has this process's standard input, output and error, and Run returns with its exit code. Without it Run
	// returns 0 as soon as the program has been started.
	Wait bool
}

// Run runs a program in another component, which it has started first if need be. While it waits it passes on the signals
// that a terminal sends. The code of a program that could not be started is 126, or 127 if it is not there, with an error.
func Run(ctx context.Context, call Call) (code int, err error) {
	umask := unix.Umask(0)
	unix.Umask(umask)
	line, err := json.Marshal(request{Args: call.Args, Env: call.Env, Dir: call.Dir, Umask: umask, Wait: call.Wait})
	if err != nil {
		return 125, err
	}
	if len(line) > maxMessage {
		return 126, fmt.Errorf("program %q: arguments and environment have %d bytes, more than the %d allowed", call.Args[0], len(line), maxMessage)
	}
	for try := 0; ; try++ {
		code, err = run(ctx, call, append(line, '\n'))
		// One that ended for want of work in this very moment has started nothing.
		if !errors.Is(err, ErrUnheard) || try == 2 {
			return code, err
		}
	}
}

// ErrUnheard: the server went away before it answered, and has started nothing.
var ErrUnheard = errors.New("no answer")

func run(ctx context.Context, call Call, line []byte) (code int, err error) {
	c, err := connect(ctx, call)
	if err != nil {
		return 125, fmt.Errorf("component %q: %w", call.Component, err)
	}
	defer c.Close()
	var rights []byte
	signals := make(chan os.Signal, 8)
	if call.Wait {
		rights = unix.UnixRights(int(os.Stdin.Fd()), int(os.Stdout.Fd()), int(os.Stderr.Fd()))
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH, syscall.SIGUSR1, syscall.SIGUSR2)
		defer signal.Stop(signals)
	}
	if err := send(c, line, rights); err != nil {
		return 125, fmt.Errorf("component %q: %w: %w", call.Component, ErrUnheard, err)
	}
	type answer struct {
		reply
		err error
	}
	answers := make(chan answer)
	done := make(chan struct{})
	defer close(done)
	go func() {
		r := bufio.NewReader(c)
		for {
			var a answer
			a.err = readLine(r, &a.reply)
			select {
			case answers <- a:
			case <-done:
				return
			}
			if a.err != nil {
				return
			}
		}
	}()
	heard := false
	for {
		select {
		case a := <-answers:
			switch {
			case a.err != nil && !heard:
				return 125, fmt.Errorf("component %q: %w: %w", call.Component, ErrUnheard, a.err)
			case a.err != nil:
				return 125, fmt.Errorf("component %q went away: %w", call.Component, a.err)
			case a.Error != "":
				code = 125
				if a.Exit != nil {
					code = *a.Exit
				}
				return code, fmt.Errorf("component %q: program %q: %s", call.Component, call.Args[0], a.Error)
			case a.Exit != nil:
				return *a.Exit, nil
			case !call.Wait:
				return 0, nil
			}
			heard = true
		case sig := <-signals:
			if err := writeLine(c, later{Signal: int(sig.(syscall.Signal))}); err != nil {
				return 125, fmt.Errorf("component %q: signal: %w", call.Component, err)
			}
		case <-ctx.Done():
			return 125, ctx.Err()
		}
	}
}

// send writes data, and the descriptors with its first byte.
func send(c *net.UnixConn, data, rights []byte) error {
	n, _, err := c.WriteMsgUnix(data, rights, nil)
	for err == nil && n < len(data) {
		var m int
		m, err = c.Write(data[n:])
		n += m
	}
	return err
}

// connect reaches a component's server. Whom nobody answers asks the daemon, twice at most: the component may just have
// ended for want of work.
func connect(ctx context.Context, call Call) (*net.UnixConn, error) {
	socket := Socket(call.RuntimeDir, call.Component)
	for try := 0; ; try++ {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return c.(*net.UnixConn), nil
		}
		if try == 2 || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED) {
			return nil, err
		}
		if err := demand(ctx, call.Demand, call.Component); err != nil {
			return nil, err
		}
	}
}

// order is what the daemon is asked, and answer what it says when the component is ready or cannot be.
type order struct {
	Start string `json:"start"`
}

type answer struct {
	Error string `json:"error,omitempty"`
}

// demand asks the daemon for a component and returns when it is ready.
func demand(ctx context.Context, socket, component string) error {
	c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("not running, and no Berth daemon answers to start it: %w", err)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := writeLine(c, order{Start: component}); err != nil {
		return err
	}
	var a answer
	if err := readLine(bufio.NewReader(c), &a); err != nil {
		return fmt.Errorf("the Berth daemon went away: %w", err)
	}
	if a.Error != "" {
		return errors.New(strings.TrimSpace(a.Error))
	}
	return nil
}
