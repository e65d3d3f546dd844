// Toolbox is the program in the conformance suite's image. It is static and does one small thing per verb.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no verb")
	}
	verb, args := args[0], args[1:]
	switch verb {
	case "wait": // until a signal ends it
		wait()
	case "stubborn": // until SIGKILL; says ready
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
		fmt.Println("ready")
		wait()
	case "trap": // says ready, then the first signal it gets, and exits with its number
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGINT)
		fmt.Println("ready")
		s := (<-c).(syscall.Signal)
		fmt.Println("got", int(s))
		os.Exit(int(s))
	case "exit":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		os.Exit(n)
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "split": // one line on each stream
		fmt.Println("to stdout")
		fmt.Fprintln(os.Stderr, "to stderr")
	case "mute": // closes its stdout, then writes "line 1" to "line N" to stderr, slowly
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		fmt.Println("to stdout")
		if err := os.Stdout.Close(); err != nil {
			return err
		}
		for i := range n {
			time.Sleep(10 * time.Millisecond) // for whoever reads stdout to notice its end
			fmt.Fprintln(os.Stderr, "line", i+1)
		}
	case "lines": // "line 1" to "line N", then waits
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		w := bufio.NewWriter(os.Stdout)
		for i := range n {
			fmt.Fprintln(w, "line", i+1)
		}
		w.Flush()
		wait()
	case "relay": // every line of the fifo or file at args[0] to stdout, for ever
		for {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			io.Copy(os.Stdout, f)
			f.Close()
		}
	case "cat":
		if len(args) == 0 {
			_, err := io.Copy(os.Stdout, os.Stdin)
			return err
		}
		data, err := os.ReadFile(args[0])
		os.Stdout.Write(data)
		return err
	case "create": // a file that must not be there
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	case "write":
		return os.WriteFile(args[0], []byte(args[1]), 0o644)
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	case "status": // of itself, as the kernel has it
		data, err := os.ReadFile("/proc/self/status")
		os.Stdout.Write(data)
		return err
	case "id":
		groups, err := os.Getgroups()
		if err != nil {
			return err
		}
		wd, err := os.Getwd()
		if err != nil {
			return err
		}
		fmt.Println(os.Getuid(), os.Getgid(), groups, wd)
	case "host":
		name, err := os.Hostname()
		fmt.Println(name)
		return err
	case "ns": // namespace identities
		for _, n := range []string{"pid", "ipc", "net", "uts", "mnt"} {
			l, err := os.Readlink("/proc/self/ns/" + n)
			if err != nil {
				return err
			}
			fmt.Println(l)
		}
	case "size": // of the terminal: now, and at each change
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGWINCH)
		for {
			var ws struct{ Rows, Cols, X, Y uint16 }
			if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&ws))); e != 0 {
				return e
			}
			fmt.Println("size", ws.Cols, ws.Rows)
			if len(args) == 2 && args[0] == strconv.Itoa(int(ws.Cols)) && args[1] == strconv.Itoa(int(ws.Rows)) {
				return nil
			}
			<-c
		}
	case "spawn": // starts itself args[0] times with "wait", in sessions of their own; says ready; waits
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		for range n {
			cmd := exec.Command("/proc/self/exe", "wait")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			if err := cmd.Start(); err != nil {
				return err
			}
		}
		fmt.Println("ready")
		if len(args) > 1 && args[1] == "exit" {
			return nil
		}
		wait()
	case "memory": // touches args[0] MiB; says ready; waits
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		b := make([]byte, n<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("ready")
		wait()
		fmt.Println(b[0])
	case "burn":
		//lint:ignore SA5002 using a CPU is what it is for
		for {
		}
	case "interfaces":
		names, err := os.ReadDir("/sys/class/net")
		if err != nil {
			return err
		}
		for _, n := range names {
			state, _ := os.ReadFile("/sys/class/net/" + n.Name() + "/flags")
			fmt.Println(n.Name(), strings.TrimSpace(string(state)))
		}
	case "ls":
		names, err := os.ReadDir(args[0])
		for _, n := range names {
			fmt.Println(n.Name())
		}
		return err
	default:
		return fmt.Errorf("verb %q: unknown", verb)
	}
	return nil
}

func wait() {
	for {
		time.Sleep(time.Hour)
	}
}
