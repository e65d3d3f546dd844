package session

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync"
)

// mergeLines reads all of logs line by line and returns one stream in which each line begins with its log's name.
// Without follow the logs come one after the other; with it, lines come as they are written. Closing it ends all.
func mergeLines(cancel context.CancelFunc, logs []io.ReadCloser, names []string, width int, follow bool) io.ReadCloser {
	pr, pw := io.Pipe()
	copyLog := func(i int) error {
		r := bufio.NewReader(logs[i])
		for {
			line, err := r.ReadString('\n')
			if line != "" {
				if line[len(line)-1] != '\n' {
					line += "\n"
				}
				if _, err := fmt.Fprintf(pw, "%-*s | %s", width, names[i], line); err != nil {
					return err
				}
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
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
