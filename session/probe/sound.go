package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// maxMessage bounds what a sound server may answer with in one message.
const maxMessage = 1 << 20

// pulse makes one round trip in PulseAudio's native protocol (pulsecore/protocol-native.c, pulse/native-common.h): AUTH,
// SET_CLIENT_NAME, GET_SERVER_INFO. A message is a descriptor of five big-endian words (length, channel, offset high
// and low, flags) and tagged values: 'L' a word, 'x' length and bytes, 'P' a property list that ends with 'N'.
//
// The protocol's Go library is not used here: its reader takes lengths on trust, and this server is the session's.
func pulse(rw io.ReadWriter) error {
	const (
		control       = 0xffffffff // channel of commands
		version       = 32
		cmdError      = 0
		cmdReply      = 2
		cmdAuth       = 8
		cmdClientName = 9
		cmdServerInfo = 20
	)
	word := func(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(append(b, 'L'), v) }
	auth := binary.BigEndian.AppendUint32(append(word(nil, version), 'x'), 256) // any cookie: the socket is the key
	auth = append(auth, make([]byte, 256)...)
	for tag, command := range []struct {
		op   uint32
		args []byte
	}{{cmdAuth, auth}, {cmdClientName, []byte{'P', 'N'}}, {cmdServerInfo, nil}} {
		body := append(word(word(nil, command.op), uint32(tag)), command.args...)
		msg := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
		msg = append(binary.BigEndian.AppendUint32(msg, control), make([]byte, 12)...)
		if _, err := rw.Write(append(msg, body...)); err != nil {
			return err
		}
		for answered := false; !answered; {
			var head [5]uint32
			if err := binary.Read(rw, binary.BigEndian, &head); err != nil {
				return err
			}
			if head[0] > maxMessage {
				return fmt.Errorf("message of %d bytes from a Pulse server", head[0])
			}
			reply := make([]byte, head[0])
			if _, err := io.ReadFull(rw, reply); err != nil {
				return err
			}
			if head[1] != control || len(reply) < 10 || reply[0] != 'L' || reply[5] != 'L' ||
				binary.BigEndian.Uint32(reply[6:]) != uint32(tag) {
				continue // an event
			}
			switch binary.BigEndian.Uint32(reply[1:]) {
			case cmdReply:
				answered = true
			case cmdError:
				code := uint32(0)
				if len(reply) >= 15 {
					code = binary.BigEndian.Uint32(reply[11:])
				}
				return fmt.Errorf("pulse server refuses command %d with error %d", command.op, code)
			}
		}
	}
	return nil
}

// Types of plain old data (spa/utils/type.h) that occur here.
const (
	podInt    = 4
	podString = 8
	podStruct = 14
)

// pod encodes one value of SPA's plain old data (spa/pod/pod.h): size of the body, type, body, zeros up to a multiple
// of 8 bytes. All of it is in the machine's byte order; the socket is local.
func pod(typ uint32, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(len(body)))
	b = binary.NativeEndian.AppendUint32(b, typ)
	b = append(b, body...)
	return append(b, make([]byte, -len(body)&7)...)
}

func intPod(v int32) []byte             { return pod(podInt, binary.NativeEndian.AppendUint32(nil, uint32(v))) }
func stringPod(s string) []byte         { return pod(podString, append([]byte(s), 0)) }
func structPod(fields ...[]byte) []byte { return pod(podStruct, bytes.Join(fields, nil)) }

// pipewire makes one round trip in PipeWire's native protocol (module-protocol-native/protocol-native.c,
// pipewire/core.h): Core::Hello, Client::UpdateProperties, Core::Sync, and waits for Core::Done. A message is four words
// (ID of the object; opcode in the high 8 bits and size in the low 24; sequence number; number of file descriptors) and
// a struct of plain old data of that size.
func pipewire(rw io.ReadWriter) error {
	const (
		core, client     = 0, 1 // IDs of the two objects that every connection has
		coreHello        = 1
		coreSync         = 2
		clientProperties = 2
		eventDone        = 1 // of core
		eventError       = 3
		version          = 3
		cookie           = 0x6265 // comes back in Done
	)
	var out []byte
	for seq, m := range []struct {
		id, opcode uint32
		body       []byte
	}{
		{core, coreHello, structPod(intPod(version))},
		{client, clientProperties, structPod(structPod(intPod(1), stringPod("application.name"), stringPod("berth")))},
		{core, coreSync, structPod(intPod(core), intPod(cookie))},
	} {
		for _, w := range []uint32{m.id, m.opcode<<24 | uint32(len(m.body)), uint32(seq), 0} {
			out = binary.NativeEndian.AppendUint32(out, w)
		}
		out = append(out, m.body...)
	}
	if _, err := rw.Write(out); err != nil {
		return err
	}
	for {
		var head [4]uint32
		if err := binary.Read(rw, binary.NativeEndian, &head); err != nil {
			return err
		}
		size, opcode := head[1]&0xffffff, head[1]>>24
		if size > maxMessage {
			return fmt.Errorf("message of %d bytes from a PipeWire server", size)
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(rw, body); err != nil {
			return err
		}
		if head[0] != core {
			continue
		}
		switch opcode {
		case eventDone: // struct of two ints, each 16 bytes
			if len(body) >= 40 && binary.NativeEndian.Uint32(body[32:]) == cookie {
				return nil
			}
		case eventError:
			return errors.New("pipewire server answers with an error")
		}
	}
}
