package orchestrator_test

import (
	"errors"
	"testing"

	"berth/orchestrator"
)

const digestA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestNormalizeRef(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"debian", "docker.io/library/debian:latest"},
		{"debian:13", "docker.io/library/debian:13"},
		{"some/thing", "docker.io/some/thing:latest"},
		{"localhost/berth/xfce", "localhost/berth/xfce:latest"},
		{"localhost:5000/a/b:c", "localhost:5000/a/b:c"},
		{"host.example/a@" + digestA, "host.example/a@" + digestA},
		{"host.example/a:tag@" + digestA, "host.example/a@" + digestA},
	} {
		got, err := orchestrator.NormalizeRef(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("NormalizeRef(%q) = %q, %v; want %q", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "a:", "a@sha256:12", "../x", "http://x/y", "a\x00b", digestA[7:]} {
		if got, err := orchestrator.NormalizeRef(bad); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("NormalizeRef(%q) = %q, %v; want ErrInvalid", bad, got, err)
		}
	}
}

func FuzzNormalizeRef(f *testing.F) {
	f.Add("debian:13")
	f.Add("localhost:5000/a/b@" + digestA)
	f.Fuzz(func(t *testing.T, in string) {
		got, err := orchestrator.NormalizeRef(in)
		if err != nil {
			return
		}
		again, err := orchestrator.NormalizeRef(got)
		if err != nil || again != got {
			t.Errorf("NormalizeRef(%q) = %q, whose own normal form is %q, %v", in, got, again, err)
		}
	})
}
