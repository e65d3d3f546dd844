package gateway

import (
	"crypto/des"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"math/bits"
)

// newChallenge returns 16 random bytes (RFC 6143 section 7.2.2).
func newChallenge() (c [16]byte, err error) {
	if _, err = rand.Read(c[:]); err != nil {
		err = fmt.Errorf("rfb challenge: %w", err)
	}
	return c, err
}

// vncResponse encrypts challenge with password as RFC 6143 section 7.2.2 says: DES in ECB mode, the key being the first
// eight bytes of the password padded with zeros, with the bits of each byte mirrored (RFC erratum 4951: every
// implementation does so because the first one did).
func vncResponse(challenge [16]byte, password string) (out [16]byte, err error) {
	var key [8]byte
	copy(key[:], password)
	for i, b := range key {
		key[i] = bits.Reverse8(b)
	}
	block, err := des.NewCipher(key[:])
	if err != nil {
		return out, fmt.Errorf("rfb challenge: %w", err)
	}
	block.Encrypt(out[:8], challenge[:8])
	block.Encrypt(out[8:], challenge[8:])
	return out, nil
}

// checkVNCResponse compares in constant time. An empty password lets nobody in.
func checkVNCResponse(challenge, response [16]byte, password string) error {
	want, err := vncResponse(challenge, password)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(want[:], response[:]) != 1 || password == "" {
		return errWrongPassword
	}
	return nil
}
