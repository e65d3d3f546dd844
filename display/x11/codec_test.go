package x11

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/BurntSushi/xgb"
	"github.com/BurntSushi/xgb/xproto"

	"berth/profiles"
)

// setupReply is a minimal connection setup: one screen with one depth, no formats.
func setupReply() []byte {
	var b []byte
	u16 := func(v uint16) { b = binary.LittleEndian.AppendUint16(b, v) }
	u32 := func(v uint32) { b = binary.LittleEndian.AppendUint32(b, v) }
	b = append(b, 1, 0)
	u16(11)
	u16(0)
	u16(0) // length, below
	u32(1)
	u32(0x200000)
	u32(0x1fffff)
	u32(0)
	u16(4) // vendor
	u16(0xffff)
	b = append(b, 1, 0, 0, 0, 32, 32, 8, 255, 0, 0, 0, 0) // one root, no formats
	b = append(b, "fake"...)
	u32(0x111) // root
	u32(0x20)
	u32(0xffffff)
	u32(0)
	u32(0)
	u16(800)
	u16(600)
	u16(211)
	u16(158)
	u16(1)
	u16(1)
	u32(0x21)
	b = append(b, 0, 0, 24, 0) // no depths
	binary.LittleEndian.PutUint16(b[6:], uint16(len(b)-8)/4)
	return b
}

// fakeServer accepts connections, does the handshake, and has f answer each request, given with its sequence number.
// f returns false to hang up.
func fakeServer(t *testing.T, f func(c net.Conn, seq uint16, req []byte) bool) (dir, name string) {
	t.Helper()
	dir, name = t.TempDir(), "X0"
	l, err := net.Listen("unix", filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.ReadFull(c, make([]byte, 12)); err != nil { // no cookie is sent
					return
				}
				c.Write(setupReply())
				for seq := uint16(1); ; seq++ {
					head := make([]byte, 4)
					if _, err := io.ReadFull(c, head); err != nil {
						return
					}
					req := append(head, make([]byte, 4*int(binary.LittleEndian.Uint16(head[2:]))-4)...)
					if _, err := io.ReadFull(c, req[4:]); err != nil || !f(c, seq, req) {
						return
					}
				}
			}()
		}
	}()
	return dir, name
}

// packetOf makes a packet of 32 bytes and what follows.
func packetOf(typ, detail byte, seq uint16, length uint32, rest ...byte) []byte {
	b := make([]byte, 32, 32+len(rest))
	b[0], b[1] = typ, detail
	binary.LittleEndian.PutUint16(b[2:], seq)
	binary.LittleEndian.PutUint32(b[4:], length)
	return append(b, rest...)
}

// TestHostileServer has servers answer with what no X server would. None of it may crash or hang the caller.
func TestHostileServer(t *testing.T) {
	for name, answer := range map[string]func(seq uint16) []byte{
		"huge reply":            func(seq uint16) []byte { return packetOf(1, 0, seq, 0xffffffff) },
		"reply of 28 bytes":     func(seq uint16) []byte { return packetOf(1, 0, seq, 0x3fffffff) },
		"reply cut short":       func(seq uint16) []byte { return packetOf(1, 0, seq, 1000, 1, 2, 3) },
		"reply to the future":   func(seq uint16) []byte { return packetOf(1, 0, seq+7, 0) },
		"reply to the past":     func(seq uint16) []byte { return packetOf(1, 0, seq-1, 0) },
		"empty tree":            func(seq uint16) []byte { b := packetOf(1, 0, seq, 0); b[16] = 200; return b },
		"error of an extension": func(seq uint16) []byte { return packetOf(0, 200, seq, 0) },
		"unknown core error":    func(seq uint16) []byte { return packetOf(0, 77, seq, 0) },
		"events, then an end":   func(seq uint16) []byte { return append(packetOf(100, 0, seq, 0), packetOf(35, 0, seq, 0x7fffffff)...) },
		"random bytes": func(uint16) []byte {
			return []byte("\x02\xff\x7f?abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrst")
		},
		"too many children":      func(seq uint16) []byte { b := packetOf(1, 0, seq, 1, 0, 0, 0, 0); b[16], b[17] = 0xff, 0xff; return b },
		"an end without a reply": func(uint16) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir, sock := fakeServer(t, func(c net.Conn, seq uint16, _ []byte) bool {
				c.Write(answer(seq))
				return false
			})
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			for range 3 { // over the same codec
				c, err := Dial(ctx, dir, sock, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, err = call(ctx, c, func(x *xgb.Conn) (*xproto.QueryTreeReply, error) { return xproto.QueryTree(x, 1).Reply() })
				if err == nil || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v", err)
				}
				c.Close()
			}
		})
	}
}

// TestHostileScreenshot has servers lie about the screen. They must not make us hold more than its picture.
func TestHostileScreenshot(t *testing.T) {
	for name, tc := range map[string]struct {
		width, height uint16
		strip         int // bytes of the answers to GetImage
		want          string
	}{
		"largest of the protocol": {65535, 65535, 4, "65535x65535"},
		"one too wide":            {profiles.MaxWidth + 1, 600, 4, "8193x600"},
		"one too high":            {800, profiles.MaxHeight + 1, 4, "800x8193"},
		"nothing":                 {0, 0, 4, "0x0"},
		"short strips":            {profiles.MaxWidth, profiles.MaxHeight, 4, "came as 4 bytes"},
		"long strips":             {profiles.MaxWidth, profiles.MaxHeight, 2 << 20, "came as 2097152 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			var strips atomic.Int32
			dir, sock := fakeServer(t, func(c net.Conn, seq uint16, req []byte) bool {
				var b []byte
				switch req[0] {
				case 14: // GetGeometry
					b = packetOf(1, 24, seq, 0)
					binary.LittleEndian.PutUint16(b[16:], tc.width)
					binary.LittleEndian.PutUint16(b[18:], tc.height)
				case 73: // GetImage
					strips.Add(1)
					b = packetOf(1, 24, seq, uint32(tc.strip/4), make([]byte, tc.strip)...)
				}
				_, err := c.Write(b)
				return err == nil
			})
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			c, err := Dial(ctx, dir, sock, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.setup.PixmapFormats = []xproto.Format{{Depth: c.screen.RootDepth, BitsPerPixel: 32, ScanlinePad: 32}}
			c.screen.AllowedDepths = []xproto.DepthInfo{{Visuals: []xproto.VisualInfo{{VisualId: c.screen.RootVisual,
				RedMask: 0xff0000, GreenMask: 0xff00, BlueMask: 0xff}}}}
			if _, err := c.Screenshot(ctx); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v; want one that says %q", err, tc.want)
			}
			// A round trip, so that the server has seen all that was asked before.
			if _, err := c.Size(ctx); err != nil {
				t.Fatal(err)
			}
			if n := strips.Load(); n > stripsAhead {
				t.Errorf("%d strips were asked for before the first was there; want at most %d", n, stripsAhead)
			}
		})
	}
}

// TestSequenceNumbers uses one codec for connection after connection, with more than 2^16 requests in all.
func TestSequenceNumbers(t *testing.T) {
	dir, sock := fakeServer(t, func(c net.Conn, seq uint16, req []byte) bool {
		if req[0] != 43 { // only GetInputFocus has a reply
			return true
		}
		b := packetOf(1, 0, seq, 0)
		binary.LittleEndian.PutUint32(b[8:], uint32(seq))
		_, err := c.Write(b)
		return err == nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	for range 30 {
		c, err := Dial(ctx, dir, sock, nil)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 20 {
					_, err := call(ctx, c, func(x *xgb.Conn) (struct{}, error) {
						for range 50 {
							xproto.UngrabServer(x)
						}
						_, err := xproto.GetInputFocus(x).Reply()
						return struct{}{}, err
					})
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		c.Close()
	}
}

func TestSetupErrors(t *testing.T) {
	for name, answer := range map[string][]byte{
		"refused":        append([]byte{0, 5, 11, 0, 0, 0, 2, 0}, "go on\x00\x00\x00"...),
		"long reason":    append([]byte{0, 255, 11, 0, 0, 0, 1, 0}, "nope"...),
		"authenticate":   {2, 0, 11, 0, 0, 0, 0, 0},
		"short success":  {1, 0, 11, 0, 0, 0, 0, 0},
		"lies about all": append([]byte{1, 0, 11, 0, 0, 0, 8, 0}, strings.Repeat("\xff", 32)...),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.Listen("unix", filepath.Join(dir, "X0"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					io.ReadFull(c, make([]byte, 12))
					c.Write(answer)
					defer c.Close()
				}
			}()
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			c, err := Dial(ctx, dir, "X0", nil)
			if err == nil || c != nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			if refused := answer[0] == 0; errors.Is(err, ErrRefused) != refused {
				t.Errorf("%v; refused: %v", err, refused)
			}
		})
	}
}

func FuzzSetup(f *testing.F) {
	f.Add(setupReply())
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = guard(func() error { xproto.SetupInfoRead(b, new(xproto.SetupInfo)); return nil })
	})
}

func FuzzConvert(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4}, uint8(4), false)
	f.Add([]byte{1, 2, 3, 4}, uint8(2), true)
	f.Fuzz(func(t *testing.T, src []byte, size uint8, big bool) {
		ft := format{size: 2 + int(size%3), pad: 4, bigEndian: big, width: [3]int{5, 6, 5}, shift: [3]int{11, 5, 0}}
		dst := make([]byte, 4*(len(src)/ft.size))
		ft.convert(dst, src)
		for i := 3; i < len(dst); i += 4 {
			if dst[i] != 255 {
				t.Fatal("not opaque")
			}
		}
	})
}

func TestConvert(t *testing.T) {
	for name, tc := range map[string]struct {
		f    format
		src  []byte
		want []byte
	}{
		"BGRX":       {format{4, 4, false, [3]int{16, 8, 0}, [3]int{8, 8, 8}}, []byte{3, 2, 1, 0}, []byte{1, 2, 3, 255}},
		"RGBX":       {format{4, 4, false, [3]int{0, 8, 16}, [3]int{8, 8, 8}}, []byte{1, 2, 3, 0}, []byte{1, 2, 3, 255}},
		"big-endian": {format{4, 4, true, [3]int{16, 8, 0}, [3]int{8, 8, 8}}, []byte{0, 1, 2, 3}, []byte{1, 2, 3, 255}},
		"BGR":        {format{3, 4, false, [3]int{16, 8, 0}, [3]int{8, 8, 8}}, []byte{3, 2, 1, 6, 5, 4}, []byte{1, 2, 3, 255, 4, 5, 6, 255}},
		"565":        {format{2, 4, false, [3]int{11, 5, 0}, [3]int{5, 6, 5}}, []byte{0x1f, 0xf8, 0xe0, 0x07}, []byte{255, 0, 255, 255, 0, 255, 0, 255}},
		"30 bits":    {format{4, 4, false, [3]int{22, 12, 2}, [3]int{8, 8, 8}}, []byte{0xff, 0xff, 0xff, 0x3f}, []byte{255, 255, 255, 255}},
	} {
		dst := make([]byte, len(tc.want))
		tc.f.convert(dst, tc.src)
		if string(dst) != string(tc.want) {
			t.Errorf("%s: got %v, want %v", name, dst, tc.want)
		}
	}
}
