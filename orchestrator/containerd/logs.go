package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A container's output is appended to NAME.log by the pod's shim, which needs no process of ours: a killed daemon loses
// nothing. The file is kept small from the front: the oldest part is given back to the file system as a hole
// (fallocate(2), FALLOC_FL_PUNCH_HOLE), so that offsets, the shim's and the readers', stay what they are.
const (
	logLimit  = 16 << 20 // data above which the front is dropped
	logKeep   = 8 << 20  // data that stays
	logCheck  = 5 * time.Second
	holeAlign = 4096
)

// Logs implements orchestrator.Engine.
func (e *Engine) Logs(ctx context.Context, pod, name string, tail int, follow bool) (io.ReadCloser, error) {
	id, err := lookupID(pod, name)
	if err != nil {
		return nil, containerErr(pod, name, err)
	}
	if _, err := e.client.ContainerService().Get(e.withNamespace(ctx), id); err != nil {
		return nil, containerErr(pod, name, err)
	}
	path := e.logFile(pod, name)
	// The shim makes the file when the container is created; a follower may come before.
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, containerErr(pod, name, fmt.Errorf("log: %w", err))
	}
	r := &logReader{ctx: ctx, f: f}
	if err := r.seek(tail); err != nil {
		f.Close()
		return nil, containerErr(pod, name, fmt.Errorf("log: %w", err))
	}
	if follow {
		if err := r.watch(path); err != nil {
			f.Close()
			return nil, containerErr(pod, name, fmt.Errorf("log: %w", err))
		}
	}
	return r, nil
}

// logReader reads a log file, and waits at its end for more if it watches. Close may be called while Read waits.
type logReader struct {
	ctx  context.Context
	f    *os.File
	note *os.File // inotify(7) descriptor; nil without follow
	stop func() bool
	once sync.Once
	buf  [4096]byte

	middle bool // the last byte read was not the end of a line
}

// watch starts to follow. It comes before the first read, so nothing that is written after a read goes unnoticed.
func (r *logReader) watch(path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w; raise sysctl fs.inotify.max_user_instances", err)
	}
	// IN_ATTRIB tells of the removal: while we hold the file open, there is no IN_DELETE_SELF.
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY|unix.IN_ATTRIB); err != nil {
		unix.Close(fd)
		return fmt.Errorf("inotify: %w", err)
	}
	r.note = os.NewFile(uintptr(fd), "inotify")
	r.stop = context.AfterFunc(r.ctx, func() { r.note.SetReadDeadline(time.Unix(1, 0)) })
	return nil
}

func (r *logReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if err := r.ctx.Err(); err != nil && r.note != nil {
			return 0, io.EOF
		}
		removed := r.note == nil || r.removed()
		n, err := r.f.Read(p)
		if n > 0 && bytes.IndexByte(p[:n], 0) >= 0 {
			skipped, serr := r.skipHole(n)
			if serr != nil {
				return 0, fmt.Errorf("log: %w", serr)
			}
			if skipped {
				if !r.middle {
					continue
				}
				p[0], n = '\n', 1 // what was read of the line is all there is
			}
		}
		if n > 0 {
			r.middle = p[n-1] != '\n'
		}
		if n > 0 || err != io.EOF || removed {
			return n, err
		}
		if _, err := r.note.Read(r.buf[:]); err != nil {
			if r.ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
				return 0, io.EOF
			}
			return 0, err
		}
	}
}

// skipHole goes on behind the hole at the front, if the n bytes just read lie in it: the log has grown faster than it was read,
// and a hole reads as zeros. Else it changes nothing.
func (r *logReader) skipHole(n int) (bool, error) {
	at, err := r.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return false, err
	}
	end, err := r.f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	begin, err := dataStart(r.f, end)
	if err != nil {
		return false, err
	}
	inside := begin > at-int64(n)
	if inside {
		at = begin
	}
	_, err = r.f.Seek(at, io.SeekStart)
	return inside, err
}

// removed tells whether the file has no name any more.
func (r *logReader) removed() bool {
	var st unix.Stat_t
	return unix.Fstat(int(r.f.Fd()), &st) != nil || st.Nlink == 0
}

func (r *logReader) Close() error {
	var err error
	r.once.Do(func() {
		if r.note != nil {
			r.stop()
			err = r.note.Close()
		}
		err = errors.Join(err, r.f.Close())
	})
	return err
}

// seek goes to where the last tail lines begin, or, with a negative tail, to the first line that is there.
func (r *logReader) seek(tail int) error {
	end, err := r.f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	begin, err := dataStart(r.f, end)
	if err != nil {
		return err
	}
	if tail < 0 {
		_, err = r.f.Seek(begin, io.SeekStart)
		return err
	}
	if tail == 0 {
		_, err = r.f.Seek(end, io.SeekStart)
		return err
	}
	// Backwards, a block at a time, until the newline before the first wanted line; one at the very end counts for no line.
	const block = 64 << 10
	buf := make([]byte, block)
	for pos, lines := end, 0; pos > begin; {
		n := min(int64(block), pos-begin)
		if _, err := r.f.ReadAt(buf[:n], pos-n); err != nil {
			return err
		}
		chunk := buf[:n]
		if pos == end && chunk[n-1] == '\n' {
			chunk = chunk[:n-1]
		}
		for {
			i := bytes.LastIndexByte(chunk, '\n')
			if i < 0 {
				break
			}
			if lines++; lines == tail {
				_, err := r.f.Seek(pos-n+int64(i)+1, io.SeekStart)
				return err
			}
			chunk = chunk[:i]
		}
		pos -= n
	}
	_, err = r.f.Seek(begin, io.SeekStart)
	return err
}

// dataStart returns the offset of the first whole line behind a hole at the front.
func dataStart(f *os.File, end int64) (int64, error) {
	if end == 0 {
		return 0, nil
	}
	start, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return end, nil // nothing but a hole
	}
	if err != nil {
		return 0, err
	}
	if start == 0 {
		return 0, nil
	}
	buf := make([]byte, 64<<10)
	n, err := f.ReadAt(buf, start)
	if err != nil && err != io.EOF {
		return 0, err
	}
	// A line longer than that is shown from its middle.
	return start + int64(bytes.IndexByte(buf[:n], '\n')+1), nil
}

// trimLogs keeps all logs below logLimit until ctx ends. One stat(2) per container and round.
func (e *Engine) trimLogs(ctx context.Context) {
	tick := time.NewTicker(logCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := trimTree(e.layout.Logs(), logLimit, logKeep); err != nil {
			e.log.Warn("cannot shorten a log", "error", err)
		}
	}
}

func trimTree(dir string, limit, keep int64) error {
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".log") {
			return err
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil
		}
		if err != nil {
			return err
		}
		return trimLog(name, info, limit, keep)
	})
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// trimLog drops the front of a file that has more than limit bytes of data, so that about keep bytes stay.
func trimLog(name string, info fs.FileInfo, limit, keep int64) error {
	const sector = 512 // unit of st_blocks, stat(2)
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Blocks*sector <= limit {
		return nil
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	cut := (info.Size() - keep) / holeAlign * holeAlign
	if cut <= 0 {
		return nil
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, cut)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// The file system knows no holes: all of it goes. The shim appends, so it goes on at the new end.
		err = f.Truncate(0)
	}
	return err
}
