package gateway

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"
)

// The benchmarks compare a viewer behind the gateway with one on the VNC server's own socket, and with one on a TCP port of
// the same server, which no session has: what the gateway costs beyond the TCP that every viewer over a network needs.
//
//	go test -run - -bench . ./display/gateway
//
// All are connected at the same time and take turns, so that whatever else the machine does hits all of them. The medians
// and their ratios are reported; ns/op, the sum, means nothing.
//
// Frames/zrle is what viewers see: a real Xvnc compresses whole screens of text as fast as it is asked for them. Frames/raw
// and Bytes are worst cases in which hardly anything is done but sending.

// benchViewer is one connection of a comparison.
type benchViewer struct {
	net.Conn
	in            *bufio.Reader
	width, height int
	turn          func() error
	took          []time.Duration
}

// compare lets viewers of a server take turns, on its own socket, on its own TCP port and behind the gateway; prepare sets
// what a turn is.
func compare(b *testing.B, s Session, tcp string, prepare func(v *benchViewer) error) {
	sessions := &fakeSessions{}
	sessions.set(s)
	var all [3]*benchViewer
	for i, side := range []struct {
		network, address string
		join             func(net.Conn) error
	}{
		{"unix", s.VNCSocket, func(c net.Conn) error { return joinServer(c) }},
		{"tcp", tcp, func(c net.Conn) error { return joinServer(c) }},
		{"tcp", openVNC(b, newGateway(b, sessions), s.Name), func(c net.Conn) error { return logIn(c, s.Password) }},
	} {
		c, err := net.Dial(side.network, side.address)
		if err == nil {
			err = side.join(c)
		}
		if c != nil {
			defer c.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
		v := &benchViewer{Conn: c, in: bufio.NewReaderSize(c, 256<<10)}
		if err := v.start(); err != nil {
			b.Fatal(err)
		}
		if err := prepare(v); err != nil {
			b.Fatal(err)
		}
		all[i] = v
	}
	for b.Loop() {
		for _, v := range all {
			start := time.Now()
			if err := v.turn(); err != nil {
				b.Fatal(err)
			}
			v.took = append(v.took, time.Since(start))
		}
	}
	var median [3]float64
	for i, v := range all {
		slices.Sort(v.took)
		median[i] = float64(v.took[len(v.took)/2])
	}
	b.ReportMetric(median[0], "ns-unix")
	b.ReportMetric(median[1], "ns-tcp")
	b.ReportMetric(median[2], "ns-gateway")
	b.ReportMetric(median[2]/median[0], "ratio-unix")
	b.ReportMetric(median[2]/median[1], "ratio-tcp")
}

// logIn is a viewer's side of RFB 3.3 with a password, up to ClientInit.
func logIn(c net.Conn, password string) error {
	if _, err := readVersion(c); err != nil {
		return err
	}
	if _, err := c.Write(version(3).message()); err != nil {
		return err
	}
	if kind, err := readUint32(c); err != nil || kind != secVNCAuth {
		return fmt.Errorf("security type %d, %w", kind, err)
	}
	var challenge [16]byte
	if _, err := io.ReadFull(c, challenge[:]); err != nil {
		return err
	}
	response, err := vncResponse(challenge, password)
	if err != nil {
		return err
	}
	if _, err := c.Write(response[:]); err != nil {
		return err
	}
	if res, err := readUint32(c); err != nil || res != resultOK {
		return fmt.Errorf("result %d, %w", res, err)
	}
	return nil
}

// start sends ClientInit and reads ServerInit (RFC 6143 section 7.3).
func (v *benchViewer) start() error {
	if _, err := v.Write([]byte{1}); err != nil {
		return err
	}
	var head [24]byte
	if _, err := io.ReadFull(v.in, head[:]); err != nil {
		return err
	}
	v.width, v.height = int(binary.BigEndian.Uint16(head[0:])), int(binary.BigEndian.Uint16(head[2:]))
	_, err := io.CopyN(io.Discard, v.in, int64(binary.BigEndian.Uint32(head[20:])))
	return err
}

// BenchmarkFrames asks a real Xvnc for whole screens.
func BenchmarkFrames(b *testing.B) {
	x := startX(b, "xvnc", 1920, 1080)
	x.xterm("base64 -w 160 /dev/urandom | head -n 60")
	for name, encoding := range map[string]uint32{"raw": 0, "zrle": 16} {
		b.Run(name, func(b *testing.B) {
			compare(b, x.session("one"), x.tcp, func(v *benchViewer) error {
				v.turn = func() error { return v.frame(encoding) }
				// SetEncodings, section 7.5.2.
				_, err := v.Write(binary.BigEndian.AppendUint32([]byte{2, 0, 0, 1}, encoding))
				return err
			})
		})
	}
}

// frame asks for a whole screen and reads it (sections 7.5.3 and 7.6.1).
func (v *benchViewer) frame(encoding uint32) error {
	request := binary.BigEndian.AppendUint16([]byte{3, 0, 0, 0, 0, 0}, uint16(v.width))
	if _, err := v.Write(binary.BigEndian.AppendUint16(request, uint16(v.height))); err != nil {
		return err
	}
	var head [4]byte
	if _, err := io.ReadFull(v.in, head[:]); err != nil || head[0] != 0 {
		return fmt.Errorf("message type %d, %w", head[0], err)
	}
	for range binary.BigEndian.Uint16(head[2:]) {
		var rect [12]byte
		if _, err := io.ReadFull(v.in, rect[:]); err != nil {
			return err
		}
		if e := binary.BigEndian.Uint32(rect[8:]); e != encoding {
			return fmt.Errorf("encoding %d; want %d", e, encoding)
		}
		n := int64(binary.BigEndian.Uint16(rect[4:])) * int64(binary.BigEndian.Uint16(rect[6:])) * 4
		if encoding != 0 { // section 7.7.6: a length leads
			length, err := readUint32(v.in)
			if err != nil {
				return err
			}
			n = int64(length)
		}
		if _, err := io.CopyN(io.Discard, v.in, n); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkLatency sends a byte there and back; the difference is what the gateway adds to both ways together.
func BenchmarkLatency(b *testing.B) {
	fake := newFakeVNC(b)
	compare(b, fakeSession("one", fake.path), fake.tcp(b), func(v *benchViewer) error {
		v.turn = func() error {
			var one [1]byte
			if _, err := v.Write(one[:]); err != nil {
				return err
			}
			_, err := io.ReadFull(v.in, one[:])
			return err
		}
		return nil
	})
}

// BenchmarkBytes has 4 MiB echoed.
func BenchmarkBytes(b *testing.B) {
	data := make([]byte, 4<<20)
	fake := newFakeVNC(b)
	compare(b, fakeSession("one", fake.path), fake.tcp(b), func(v *benchViewer) error {
		v.turn = func() error {
			go func() { _, _ = v.Write(data) }() // an error shows in the reading
			_, err := io.CopyN(io.Discard, v.in, int64(len(data)))
			return err
		}
		return nil
	})
}
