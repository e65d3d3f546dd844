package gateway

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"berth/internal/atomicfile"
)

const (
	loginIdle = 7 * 24 * time.Hour  // a login unused for so long ends
	loginMax  = 30 * 24 * time.Hour // and any ends then
	loginsMax = 1000
	// loginSave is how stale Used may be in the file, so that not every request writes. What the daemon has not saved when
	// it is killed only shortens loginIdle by so much.
	loginSave = time.Hour
)

// login is what a browser has shown tokens for. It is named by the SHA-256 of its cookie's value, so that the file of
// logins lets nobody in.
type login struct {
	ID       string          `json:"id"`
	Admin    bool            `json:"admin,omitempty"`
	Sessions map[string]bool `json:"sessions,omitempty"` // by Session.ID
	Created  time.Time       `json:"created"`
	Used     time.Time       `json:"used"`

	saved time.Time // Used when the file was last written; if that failed, the next try comes as late
}

func (l login) may(s Session) bool { return l.Admin || l.Sessions[s.ID] }

// logins are all logins. They survive the daemon, as sessions do.
type logins struct {
	path string // "" means memory only
	now  func() time.Time

	mu  sync.Mutex
	all map[string]*login // by ID; guarded by mu
}

func openLogins(path string) (*logins, error) {
	l := &logins{path: path, now: time.Now, all: map[string]*login{}}
	if path == "" {
		return l, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("logins: %w", err)
	}
	var list []*login
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("logins %q: %w; remove the file, everyone then logs in anew", path, err)
	}
	for _, e := range list {
		if e != nil && e.ID != "" {
			e.saved = e.Used
			l.all[e.ID] = e
		}
	}
	return l, nil
}

func cookieID(value string) string {
	sum := sha256.Sum256([]byte(value))
	return hex.EncodeToString(sum[:])
}

// find returns the login of a cookie, which is thereby in use. The login counts even if that could not be saved, which
// err then says.
func (l *logins) find(cookie string) (entry login, ok bool, err error) {
	if cookie == "" {
		return login{}, false, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.all[cookieID(cookie)]
	if e == nil || l.expired(e) {
		return login{}, false, nil
	}
	e.Used = l.now()
	if e.Used.Sub(e.saved) > loginSave {
		err = l.save()
	}
	return e.copy(), true, err
}

// close saves what find has not yet.
func (l *logins) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.all {
		if !e.Used.Equal(e.saved) {
			return l.save()
		}
	}
	return nil
}

func (e *login) copy() login {
	c := *e
	c.Sessions = make(map[string]bool, len(e.Sessions))
	for id := range e.Sessions {
		c.Sessions[id] = true
	}
	return c
}

func (l *logins) expired(e *login) bool {
	now := l.now()
	return now.Sub(e.Used) > loginIdle || now.Sub(e.Created) > loginMax
}

// grant adds a right to the login of cookie, or to a new one if that does not exist, and returns it with its cookie.
// The login counts even if it could not be saved, which err then says.
func (l *logins) grant(cookie string, admin bool, session string) (entry login, newCookie string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.all[cookieID(cookie)]
	if cookie == "" || e == nil || l.expired(e) {
		// A cookie we did not make is never taken over (session fixation).
		cookie = rand.Text()
		e = &login{ID: cookieID(cookie), Created: l.now(), Sessions: map[string]bool{}}
		l.makeRoom()
		l.all[e.ID] = e
	}
	e.Used = l.now()
	e.Admin = e.Admin || admin
	if session != "" {
		if e.Sessions == nil {
			e.Sessions = map[string]bool{}
		}
		e.Sessions[session] = true
	}
	return e.copy(), cookie, l.save()
}

// end removes a login and returns its ID.
func (l *logins) end(cookie string) (id string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id = cookieID(cookie)
	if l.all[id] == nil {
		return id, nil
	}
	delete(l.all, id)
	return id, l.save()
}

// forgetSession removes a session from every login. One that is left with nothing stays until it expires: its pages are
// then told that the session has ended, not to log in.
func (l *logins) forgetSession(session string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := false
	for _, e := range l.all {
		if !e.Sessions[session] {
			continue
		}
		delete(e.Sessions, session)
		changed = true
	}
	if !changed {
		return nil
	}
	return l.save()
}

// makeRoom drops expired logins and, when there are too many, those longest unused.
func (l *logins) makeRoom() {
	for id, e := range l.all {
		if l.expired(e) {
			delete(l.all, id)
		}
	}
	for _, e := range l.sorted()[:max(0, len(l.all)-loginsMax+1)] {
		delete(l.all, e.ID)
	}
}

// sorted lists the logins, longest unused first.
func (l *logins) sorted() []*login {
	list := make([]*login, 0, len(l.all))
	for _, e := range l.all {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *login) int { return cmp.Or(a.Used.Compare(b.Used), cmp.Compare(a.ID, b.ID)) })
	return list
}

func (l *logins) save() error {
	if l.path == "" {
		return nil
	}
	for _, e := range l.all {
		e.saved = e.Used
	}
	data, err := json.Marshal(l.sorted())
	if err != nil {
		return fmt.Errorf("logins: %w", err)
	}
	if err := atomicfile.Write(l.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("logins: %w", err)
	}
	return nil
}

// sameToken compares in constant time, also in the tokens' lengths. An empty token is nobody's.
func sameToken(got, want string) bool {
	a, b := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && want != ""
}

// LoadToken returns the token kept in the file at path (mode 0600), which it makes with a new random one if it is not
// there. An admin token kept so stays the same across restarts; removing the file revokes it.
func LoadToken(path string) (string, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		token := rand.Text()
		return token, atomicfile.Write(path, []byte(token+"\n"), 0o600)
	case err != nil:
		return "", fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if len(token) < 16 {
		return "", fmt.Errorf("token %q: too short to be safe; remove the file, a new one is made", path)
	}
	return token, nil
}

// tokenRights tells what a token opens: everything, or the session with an ID. Every token is compared with, so that
// the time taken does not tell which came near.
func (g *Gateway) tokenRights(token string) (admin bool, session string) {
	admin = sameToken(token, g.cfg.AdminToken)
	for _, s := range g.sessions.List() {
		if sameToken(token, s.Token) {
			session = s.ID
		}
	}
	return admin, session
}
