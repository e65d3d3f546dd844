// Package execstream carries a process's standard streams over the connection that
// POST /v1/sessions/{name}/exec has upgraded to the protocol "berth-exec/1".
//
// # Frames
//
// After the answer 101 Switching Protocols both sides send frames: one byte kind, the payload's length as a 32-bit
// big-endian number of at most 65536, the payload.
//
//	kind        from    payload
//	0 stdin     client  bytes for the process
//	1 stdout    server  bytes of the process; with a TTY, all of them
//	2 stderr    server  bytes of the process
//	3 resize    client  columns and rows, 16-bit big-endian each
//	4 exit      server  exit code, signed 32-bit big-endian; the last frame
//	5 error     server  api.Error as JSON: the process could not run or its end is not known; the last frame
//	6 eof       client  empty: no more stdin
//	7 window    server  32-bit big-endian number of stdin bytes the process has taken
//
// # Flow
//
// The client may have Window bytes of stdin under way that no window frame has acknowledged. So the server always goes
// on reading, a process that does not read its stdin never delays a resize, and a client that is gone is noticed at
// once: the server then kills the process. In the other direction the connection itself pushes back.
package execstream

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"berth/orchestrator"
	"berth/session/api"
)

// Protocol is the value of the Upgrade header.
const Protocol = "berth-exec/1"

// Window is how many bytes of stdin may be unacknowledged.
const Window = 256 << 10

// MaxPayload bounds a frame's payload in bytes.
const MaxPayload = 64 << 10

const chunk = 32 << 10 // what one read of a stream turns into at most

// Kind of a frame.
type Kind byte

// Kinds; the values are on the wire.
const (
	Stdin   Kind = 0
	Stdout  Kind = 1
	Stderr  Kind = 2
	Resize  Kind = 3
	Exit    Kind = 4
	Failure Kind = 5
	EOF     Kind = 6
	Acked   Kind = 7
)

// Frame is one frame.
type Frame struct {
	Kind    Kind
	Payload []byte
}

// Append encodes f behind b.
func (f Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Payload)))
	return append(b, f.Payload...)
}

// Read reads one frame. It returns io.EOF only at a frame's border.
func Read(r io.Reader) (Frame, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Kind: Kind(head[0])}
	n := binary.BigEndian.Uint32(head[1:])
	if f.Kind > Acked {
		return Frame{}, fmt.Errorf("frame of kind %d: %w", head[0], orchestrator.ErrInvalid)
	}
	if n > MaxPayload {
		return Frame{}, fmt.Errorf("frame of %d bytes: more than %d: %w", n, MaxPayload, orchestrator.ErrInvalid)
	}
	want := -1
	switch f.Kind {
	case Resize, Exit, Acked:
		want = 4
	case EOF:
		want = 0
	}
	if want >= 0 && int(n) != want {
		return Frame{}, fmt.Errorf("frame of kind %d: %d bytes instead of %d: %w", head[0], n, want, orchestrator.ErrInvalid)
	}
	f.Payload = make([]byte, n)
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}

// sender writes whole frames from several goroutines.
type sender struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *sender) send(k Kind, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.w.Write(Frame{k, payload}.Append(make([]byte, 0, 5+len(payload))))
	return err
}

// output is a stream of the process as an io.Writer.
type output struct {
	*sender
	kind Kind
}

func (o output) Write(p []byte) (int, error) {
	done := 0
	for len(p) > 0 {
		n := min(len(p), chunk)
		if err := o.send(o.kind, p[:n]); err != nil {
			return done, err
		}
		done += n
		p = p[n:]
	}
	return done, nil
}

// input holds the stdin bytes that have come and the process has not taken yet.
type input struct {
	*sender
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	err  error // io.EOF after eof, else why there will be no more
}

func (in *input) Read(p []byte) (int, error) {
	in.mu.Lock()
	for len(in.buf) == 0 && in.err == nil {
		in.cond.Wait()
	}
	if len(in.buf) == 0 {
		defer in.mu.Unlock()
		return 0, in.err
	}
	n := copy(p, in.buf)
	in.buf = in.buf[n:]
	in.mu.Unlock()
	// A failed acknowledgement means that the client is gone, which the reading side notices by itself.
	_ = in.send(Acked, binary.BigEndian.AppendUint32(nil, uint32(n)))
	return n, nil
}

// put reports whether the bytes fitted into the window.
func (in *input) put(p []byte) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.buf)+len(p) > Window {
		return false
	}
	in.buf = append(in.buf, p...)
	in.cond.Broadcast()
	return true
}

func (in *input) close(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	in.cond.Broadcast()
}

// Serve is the server's side: it calls run once with streams that lie on conn, cancels run's context when the client
// is gone, tells the client the outcome and returns. r is conn's reading side with what is already buffered.
// Closing conn is the caller's; nothing reads from r after the caller has done so.
func Serve(ctx context.Context, conn io.Writer, r io.Reader, req api.ExecRequest,
	run func(context.Context, orchestrator.ExecSpec) (int, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &sender{w: conn}
	in := &input{sender: out}
	in.cond = sync.NewCond(&in.mu)
	resize := make(chan orchestrator.TermSize, 1)
	if req.Size != nil {
		resize <- *req.Size
	}
	go func() {
		defer cancel()
		for {
			f, err := Read(r)
			if err != nil {
				in.close(io.ErrUnexpectedEOF)
				return
			}
			switch f.Kind {
			case Stdin:
				if !in.put(f.Payload) {
					in.close(fmt.Errorf("more than %d bytes not acknowledged: %w", Window, orchestrator.ErrInvalid))
					return
				}
			case EOF:
				in.close(io.EOF)
			case Resize:
				size := orchestrator.TermSize{Cols: binary.BigEndian.Uint16(f.Payload), Rows: binary.BigEndian.Uint16(f.Payload[2:])}
				select { // only the newest size matters
				case <-resize:
				default:
				}
				resize <- size
			}
		}
	}()
	spec := orchestrator.ExecSpec{Command: req.Command, Env: req.Env, Cwd: req.Cwd, TTY: req.TTY, Stdin: in,
		Stdout: output{out, Stdout}, Stderr: output{out, Stderr}}
	if req.Root {
		zero := 0
		spec.UID, spec.GID = &zero, &zero
	}
	if req.TTY {
		spec.Resize = resize
	}
	code, err := run(ctx, spec)
	in.close(io.ErrClosedPipe)
	if err != nil {
		doc, jerr := json.Marshal(api.ErrorOf(err))
		if jerr != nil {
			return jerr
		}
		return errors.Join(err, out.send(Failure, doc))
	}
	return out.send(Exit, binary.BigEndian.AppendUint32(nil, uint32(int32(code))))
}

// Streams are the client's ends.
type Streams struct {
	Stdin  io.Reader // nil: the process sees an empty one
	Stdout io.Writer
	Stderr io.Writer
	Resize <-chan orchestrator.TermSize // may be nil
	// Begin is called once the daemon has taken the request, before the first copy; may be nil. Its error ends the client.
	Begin func() error
}

// Client is the client's side: it copies the streams until the process has ended and returns its exit code.
// When ctx ends, the caller must close conn. A read of s.Stdin that is blocked at the end goes on in the background and
// takes what it reads with it.
func Client(ctx context.Context, conn io.Writer, r io.Reader, s Streams) (int, error) {
	if s.Begin != nil {
		if err := s.Begin(); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &sender{w: conn}
	var mu sync.Mutex
	window, opened := Window, make(chan struct{}, 1)
	take := func() int { // waits until stdin may be sent
		for {
			mu.Lock()
			n := min(window, chunk)
			mu.Unlock()
			if n > 0 {
				return n
			}
			select {
			case <-opened:
			case <-ctx.Done():
				return 0
			}
		}
	}
	go func() {
		if s.Stdin == nil {
			_ = out.send(EOF, nil) // a broken connection shows below
			return
		}
		buf := make([]byte, chunk)
		for {
			n := take()
			if n == 0 {
				return
			}
			n, err := s.Stdin.Read(buf[:n])
			if ctx.Err() != nil {
				return
			}
			if n > 0 {
				mu.Lock()
				window -= n
				mu.Unlock()
				if out.send(Stdin, buf[:n]) != nil {
					return
				}
			}
			if err != nil {
				_ = out.send(EOF, nil)
				return
			}
		}
	}()
	if s.Resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-s.Resize:
					if !ok {
						return
					}
					p := binary.BigEndian.AppendUint16(nil, size.Cols)
					if out.send(Resize, binary.BigEndian.AppendUint16(p, size.Rows)) != nil {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	for {
		f, err := Read(r)
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			} else if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("connection to the daemon: %w", err)
		}
		switch f.Kind {
		case Stdout, Stderr:
			w := s.Stdout
			if f.Kind == Stderr {
				w = s.Stderr
			}
			if w == nil {
				continue
			}
			if _, err := w.Write(f.Payload); err != nil {
				return 0, fmt.Errorf("output: %w", err)
			}
		case Acked:
			mu.Lock()
			window += int(binary.BigEndian.Uint32(f.Payload))
			mu.Unlock()
			select {
			case opened <- struct{}{}:
			default:
			}
		case Exit:
			return int(int32(binary.BigEndian.Uint32(f.Payload))), nil
		case Failure:
			var e api.Error
			if err := json.Unmarshal(f.Payload, &e); err != nil {
				return 0, fmt.Errorf("error frame: %w", err)
			}
			return 0, &e
		}
	}
}
