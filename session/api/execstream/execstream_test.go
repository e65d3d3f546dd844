package execstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth/orchestrator"
	"berth/session/api"
)

func FuzzRead(f *testing.F) {
	f.Add(Frame{Stdin, []byte("abc")}.Append(nil))
	f.Add(Frame{Resize, []byte{0, 80, 0, 25}}.Append(nil))
	f.Add([]byte{4, 0, 0, 0, 3, 1, 2, 3})
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var again []byte
		for {
			frame, err := Read(r)
			if err != nil {
				if err == io.EOF && !bytes.Equal(again, data) {
					t.Errorf("a whole stream changed: %x to %x", data, again)
				}
				return
			}
			if len(frame.Payload) > MaxPayload {
				t.Fatalf("payload of %d bytes", len(frame.Payload))
			}
			again = frame.Append(again)
		}
	})
}

func TestReadRefuses(t *testing.T) {
	for name, data := range map[string][]byte{
		"unknown kind":   {8, 0, 0, 0, 0},
		"too long":       {0, 0, 1, 0, 1},
		"short resize":   {3, 0, 0, 0, 2, 0, 80},
		"eof with bytes": {6, 0, 0, 0, 1, 0},
	} {
		if _, err := Read(bytes.NewReader(data)); !errors.Is(err, orchestrator.ErrInvalid) {
			t.Errorf("%s: Read = %v; want invalid", name, err)
		}
	}
	if _, err := Read(bytes.NewReader([]byte{0, 0, 0, 0, 5, 'a'})); err != io.ErrUnexpectedEOF {
		t.Errorf("half a frame: Read = %v", err)
	}
}

// TestConversation runs both sides on a pipe, with more bytes in both directions than any buffer holds.
func TestConversation(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	input := strings.Repeat("0123456789abcdef", 1<<16)
	served := make(chan error, 1)
	go func() {
		served <- Serve(context.Background(), b, b, api.ExecRequest{Command: []string{"cat"}, Env: []string{"A=b"}, Cwd: "/tmp", Root: true},
			func(_ context.Context, spec orchestrator.ExecSpec) (int, error) {
				want := orchestrator.ExecSpec{Command: []string{"cat"}, Env: []string{"A=b"}, Cwd: "/tmp", UID: new(int), GID: new(int)}
				got := spec
				got.Stdin, got.Stdout, got.Stderr = nil, nil, nil
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("spec (-want +got):\n%s", diff)
				}
				n, err := io.Copy(spec.Stdout, spec.Stdin)
				return int(n >> 20), err
			})
	}()
	var out bytes.Buffer
	code, err := Client(context.Background(), a, a, Streams{Stdin: strings.NewReader(input), Stdout: &out})
	if code != 1 || err != nil || out.String() != input {
		t.Errorf("Client = %d, %v, %d bytes; want 1, nil, %d bytes", code, err, out.Len(), len(input))
	}
	if err := <-served; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func TestFailureIsCarried(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	go Serve(context.Background(), b, b, api.ExecRequest{}, func(context.Context, orchestrator.ExecSpec) (int, error) {
		return 0, api.WithHint(errors.Join(errors.New(`command "nope"`), orchestrator.ErrNotFound), "look around")
	})
	_, err := Client(context.Background(), a, a, Streams{})
	if !errors.Is(err, orchestrator.ErrNotFound) || api.ErrorOf(err).Hint != "look around" {
		t.Errorf("Client = %v", err)
	}
}

// TestWindowIsEnforced sends more stdin than was granted.
func TestWindowIsEnforced(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	served := make(chan error, 1)
	go func() {
		served <- Serve(context.Background(), b, b, api.ExecRequest{}, func(ctx context.Context, spec orchestrator.ExecSpec) (int, error) {
			<-ctx.Done() // reads nothing
			return 0, ctx.Err()
		})
	}()
	go io.Copy(io.Discard, a)
	frame := Frame{Stdin, make([]byte, MaxPayload)}.Append(nil)
	for range Window/MaxPayload + 1 {
		if _, err := a.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve = %v; want cancelled", err)
	}
}
