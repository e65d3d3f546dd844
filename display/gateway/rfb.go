package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// version is the minor number of RFB 3.x, as spoken on one connection: 3, 7 or 8 (RFC 6143 section 7.1.1).
type version int

const ourVersion version = 8

// Security types, RFC 6143 section 7.2.
const (
	secInvalid = 0
	secNone    = 1
	secVNCAuth = 2
)

// SecurityResult, RFC 6143 section 7.1.3.
const (
	resultOK     = 0
	resultFailed = 1
)

// maxReason bounds the reason strings we are ready to read from a server.
const maxReason = 4096

// errWrongPassword is returned by the check of greetClient for a response that does not fit.
var errWrongPassword = errors.New("wrong password")

// versionMessage is the 12-byte ProtocolVersion message.
func (v version) message() []byte { return fmt.Appendf(nil, "RFB 003.%03d\n", int(v)) }

// parseVersion reads a ProtocolVersion message. Numbers other than 3.3, 3.7 and 3.8 are taken as the highest of these
// that is not above them: RFC 6143 section 7.1.1 says 3.3 for all others, but the ones met in practice (3.889 of Apple's
// server, 4.x and 5.x of RealVNC's) all speak 3.8, and every common client treats them so.
func parseVersion(b [12]byte) (version, error) {
	bad := func() (version, error) { return 0, fmt.Errorf("rfb version %q: not an RFB peer", b[:]) }
	if string(b[:4]) != "RFB " || b[7] != '.' || b[11] != '\n' {
		return bad()
	}
	number := func(digits []byte) (n int, ok bool) {
		for _, d := range digits {
			if d < '0' || d > '9' {
				return 0, false
			}
			n = n*10 + int(d-'0')
		}
		return n, true
	}
	major, ok1 := number(b[4:7])
	minor, ok2 := number(b[8:11])
	switch {
	case !ok1 || !ok2:
		return bad()
	case major < 3 || major == 3 && minor < 3:
		return 0, fmt.Errorf("rfb version %d.%d: too old, 3.3 is the first that works", major, minor)
	case major > 3 || minor >= 8:
		return 8, nil
	case minor == 7:
		return 7, nil
	default:
		return 3, nil
	}
}

func readVersion(r io.Reader) (version, error) {
	var b [12]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, fmt.Errorf("rfb version: %w", err)
	}
	return parseVersion(b)
}

// client is a viewer in its handshake with us, where we are the server.
type client struct {
	io.ReadWriter
	version version
	auth    bool // VNC Authentication is used, not None
}

// greetVersion exchanges versions with a client (RFC 6143 section 7.1.1).
func greetVersion(rw io.ReadWriter) (*client, error) {
	if _, err := rw.Write(ourVersion.message()); err != nil {
		return nil, fmt.Errorf("rfb version: %w", err)
	}
	v, err := readVersion(rw)
	if err != nil {
		return nil, err
	}
	return &client{ReadWriter: rw, version: v}, nil
}

// security does the security handshake (RFC 6143 section 7.1.2) up to the SecurityResult, which is left to result.
// With check nil the type is None; else it is VNC Authentication and check judges the client's response.
// An error of check has not been told to the client yet either.
func (c *client) security(check func(challenge, response [16]byte) error) error {
	c.auth = check != nil
	kind := byte(secNone)
	if c.auth {
		kind = secVNCAuth
	}
	if c.version == 3 {
		// RFC 6143 appendix A.1: in 3.3 the server decides.
		if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(kind))); err != nil {
			return fmt.Errorf("rfb security: %w", err)
		}
	} else {
		if _, err := c.Write([]byte{1, kind}); err != nil {
			return fmt.Errorf("rfb security: %w", err)
		}
		var chosen [1]byte
		if _, err := io.ReadFull(c, chosen[:]); err != nil {
			return fmt.Errorf("rfb security: %w", err)
		}
		if chosen[0] != kind {
			return fmt.Errorf("rfb security: client chose type %d, offered was %d", chosen[0], kind)
		}
	}
	if !c.auth {
		return nil
	}
	// RFC 6143 section 7.2.2.
	challenge, err := newChallenge()
	if err != nil {
		return err
	}
	if _, err := c.Write(challenge[:]); err != nil {
		return fmt.Errorf("rfb challenge: %w", err)
	}
	var response [16]byte
	if _, err := io.ReadFull(c, response[:]); err != nil {
		return fmt.Errorf("rfb challenge: %w", err)
	}
	return check(challenge, response)
}

// result tells the client how the security handshake ended: with success if reason is "" (RFC 6143 section 7.1.3).
func (c *client) result(reason string) error {
	if !c.auth && c.version < 8 {
		return nil // RFC 6143 appendix A: 3.3 and 3.7 send no SecurityResult after None
	}
	msg := binary.BigEndian.AppendUint32(nil, resultOK)
	if reason != "" {
		msg = binary.BigEndian.AppendUint32(nil, resultFailed)
		if c.version >= 8 { // older ones just see the connection close
			msg = appendString(msg, reason)
		}
	}
	_, err := c.Write(msg)
	return err
}

// refuse ends the handshake before a security type was offered, with a reason every version can show (RFC 6143
// section 7.1.2, appendix A.1).
func (c *client) refuse(reason string) error {
	msg := []byte{secInvalid}
	if c.version == 3 {
		msg = binary.BigEndian.AppendUint32(nil, secInvalid)
	}
	_, err := c.Write(appendString(msg, reason))
	return err
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// joinServer does the handshake with a VNC server that asks for no authentication, up to and with SecurityResult. The
// next message is the viewer's ClientInit. It writes nothing to a peer that has not introduced itself as an RFB server.
func joinServer(rw io.ReadWriter) error {
	v, err := readVersion(rw)
	if err != nil {
		return err
	}
	if _, err := rw.Write(min(v, ourVersion).message()); err != nil {
		return fmt.Errorf("rfb version: %w", err)
	}
	if v == 3 {
		kind, err := readUint32(rw)
		switch {
		case err != nil:
			return fmt.Errorf("rfb security: %w", err)
		case kind == secInvalid:
			return refused(rw)
		case kind != secNone:
			return fmt.Errorf("rfb security: server insists on type %d; it must run without authentication", kind)
		}
		return nil
	}
	var n [1]byte
	if _, err := io.ReadFull(rw, n[:]); err != nil {
		return fmt.Errorf("rfb security: %w", err)
	}
	if n[0] == 0 {
		return refused(rw)
	}
	types := make([]byte, n[0])
	if _, err := io.ReadFull(rw, types); err != nil {
		return fmt.Errorf("rfb security: %w", err)
	}
	if !slices.Contains(types, secNone) {
		return fmt.Errorf("rfb security: server offers only types %v; it must run without authentication", types)
	}
	if _, err := rw.Write([]byte{secNone}); err != nil {
		return fmt.Errorf("rfb security: %w", err)
	}
	if v < 8 {
		return nil
	}
	res, err := readUint32(rw)
	switch {
	case err != nil:
		return fmt.Errorf("rfb security: %w", err)
	case res != resultOK:
		return refused(rw)
	}
	return nil
}

// refused reads the reason string that follows a refusal and returns it as an error.
func refused(r io.Reader) error {
	n, err := readUint32(r)
	if err != nil {
		return fmt.Errorf("rfb security: refused by the server: %w", err)
	}
	reason := make([]byte, min(n, maxReason))
	if _, err := io.ReadFull(r, reason); err != nil {
		return fmt.Errorf("rfb security: refused by the server: %w", err)
	}
	return fmt.Errorf("rfb security: refused by the server: %q", reason)
}

func readUint32(r io.Reader) (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}
