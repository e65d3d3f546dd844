package gateway

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"time"
)

const (
	thumbFresh   = time.Second // a picture younger than this is served again
	thumbTimeout = 5 * time.Second
	// thumbsAtOnce bounds how many are made at the same time: lists of many sessions must not slow down the desktops.
	thumbsAtOnce = 2
)

// thumbWidths are the widths that are made; a request gets the next one up. So many browsers share few pictures.
var thumbWidths = []int{160, 320, 480, 640, 960}

// thumbs makes and keeps thumbnails.
type thumbs struct {
	sessions Sessions
	slots    chan struct{}

	mu  sync.Mutex
	all map[string]map[int]*thumb // by Session.ID and width; guarded by mu
}

// thumb is one thumbnail. Its slot is held by whoever makes it, so that others wait for the result.
type thumb struct {
	slot chan struct{}
	png  []byte // guarded by slot, as is all that follows
	etag string
	made time.Time
}

func newThumbs(s Sessions) *thumbs {
	return &thumbs{sessions: s, slots: make(chan struct{}, thumbsAtOnce), all: map[string]map[int]*thumb{}}
}

// get returns a picture at most thumbFresh old, and a strong ETag (RFC 9110 section 8.8.3) of it.
func (t *thumbs) get(ctx context.Context, s Session, width int) (png []byte, etag string, err error) {
	for _, w := range thumbWidths {
		if w >= width || w == thumbWidths[len(thumbWidths)-1] {
			width = w
			break
		}
	}
	t.mu.Lock()
	byWidth := t.all[s.ID]
	if byWidth == nil {
		byWidth = map[int]*thumb{}
		t.all[s.ID] = byWidth
	}
	e := byWidth[width]
	if e == nil {
		e = &thumb{slot: make(chan struct{}, 1)}
		byWidth[width] = e
	}
	t.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, thumbTimeout)
	defer cancel()
	for _, slot := range []chan struct{}{e.slot, t.slots} {
		select {
		case slot <- struct{}{}:
			defer func() { <-slot }()
		case <-ctx.Done():
			return nil, "", fmt.Errorf("session %q: thumbnail: %w", s.Name, ctx.Err())
		}
		if slot == e.slot && time.Since(e.made) < thumbFresh {
			return e.png, e.etag, nil
		}
	}
	png, err = t.sessions.Thumbnail(ctx, s.Name, width)
	if err != nil {
		return nil, "", fmt.Errorf("session %q: thumbnail: %w", s.Name, err)
	}
	sum := sha256.Sum256(png)
	e.png, e.etag, e.made = png, `"`+hex.EncodeToString(sum[:12])+`"`, time.Now()
	return e.png, e.etag, nil
}

// forget drops the pictures of a session that is gone.
func (t *thumbs) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, id)
}
