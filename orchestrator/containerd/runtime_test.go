package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"berth/orchestrator"
	"berth/orchestrator/conformance"

	tasktypes "github.com/containerd/containerd/api/types/task"
)

// A runtime that is not runc may keep its created processes waiting in another way: they are started by the runtime.
func TestOtherRuntime(t *testing.T) {
	for _, c := range []struct {
		name     string
		says     string // as its version; "" means crun itself
		releases bool
	}{
		{"crun", "", false},
		{"says_crun", "crun version 1.8.1", false},
		{"says_runc", "runc version 9.9.9", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t, "overlayfs")
			var err error
			if c.says == "" {
				if h.runtime, err = exec.LookPath("crun"); err != nil {
					t.Skip("no crun here")
				}
			} else {
				h.runtime = filepath.Join(t.TempDir(), "runtime")
				script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = --version ] && { echo %s; exit; }\nexec %s/runc \"$@\"\n", c.says, h.layout.Libexec)
				if err := os.WriteFile(h.runtime, []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			e := h.open(t)
			defer e.Close()
			if e.releases != c.releases {
				t.Errorf("releases: got %v, want %v", e.releases, c.releases)
			}
			if c.says == "" && e.cgroups.hybrid {
				t.Skip("crun refuses hosts with hybrid cgroups")
			}
			h.importImage(t, e)
			ctx := t.Context()
			if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "p"}); err != nil {
				t.Fatal(err)
			}
			if err := e.CreateContainer(ctx, "p", orchestrator.ContainerSpec{Name: "c", Image: conformance.ImageRef, Command: []string{"toolbox", "echo", "hello"}}); err != nil {
				t.Fatal(err)
			}
			// The shim knows of a start that went through it.
			anchor, err := e.task(e.withNamespace(ctx), "p")
			if err != nil || (anchor.Status == tasktypes.Status_RUNNING) == c.releases {
				t.Errorf("the anchor is %v, %v", anchor.GetStatus(), err)
			}
			begin := time.Now()
			for range 2 {
				if _, err := e.StartContainer(ctx, "p", "c"); err != nil {
					t.Error(err)
				}
				within(t, "the program ends", func() bool {
					st, err := e.Container(ctx, "p", "c")
					return err == nil && st.State == orchestrator.StateExited && st.ExitCode == 0
				})
			}
			if took := time.Since(begin); took > releaseTimeout/2 {
				t.Errorf("two starts took %v", took)
			}
			if err := e.RemovePod(ctx, "p"); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		h := newHost(t, "overlayfs")
		_, err := New(t.Context(), Options{Layout: h.layout, Runtime: "/nonexistent/crun"})
		if !errors.Is(err, orchestrator.ErrUnavailable) {
			t.Errorf("got %v", err)
		}
	})
}

// The socket of a pod's shim lies where Berth looks for it, and is gone with the pod.
func TestShimSocket(t *testing.T) {
	h := newHost(t, "overlayfs")
	e := h.open(t)
	defer e.Close()
	ctx := t.Context()
	if _, err := e.CreatePod(ctx, orchestrator.PodSpec{ID: "p"}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(e.shimSocket("p")); err != nil || fi.Mode().Type() != os.ModeSocket {
		t.Errorf("socket: %v, %v", fi, err)
	}
	if err := e.RemovePod(ctx, "p"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(e.shimSocket("p")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket of a removed pod: %v", err)
	}
}
