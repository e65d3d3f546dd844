package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"berth/internal/atomicfile"
)

// TLS says which certificate the web listener shows. The zero value is plain HTTP.
type TLS struct {
	// Cert and Key are PEM files. They are read again when they change, so a renewed certificate needs no restart.
	Cert, Key string
	// SelfSigned makes a certificate when Cert is "" and keeps it in Dir.
	SelfSigned bool
	Dir        string
	// Hosts are further names and addresses in the self-signed certificate.
	Hosts []string
}

const (
	selfSignedFor = 397 * 24 * time.Hour // the longest that browsers accept
	renewBefore   = 30 * 24 * time.Hour
	// certCheck is how often the files are looked at.
	certCheck = time.Minute
)

// certificate is the current certificate of a listener.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	cert    *tls.Certificate // guarded by mu, as is all that follows
	stamp   string           // of the files that cert was read from
	checked time.Time
}

// load returns the certificate for a listener on host; nil without TLS.
func (t TLS) load(host string) (*certificate, error) {
	c := &certificate{certFile: t.Cert, keyFile: t.Key}
	switch {
	case t.Cert != "" && t.Key != "":
	case t.Cert != "" || t.Key != "":
		return nil, errors.New("gateway tls: a certificate needs its key and a key its certificate; set both")
	case !t.SelfSigned:
		return nil, nil
	case t.Dir == "":
		return nil, errors.New("gateway tls: no directory to keep the self-signed certificate in")
	default:
		c.certFile, c.keyFile = filepath.Join(t.Dir, "cert.pem"), filepath.Join(t.Dir, "key.pem")
		if err := selfSign(c.certFile, c.keyFile, append([]string{host}, t.Hosts...)); err != nil {
			return nil, err
		}
	}
	if err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

// get is tls.Config.GetCertificate.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.checked) > certCheck && c.fileStamp() != c.stamp {
		// Half-written files do not take the service down: the old certificate serves until the new one can be read.
		_ = c.readLocked()
	}
	return c.cert, nil
}

func (c *certificate) read() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.readLocked()
}

func (c *certificate) readLocked() error {
	c.checked = time.Now()
	stamp := c.fileStamp()
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("gateway tls: certificate %q with key %q: %w", c.certFile, c.keyFile, err)
	}
	c.cert, c.stamp = &cert, stamp
	return nil
}

// fileStamp changes when one of the files is replaced or written.
func (c *certificate) fileStamp() string {
	var b strings.Builder
	for _, f := range []string{c.certFile, c.keyFile} {
		if st, err := os.Stat(f); err == nil {
			fmt.Fprint(&b, st.ModTime().UnixNano(), " ", st.Size(), " ")
		}
	}
	return b.String()
}

func (c *certificate) fingerprint() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := sha256.Sum256(c.cert.Certificate[0])
	return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":")
}

// selfSign makes a self-signed certificate for localhost, this host's name and hosts, unless the one that is there
// already covers them and lasts a while.
func selfSign(certFile, keyFile string, hosts []string) error {
	fail := func(err error) error { return fmt.Errorf("gateway tls: self-signed certificate: %w", err) }
	names := map[string]bool{"localhost": true}
	addrs := map[string]net.IP{"127.0.0.1": net.IPv4(127, 0, 0, 1).To4(), "::1": net.IPv6loopback}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil && !ip.IsUnspecified() {
			addrs[ip.String()] = ip
		} else if ip == nil && h != "" {
			names[h] = true
		}
	}
	ok, err := covers(certFile, keyFile, names, addrs)
	if err != nil {
		return fail(err)
	}
	if ok {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fail(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Berth gateway"},
		// An hour back: the clocks of the two sides may differ.
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(selfSignedFor - time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for n := range names {
		tmpl.DNSNames = append(tmpl.DNSNames, n)
	}
	for _, ip := range addrs {
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return fail(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(filepath.Dir(certFile), 0o700); err != nil {
		return fail(err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := atomicfile.Write(keyFile, keyPEM, 0o600); err != nil {
		return fail(err)
	}
	if err := atomicfile.Write(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		return fail(err)
	}
	return nil
}

// covers tells whether the certificate in certFile belongs to the key, lasts a while and names everything it should.
// Files that are missing or do not fit together are replaced, ones that cannot be read are an error.
func covers(certFile, keyFile string, names map[string]bool, addrs map[string]net.IP) (bool, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if errors.Is(err, fs.ErrPermission) {
		return false, err
	}
	if err != nil {
		return false, nil
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil || time.Now().Add(renewBefore).After(leaf.NotAfter) {
		return false, nil
	}
	for n := range names {
		if leaf.VerifyHostname(n) != nil {
			return false, nil
		}
	}
	for a := range addrs {
		if leaf.VerifyHostname(a) != nil {
			return false, nil
		}
	}
	return true, nil
}
