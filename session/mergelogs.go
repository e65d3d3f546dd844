package session

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxLine is the longest piece of a log that is held at a time. What a session's programs write is theirs to choose; one
// that writes without line breaks must not fill the daemon's memory.
const maxLine = 64 << 10

// mergeLines reads all of logs line by line and returns one stream in which each line begins with its log's name. A line
// longer than maxLine comes as several. Without follow the logs come one after the other; with it, lines come as they are written. Closing it ends all.
func mergeLines(cancel context.CancelFunc, logs []io.ReadCloser, names []string, width int, follow bool) io.ReadCloser {
	pr, pw := io.Pipe()
	copyLog := func(i int) error {
		r := bufio.NewReaderSize(logs[i], maxLine)
		for continued := false; ; {
			line, err := r.ReadSlice('\n')
			cut := errors.Is(err, bufio.ErrBufferFull)
			text := bytes.TrimSuffix(line, []byte("\n"))
			if len(text) > 0 || len(line) > 0 && !continued { // a break right behind the last piece ends that one
				if _, err := fmt.Fprintf(pw, "%-*s | %s\n", width, names[i], text); err != nil {
					return err
				}
			}
			continued = cut
			switch {
			case cut:
			case err == io.EOF:
				return nil
			case err != nil:
				return err
			}
		}
	}
	go func() {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var first error
		for i := range logs {
			run := func() {
				err := copyLog(i)
				mu.Lock()
				defer mu.Unlock()
				if first == nil {
					first = err
				}
			}
			if follow {
				wg.Go(run)
			} else {
				run()
			}
		}
		wg.Wait()
		pw.CloseWithError(first) // nil means io.EOF
	}()
	return &mergedLogs{pr, cancel, logs}
}

type mergedLogs struct {
	*io.PipeReader
	cancel context.CancelFunc
	logs   []io.ReadCloser
}

func (m *mergedLogs) Close() error {
	m.cancel()
	for _, l := range m.logs {
		l.Close()
	}
	return m.PipeReader.Close()
}
