// Command agent runs commands in a machine for the test outside of it; see package wire. With argument "hoststate" it is one
// of these commands: it prints what Berth has on the machine, as JSON.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"berth/internal/hoststate"
	"berth/internal/paths"
	"berth/test/vmtest/wire"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run() error {
	if slices.Equal(os.Args[1:], []string{"hoststate"}) {
		l, err := paths.New("")
		if err != nil {
			return err
		}
		s, err := hoststate.Take(l)
		return errors.Join(err, json.NewEncoder(os.Stdout).Encode(s))
	}
	port, err := os.OpenFile(filepath.Join("/dev/virtio-ports", wire.Port), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	out := &replies{enc: json.NewEncoder(port)}
	if err := out.send(wire.Reply{}); err != nil {
		return err
	}
	for in := json.NewDecoder(port); ; {
		var r wire.Request
		if err := in.Decode(&r); err != nil {
			return err
		}
		if err := out.send(do(r, out)); err != nil {
			return err
		}
	}
}

func do(r wire.Request, out *replies) wire.Reply {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.Seconds)*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, r.Argv[0], r.Argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdin = append(os.Environ(), r.Env...), "/root", bytes.NewReader(r.Stdin)
	cmd.Stdout = writer(func(b []byte) error { return out.send(wire.Reply{Stdout: b}) })
	cmd.Stderr = writer(func(b []byte) error { return out.send(wire.Reply{Stderr: b}) })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// What it leaves in the background may hold its output open.
	cmd.WaitDelay = 2 * time.Second
	err := cmd.Run()
	end := wire.Reply{Done: true, Code: -1}
	if cmd.ProcessState != nil {
		end.Code = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		end.Error = fmt.Sprintf("it took longer than %d s", r.Seconds)
	case err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay):
		end.Error = err.Error()
	}
	return end
}

// replies sends one document at a time.
type replies struct {
	mu  sync.Mutex
	enc *json.Encoder
}

func (r *replies) send(reply wire.Reply) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.enc.Encode(reply)
}

type writer func([]byte) error

func (w writer) Write(b []byte) (int, error) { return len(b), w(b) }

var _ io.Writer = writer(nil)
