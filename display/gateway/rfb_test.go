package gateway

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// script is a peer that says what it was told and remembers what it heard.
type script struct {
	io.Reader
	heard bytes.Buffer
}

func says(parts ...string) *script {
	return &script{Reader: strings.NewReader(strings.Join(parts, ""))}
}

func (s *script) Write(b []byte) (int, error) { return s.heard.Write(b) }

func u32(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

func reason(s string) string { return u32(uint32(len(s))) + s }

const (
	v33 = "RFB 003.003\n"
	v37 = "RFB 003.007\n"
	v38 = "RFB 003.008\n"
)

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want version
		err  string
	}{
		{in: v33, want: 3},
		{in: v37, want: 7},
		{in: v38, want: 8},
		{in: "RFB 003.005\n", want: 3},
		{in: "RFB 003.889\n", want: 8},
		{in: "RFB 004.001\n", want: 8},
		{in: "RFB 005.000\n", want: 8},
		{in: "RFB 003.002\n", err: "too old"},
		{in: "RFB 002.009\n", err: "too old"},
		{in: "RFB 003.008 ", err: "not an RFB peer"},
		{in: "RFB 00x.008\n", err: "not an RFB peer"},
		{in: "RFB 003/008\n", err: "not an RFB peer"},
		{in: "GET / HTTP/1", err: "not an RFB peer"},
	} {
		got, err := parseVersion([12]byte([]byte(tt.in)))
		if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("parseVersion(%q) = %d, %v; want %d, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
}

func TestVNCResponse(t *testing.T) {
	challenge := [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	for _, tt := range []struct{ password, want string }{
		// Made with: openssl enc -des-ecb -nopad -provider legacy -K <password, each byte's bits mirrored>
		{"password", "b866924125c8eebb9debc1db61c538e2"},
		{"abc", "9c22b4f2088c3465a1562c4b9d6edb04"},
	} {
		got, err := vncResponse(challenge, tt.password)
		if err != nil || hex.EncodeToString(got[:]) != tt.want {
			t.Errorf("vncResponse(%q) = %x, %v; want %s", tt.password, got, err, tt.want)
		}
	}
	long, _ := vncResponse(challenge, "password")
	if err := checkVNCResponse(challenge, long, "passwordless"); err != nil {
		t.Errorf("only eight bytes count: %v", err)
	}
	empty, _ := vncResponse(challenge, "")
	if err := checkVNCResponse(challenge, empty, ""); !errors.Is(err, errWrongPassword) {
		t.Errorf("empty password: got %v, want %v", err, errWrongPassword)
	}
}

func TestClientHandshake(t *testing.T) {
	wrong := func(_, _ [16]byte) error { return errWrongPassword }
	right := func(_, _ [16]byte) error { return nil }
	const response = "0123456789abcdef"
	for _, tt := range []struct {
		name  string
		says  string
		check func(challenge, response [16]byte) error
		want  string // what the client hears; C stands for the challenge
		err   string
	}{
		{name: "none_3.8", says: v38 + "\x01", want: v38 + "\x01\x01" + u32(0)},
		{name: "none_3.7", says: v37 + "\x01", want: v38 + "\x01\x01"},
		{name: "none_3.3", says: v33, want: v38 + u32(1)},
		{name: "auth_3.8", says: v38 + "\x02" + response, check: right, want: v38 + "\x01\x02C" + u32(0)},
		{name: "auth_3.7", says: v37 + "\x02" + response, check: right, want: v38 + "\x01\x02C" + u32(0)},
		{name: "auth_3.3", says: v33 + response, check: right, want: v38 + u32(2) + "C" + u32(0)},
		{name: "wrong_3.8", says: v38 + "\x02" + response, check: wrong, err: "wrong password",
			want: v38 + "\x01\x02C" + u32(1) + reason("wrong password")},
		{name: "wrong_3.3", says: v33 + response, check: wrong, err: "wrong password", want: v38 + u32(2) + "C" + u32(1)},
		{name: "chooses_none_when_not_offered", says: v38 + "\x01", check: right, err: "chose type 1", want: v38 + "\x01\x02"},
		{name: "leaves", says: v38 + "\x02" + "012", check: right, err: "unexpected EOF", want: v38 + "\x01\x02C"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer := says(tt.says)
			var challenge [16]byte
			c, err := greetVersion(peer)
			if err == nil {
				check := tt.check
				if check != nil {
					check = func(ch, resp [16]byte) error {
						challenge = ch
						if string(resp[:]) != response {
							t.Errorf("response = %q; want %q", resp, response)
						}
						return tt.check(ch, resp)
					}
				}
				err = c.security(check)
				if err == nil {
					err = c.result("")
				} else if errors.Is(err, errWrongPassword) {
					if e := c.result(err.Error()); e != nil {
						t.Fatal(e)
					}
				}
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error = %v; want %q", err, tt.err)
			}
			got := peer.heard.Bytes()
			// The challenge is random: 16 bytes after the security type.
			if at := strings.Index(tt.want, "C"); at >= 0 {
				if len(got) < at+16 {
					t.Fatalf("heard %q; want a challenge at %d", got, at)
				}
				if tt.err == "" && !bytes.Equal(got[at:at+16], challenge[:]) {
					t.Errorf("challenge checked is not the one sent")
				}
				got = append(append(bytes.Clone(got[:at]), 'C'), got[at+16:]...)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	for v, want := range map[version]string{3: u32(0) + reason("no"), 7: "\x00" + reason("no"), 8: "\x00" + reason("no")} {
		peer := says()
		if err := (&client{ReadWriter: peer, version: v}).refuse("no"); err != nil {
			t.Fatal(err)
		}
		if got := peer.heard.String(); got != want {
			t.Errorf("refuse in 3.%d = %q; want %q", v, got, want)
		}
	}
}

func TestServerHandshake(t *testing.T) {
	for _, tt := range []struct{ name, says, want, err string }{
		{name: "3.8", says: v38 + "\x02\x02\x01" + u32(0), want: v38 + "\x01"},
		{name: "3.7", says: v37 + "\x01\x01", want: v37 + "\x01"},
		{name: "3.3", says: v33 + u32(1), want: v33},
		{name: "newer", says: "RFB 005.000\n\x01\x01" + u32(0), want: v38 + "\x01"},
		{name: "wants_password", says: v38 + "\x01\x02", want: v38, err: "must run without authentication"},
		{name: "wants_password_3.3", says: v33 + u32(2), want: v33, err: "must run without authentication"},
		{name: "refuses", says: v38 + "\x00" + reason("too many"), want: v38, err: `"too many"`},
		{name: "refuses_3.3", says: v33 + u32(0) + reason("too many"), want: v33, err: `"too many"`},
		{name: "fails", says: v38 + "\x01\x01" + u32(1) + reason("no"), want: v38 + "\x01", err: `"no"`},
		{name: "endless_reason", says: v38 + "\x00" + u32(1<<31) + strings.Repeat("x", 5000), want: v38, err: "refused"},
		// Nothing is said to something that is not a VNC server.
		{name: "other_protocol", says: "HTTP/1.1 200 OK\r\n", want: "", err: "not an RFB peer"},
		{name: "silent", says: "", want: "", err: "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			peer := says(tt.says)
			err := joinServer(peer)
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error = %v; want %q", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, peer.heard.String()); diff != "" {
				t.Errorf("heard (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzClientHandshake: whatever a client sends, only the right response lets it in, and reads stop at its end.
func FuzzClientHandshake(f *testing.F) {
	f.Add([]byte(v38 + "\x02" + "0123456789abcdef"))
	f.Add([]byte(v33 + "0123456789abcdef"))
	f.Add([]byte("RFB 003.889\n\x01"))
	f.Fuzz(func(t *testing.T, in []byte) {
		peer := says(string(in))
		c, err := greetVersion(peer)
		if err != nil {
			return
		}
		if err := c.security(func(ch, resp [16]byte) error { return checkVNCResponse(ch, resp, "secret") }); err == nil {
			t.Errorf("let in by %q", in)
		}
	})
}

// FuzzServerHandshake: whatever a server sends, memory stays bounded and a success means that None was agreed.
func FuzzServerHandshake(f *testing.F) {
	f.Add([]byte(v38 + "\x02\x02\x01" + u32(0)))
	f.Add([]byte(v33 + u32(1)))
	f.Add([]byte(v38 + "\x00" + u32(1<<32-1)))
	f.Fuzz(func(t *testing.T, in []byte) {
		peer := says(string(in))
		if err := joinServer(peer); err != nil {
			return
		}
		v, err := parseVersion([12]byte(in[:12]))
		if err != nil || v != 3 && !bytes.HasSuffix(peer.heard.Bytes(), []byte{secNone}) {
			t.Errorf("joined %q, said %q", in, peer.heard.Bytes())
		}
	})
}
