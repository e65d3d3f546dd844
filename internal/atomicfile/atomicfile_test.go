package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// tree is what lies in dir: a file's content, a link's text, or another kind of file's mode.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			out[e.Name()] = string(data)
		case e.Type()&os.ModeSymlink != 0:
			if out[e.Name()], err = os.Readlink(path); err != nil {
				t.Fatal(err)
			}
		default:
			out[e.Name()] = e.Type().String()
		}
	}
	return out
}

func TestOutput(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string // contents; "-> x" is a link to x
		path  string
		want  map[string]string
		err   string
	}{
		{"new", nil, "a", map[string]string{"a": "new"}, ""},
		{"replaced", map[string]string{"a": "old"}, "a", map[string]string{"a": "new"}, ""},
		{"link", map[string]string{"a": "-> b", "b": "old"}, "a", map[string]string{"a": "b", "b": "new"}, ""},
		{"links", map[string]string{"a": "-> b", "b": "-> ./c", "c": "old"}, "a", map[string]string{"a": "b", "b": "./c", "c": "new"}, ""},
		{"link_to_nothing", map[string]string{"a": "-> b"}, "a", map[string]string{"a": "b", "b": "new"}, ""},
		{"link_to_device", map[string]string{"a": "-> /dev/null"}, "a", map[string]string{"a": "/dev/null"}, ""},
		{"link_in_circles", map[string]string{"a": "-> b", "b": "-> a"}, "a", map[string]string{"a": "b", "b": "a"}, `file "a": too many levels of symbolic links`},
		{"no_directory", nil, "d/a", map[string]string{}, `file "d/a": no such file or directory`},
		{"directory", nil, ".", map[string]string{}, `file ".": is a directory`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			for name, text := range tt.files {
				var err error
				if link, ok := strings.CutPrefix(text, "-> "); ok {
					err = os.Symlink(link, name)
				} else {
					err = os.WriteFile(name, []byte(text), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			msg := ""
			if err := Output(tt.path, strings.NewReader("new"), 0o644); err != nil {
				msg = err.Error()
			}
			if msg != tt.err {
				t.Errorf("Output = %q; want %q", msg, tt.err)
			}
			if diff := cmp.Diff(tt.want, tree(t, ".")); diff != "" {
				t.Errorf("the directory (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOutputIntoFIFO(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		data, err := os.ReadFile(fifo)
		if err != nil {
			t.Error(err)
		}
		got <- string(data)
	}()
	if err := Output(fifo, strings.NewReader("new"), 0o644); err != nil {
		t.Error(err)
		if err := os.WriteFile(fifo, nil, 0); err != nil { // for the reader
			t.Fatal(err)
		}
	}
	if text := <-got; text != "new" {
		t.Errorf("the FIFO's reader got %q; want %q", text, "new")
	}
	if info, err := os.Lstat(fifo); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the FIFO is %v, %v", info, err)
	}
}

// TestOutputIntoDescriptor: /dev/fd/N of a file is that file, which others may go on writing to.
func TestOutputIntoDescriptor(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("old "); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), link); err != nil {
		t.Fatal(err)
	}
	if err := Output(link, strings.NewReader("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(io.NewSectionReader(f, 0, 100)); err != nil || string(data) != "old new" {
		t.Errorf("behind the descriptor lies %q, %v; want %q", data, err, "old new")
	}
}

// TestFailureLeavesTheOldFile and nothing beside it.
func TestFailureLeavesTheOldFile(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("a", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("cut")
	err := Output("a", io.MultiReader(strings.NewReader("new"), iotest.ErrReader(cut)), 0o644)
	if !errors.Is(err, cut) || err.Error() != `file "a": cut` {
		t.Errorf("Output = %v", err)
	}
	if diff := cmp.Diff(map[string]string{"a": "old"}, tree(t, ".")); diff != "" {
		t.Errorf("the directory (-want +got):\n%s", diff)
	}
}
