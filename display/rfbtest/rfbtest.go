// Package rfbtest is a small VNC client for tests: the Remote Framebuffer Protocol (RFC 6143) with raw pixels, the
// pseudo-encodings for desktop size, and the extended clipboard (github.com/rfbproto, section 7.6.5.1 and 7.7.27.1).
package rfbtest

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"io"
	"net"
)

// Encodings.
const (
	raw               = 0
	desktopSize       = -223
	extDesktopSize    = -308
	extendedClipboard = -1063131698 // 0xC0A1E5CE
)

// Client is a connection to a VNC server that asks for no authentication.
type Client struct {
	conn    net.Conn
	Version string // what the server sent, "RFB 003.008"
	Name    string
	Screen  *image.RGBA // what has been received; a new image after a change of size
	CutText string      // last text from the server
	Caps    uint32      // of the extended clipboard; 0 if the server has none
	pending string      // our clipboard, for the server to fetch
}

// New does the handshake on conn, as a shared client, and asks for 32-bit pixels.
func New(conn net.Conn) (*Client, error) {
	c := &Client{conn: conn}
	version := make([]byte, 12)
	if _, err := io.ReadFull(conn, version); err != nil {
		return nil, fmt.Errorf("version: %w", err)
	}
	c.Version = string(version[:11])
	if _, err := conn.Write([]byte("RFB 003.008\n")); err != nil {
		return nil, err
	}
	n := make([]byte, 1)
	if _, err := io.ReadFull(conn, n); err != nil {
		return nil, fmt.Errorf("security types: %w", err)
	}
	types := make([]byte, n[0])
	if _, err := io.ReadFull(conn, types); err != nil {
		return nil, fmt.Errorf("security types: %w", err)
	}
	if !bytes.Contains(types, []byte{1}) {
		return nil, fmt.Errorf("security types %v without None", types)
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return nil, err
	}
	var result uint32
	if err := binary.Read(conn, binary.BigEndian, &result); err != nil || result != 0 {
		return nil, fmt.Errorf("security result %d: %v", result, err)
	}
	if _, err := conn.Write([]byte{1}); err != nil { // shared
		return nil, err
	}
	var init struct {
		Width, Height uint16
		Format        [16]byte
		NameLength    uint32
	}
	if err := binary.Read(conn, binary.BigEndian, &init); err != nil {
		return nil, fmt.Errorf("server init: %w", err)
	}
	name := make([]byte, min(init.NameLength, 1<<16))
	if _, err := io.ReadFull(conn, name); err != nil {
		return nil, fmt.Errorf("server name: %w", err)
	}
	c.Name, c.Screen = string(name), image.NewRGBA(image.Rect(0, 0, int(init.Width), int(init.Height)))
	// SetPixelFormat: 32 bits, depth 24, little endian, true colour, blue lowest. SetEncodings.
	msg := []byte{0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0}
	encodings := []int32{raw, extDesktopSize, desktopSize, extendedClipboard}
	msg = append(msg, 2, 0, 0, byte(len(encodings)))
	for _, e := range encodings {
		msg = binary.BigEndian.AppendUint32(msg, uint32(e))
	}
	_, err := conn.Write(msg)
	return c, err
}

// Close ends the connection.
func (c *Client) Close() { c.conn.Close() }

// Request asks for an update of the whole screen; incremental: of what changed.
func (c *Client) Request(incremental bool) error {
	msg := []byte{3, 0, 0, 0, 0, 0}
	if incremental {
		msg[1] = 1
	}
	msg = binary.BigEndian.AppendUint16(msg, uint16(c.Screen.Rect.Dx()))
	msg = binary.BigEndian.AppendUint16(msg, uint16(c.Screen.Rect.Dy()))
	_, err := c.conn.Write(msg)
	return err
}

// Key sends a press and a release of a keysym.
func (c *Client) Key(sym uint32) error {
	var msg []byte
	for _, down := range []byte{1, 0} {
		msg = binary.BigEndian.AppendUint32(append(msg, 4, down, 0, 0), sym)
	}
	_, err := c.conn.Write(msg)
	return err
}

// Pointer moves the pointer, with buttons as a mask.
func (c *Client) Pointer(x, y int, buttons byte) error {
	msg := binary.BigEndian.AppendUint16([]byte{5, buttons}, uint16(x))
	_, err := c.conn.Write(binary.BigEndian.AppendUint16(msg, uint16(y)))
	return err
}

// SetDesktopSize asks the server for another size, with one screen.
func (c *Client) SetDesktopSize(width, height int) error {
	msg := []byte{251, 0}
	for _, v := range []int{width, height} {
		msg = binary.BigEndian.AppendUint16(msg, uint16(v))
	}
	msg = append(msg, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	for _, v := range []int{width, height} {
		msg = binary.BigEndian.AppendUint16(msg, uint16(v))
	}
	_, err := c.conn.Write(append(msg, 0, 0, 0, 0))
	return err
}

// Actions of the extended clipboard, and its format for text.
const (
	formatText    = 1 << 0
	actionCaps    = 1 << 24
	actionRequest = 1 << 25
	actionNotify  = 1 << 27
	actionProvide = 1 << 28
)

// SetCutText gives the server text. With the extended clipboard any text will do, else only Latin-1.
func (c *Client) SetCutText(text string) error {
	if c.Caps != 0 {
		c.pending = text
		return c.extended(actionNotify|formatText, nil)
	}
	var latin []byte
	for _, r := range text {
		if r > 0xff {
			return errors.New("the server has no extended clipboard")
		}
		latin = append(latin, byte(r))
	}
	msg := binary.BigEndian.AppendUint32([]byte{6, 0, 0, 0}, uint32(len(latin)))
	_, err := c.conn.Write(append(msg, latin...))
	return err
}

func (c *Client) extended(flags uint32, data []byte) error {
	msg := binary.BigEndian.AppendUint32([]byte{6, 0, 0, 0}, uint32(-int32(4+len(data))))
	_, err := c.conn.Write(append(binary.BigEndian.AppendUint32(msg, flags), data...))
	return err
}

// Next handles one message of the server and returns its type: 0 an update of the screen, 1 colours, 2 bell, 3 text.
func (c *Client) Next() (byte, error) {
	var typ [1]byte
	if _, err := io.ReadFull(c.conn, typ[:]); err != nil {
		return 0, err
	}
	switch typ[0] {
	case 0:
		return 0, c.update()
	case 2:
		return 2, nil
	case 3:
		return 3, c.cutText()
	}
	return typ[0], fmt.Errorf("message of type %d", typ[0])
}

func (c *Client) update() error {
	var head struct {
		_ uint8
		N uint16
	}
	if err := binary.Read(c.conn, binary.BigEndian, &head); err != nil {
		return err
	}
	for range head.N {
		var r struct {
			X, Y, W, H uint16
			Encoding   int32
		}
		if err := binary.Read(c.conn, binary.BigEndian, &r); err != nil {
			return err
		}
		switch r.Encoding {
		case raw:
			b := make([]byte, 4*int(r.W)*int(r.H))
			if _, err := io.ReadFull(c.conn, b); err != nil {
				return err
			}
			for i := range int(r.W) * int(r.H) {
				c.Screen.SetRGBA(int(r.X)+i%int(r.W), int(r.Y)+i/int(r.W), color.RGBA{b[4*i+2], b[4*i+1], b[4*i], 255})
			}
		case desktopSize, extDesktopSize:
			if r.Encoding == extDesktopSize {
				var n [4]byte
				if _, err := io.ReadFull(c.conn, n[:]); err != nil {
					return err
				}
				if _, err := io.CopyN(io.Discard, c.conn, 16*int64(n[0])); err != nil {
					return err
				}
				if r.Y != 0 { // the answer to a SetDesktopSize that failed
					return fmt.Errorf("desktop size refused with status %d", r.Y)
				}
			}
			if size := image.Rect(0, 0, int(r.W), int(r.H)); size != c.Screen.Rect {
				c.Screen = image.NewRGBA(size)
			}
		default:
			return fmt.Errorf("encoding %d", r.Encoding)
		}
	}
	return nil
}

func (c *Client) cutText() error {
	var head struct {
		_ [3]uint8
		N int32
	}
	if err := binary.Read(c.conn, binary.BigEndian, &head); err != nil {
		return err
	}
	n := head.N
	if n < 0 {
		n = -n
	}
	b := make([]byte, min(uint32(n), 1<<24))
	if _, err := io.ReadFull(c.conn, b); err != nil {
		return err
	}
	if head.N >= 0 {
		var text []rune
		for _, x := range b {
			text = append(text, rune(x))
		}
		c.CutText = string(text)
		return nil
	}
	if len(b) < 4 {
		return errors.New("extended clipboard message is too short")
	}
	flags := binary.BigEndian.Uint32(b)
	switch {
	case flags&actionCaps != 0:
		c.Caps = flags
		// What we can: text of up to 16 MiB.
		return c.extended(actionCaps|actionRequest|actionNotify|actionProvide|formatText, binary.BigEndian.AppendUint32(nil, 16<<20))
	case flags&actionNotify != 0 && flags&formatText != 0:
		return c.extended(actionRequest|formatText, nil)
	case flags&actionRequest != 0:
		var z bytes.Buffer
		w := zlib.NewWriter(&z)
		text := append([]byte(c.pending), 0)
		w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
		w.Close()
		return c.extended(actionProvide|formatText, z.Bytes())
	case flags&actionProvide != 0:
		r, err := zlib.NewReader(bytes.NewReader(b[4:]))
		if err != nil {
			return err
		}
		var size uint32
		if err := binary.Read(r, binary.BigEndian, &size); err != nil {
			return err
		}
		text := make([]byte, min(size, 1<<24))
		if _, err := io.ReadFull(r, text); err != nil {
			return err
		}
		c.CutText = string(bytes.TrimRight(text, "\x00"))
	}
	return nil
}
