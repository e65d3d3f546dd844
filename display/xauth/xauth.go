// Package xauth reads and writes Xauthority files, the list of secrets by which X servers know their clients.
//
// The format is libXau's (Xau(3), Xauth.h): a sequence of entries, each a big-endian 16-bit family and four strings led
// by a big-endian 16-bit length: address, display number, protocol name, data. Berth writes one entry per session, with
// the family FamilyWild and an empty address: it matches whatever the host name is, so the one file serves every
// container.
package xauth

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// Families of Xauth.h and X.h that occur on Linux.
const (
	FamilyInternet  = 0
	FamilyInternet6 = 6
	FamilyLocal     = 256   // the address is the host name
	FamilyWild      = 65535 // matches every address
)

// MITMagicCookie is the protocol whose data is a shared secret of CookieSize random bytes.
const (
	MITMagicCookie = "MIT-MAGIC-COOKIE-1"
	CookieSize     = 16
)

// ErrFormat is returned for a file that is cut short.
var ErrFormat = errors.New("not an Xauthority file")

// Entry is one secret.
type Entry struct {
	Family  uint16
	Address []byte
	Number  string // of the display; "" matches every one
	Name    string // of the protocol
	Data    []byte
}

// NewCookie returns a new random secret.
func NewCookie() []byte {
	b := make([]byte, CookieSize)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

// Wild is the entry that admits clients on any host to the given display.
func Wild(display int, cookie []byte) Entry {
	return Entry{Family: FamilyWild, Number: strconv.Itoa(display), Name: MITMagicCookie, Data: cookie}
}

// Marshal encodes entries. It fails if a string is longer than 65,535 bytes.
func Marshal(entries ...Entry) ([]byte, error) {
	var b []byte
	for i, e := range entries {
		b = binary.BigEndian.AppendUint16(b, e.Family)
		for _, s := range [][]byte{e.Address, []byte(e.Number), []byte(e.Name), e.Data} {
			if len(s) > 0xffff {
				return nil, fmt.Errorf("xauthority entry %d: string of %d bytes is too long", i, len(s))
			}
			b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
			b = append(b, s...)
		}
	}
	return b, nil
}

// Parse decodes a file's content.
func Parse(data []byte) ([]Entry, error) {
	var entries []Entry
	for rest := data; len(rest) > 0; {
		if len(rest) < 2 {
			return nil, fmt.Errorf("%w: cut short in entry %d", ErrFormat, len(entries))
		}
		e := Entry{Family: binary.BigEndian.Uint16(rest)}
		rest = rest[2:]
		var s [4][]byte
		for i := range s {
			if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
				return nil, fmt.Errorf("%w: cut short in entry %d", ErrFormat, len(entries))
			}
			n := 2 + int(binary.BigEndian.Uint16(rest))
			s[i], rest = rest[2:n:n], rest[n:]
		}
		e.Address, e.Number, e.Name, e.Data = s[0], string(s[1]), string(s[2]), s[3]
		entries = append(entries, e)
	}
	return entries, nil
}

// Cookie returns the first MIT-MAGIC-COOKIE-1 secret that admits to the display under the family wild, or on any
// address of the others. ok is false if there is none.
func Cookie(entries []Entry, display int) (cookie []byte, ok bool) {
	for _, e := range entries {
		if e.Name == MITMagicCookie && len(e.Data) == CookieSize && (e.Number == "" || e.Number == strconv.Itoa(display)) {
			return e.Data, true
		}
	}
	return nil, false
}

// ReadFile reads an Xauthority file.
func ReadFile(path string) ([]Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("xauthority: %w", err)
	}
	entries, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("xauthority %q: %w", path, err)
	}
	return entries, nil
}

// WriteFile replaces the file at path, readable by uid only. uid or gid -1 means the caller's. The file never has other
// content, another owner or a wider mode under its name.
func WriteFile(path string, uid, gid int, entries ...Entry) (err error) {
	data, err := Marshal(entries...)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".Xauthority-*") // mode 0600
	if err != nil {
		return fmt.Errorf("xauthority %q: %w", path, errors.Unwrap(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("xauthority %q: %w", path, cause(err))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if uid != -1 || gid != -1 {
		if err = f.Chown(uid, gid); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// cause strips the temporary file's name, which means nothing to the reader.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
