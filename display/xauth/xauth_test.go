package xauth

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var cookie = []byte("0123456789abcdef")

// golden is what `xauth nlist | sed s/^..../ffff/ | xauth nmerge -` leaves, the usual way to make a wild entry.
const golden = "ffff" + "0000" + "000130" + "0012" + "4d49542d4d414749432d434f4f4b49452d31" + "0010" + "30313233343536373839616263646566"

func TestWildGolden(t *testing.T) {
	got, err := Marshal(Wild(0, cookie))
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != golden {
		t.Errorf("got  %x\nwant %s", got, golden)
	}
}

func TestParseErrors(t *testing.T) {
	whole, _ := Marshal(Wild(0, cookie))
	for n := 1; n < len(whole); n++ {
		if _, err := Parse(whole[:n]); !errors.Is(err, ErrFormat) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
	if e, err := Parse(nil); err != nil || len(e) != 0 {
		t.Errorf("empty file: %v, %v", e, err)
	}
}

func TestMarshalTooLong(t *testing.T) {
	if _, err := Marshal(Entry{Data: make([]byte, 1<<16)}); err == nil {
		t.Error("65,536 bytes of data were accepted")
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Xauthority")
	want := []Entry{{Family: FamilyLocal, Address: []byte("host"), Number: "7", Name: "OTHER", Data: []byte{1}}, Wild(0, cookie)}
	for range 2 { // the second replaces the first
		if err := WriteFile(path, -1, -1, want...); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		t.Error(d)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if c, ok := Cookie(got, 0); !ok || !bytes.Equal(c, cookie) {
		t.Errorf("cookie %q, %v", c, ok)
	}
	if _, ok := Cookie(got, 1); ok {
		t.Error("a cookie for display 1 was found")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".Xauthority-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := WriteFile("/nonexistent/x", -1, -1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

// TestXauthProgram has the reference implementation read what we write.
func TestXauthProgram(t *testing.T) {
	xauth, err := exec.LookPath("xauth")
	if err != nil {
		t.Skip("xauth is not installed (Debian package xauth)")
	}
	path := filepath.Join(t.TempDir(), "Xauthority")
	if err := WriteFile(path, -1, -1, Wild(0, cookie)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(xauth, "-i", "-f", path, "nlist").Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := "ffff 0000  0001 30 0012 4d49542d4d414749432d434f4f4b49452d31 0010 " + hex.EncodeToString(cookie); strings.TrimSpace(string(out)) != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
}

func TestNewCookie(t *testing.T) {
	if a, b := NewCookie(), NewCookie(); len(a) != CookieSize || bytes.Equal(a, b) {
		t.Errorf("%x, %x", a, b)
	}
}

func FuzzParse(f *testing.F) {
	whole, _ := Marshal(Wild(0, cookie), Entry{Family: FamilyInternet6, Address: make([]byte, 16)})
	f.Add(whole)
	f.Add(whole[:7])
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := Parse(data)
		if err != nil {
			return
		}
		back, err := Marshal(entries...)
		if err != nil || !bytes.Equal(back, data) {
			t.Errorf("round trip of %x: %x, %v", data, back, err)
		}
	})
}
