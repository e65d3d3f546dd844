package launch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const usage = `usage: berth-launch [--wait] [--dir DIRECTORY] COMPONENT [--] PROGRAM [ARGUMENT]...
       berth-launch --serve [--idle DURATION]

Runs a program in another component of this session, which is started if need be. At a terminal, or with --wait, it waits for the
program's end and exits with its code; otherwise it returns once the program has been started.
`

// Main is the program berth-launch: args without its name, env as os.Environ gives it. It returns the exit code.
func Main(args, env []string, stdout, stderr io.Writer) int {
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "berth-launch:", err)
		return code
	}
	getenv := func(name string) string {
		for _, kv := range env {
			if v, ok := strings.CutPrefix(kv, name+"="); ok {
				return v
			}
		}
		return ""
	}
	f := flag.NewFlagSet("berth-launch", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	serve := f.Bool("serve", false, "")
	idle := f.Duration("idle", 0, "")
	wait := f.Bool("wait", terminal(os.Stdin), "")
	dir := f.String("dir", "", "")
	err := f.Parse(args)
	rest := f.Args()
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(stdout, usage)
		return 0
	}
	if err == nil && (*serve == (len(rest) > 0) || *idle < 0) {
		err = errors.New("wrong arguments")
	}
	runtimeDir := getenv("XDG_RUNTIME_DIR")
	if err == nil && runtimeDir == "" {
		err = errors.New("XDG_RUNTIME_DIR is not set: this is no session")
	}
	if err != nil {
		fmt.Fprint(stderr, usage)
		return fail(2, err)
	}
	if *serve {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
		if err := Serve(ctx, ServerOptions{Socket: Socket(runtimeDir, getenv("BERTH_COMPONENT")), Idle: *idle, Log: stderr}); err != nil {
			return fail(1, err)
		}
		return 0
	}
	component, rest := rest[0], rest[1:]
	if len(rest) > 0 && rest[0] == "--" {
		rest = rest[1:]
	}
	if component == "" || strings.ContainsAny(component, "/\x00") || len(rest) == 0 {
		fmt.Fprint(stderr, usage)
		return fail(2, errors.New("name a component and a program"))
	}
	if *dir == "" {
		if *dir, err = os.Getwd(); err != nil {
			*dir = "/"
		}
	}
	code, err := Run(context.Background(), Call{Component: component, RuntimeDir: runtimeDir, Demand: DemandSocket,
		Args: rest, Env: env, Dir: *dir, Wait: *wait})
	if err != nil {
		return fail(code, err)
	}
	return code
}

func terminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
